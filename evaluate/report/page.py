"""report.html: one file with everything in it, which opens from disk and asks nothing of a network.

The policy in its head lets a browser run the one script and use the one style sheet that were
written here, by their sha256, and load nothing. Text of the data is escaped, whatever it is.
"""

import base64
import hashlib
import html
import json
import re
from collections.abc import Mapping, Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any, Literal

from saeflow.evaluate.latents.result import Latents
from saeflow.evaluate.report.data import check_results, script_safe_json, training_curves
from saeflow.evaluate.report.packing import pack_latents
from saeflow.evaluate.result import EvaluationResult
from saeflow.files import write_durably

_SCRIPTS = (
    "dom.js",
    "charts.js",
    "plots.js",
    "scores.js",
    "breakdown.js",
    "comparison.js",
    "training.js",
    "provenance.js",
    "unpack.js",
    "search.js",
    "tokens.js",
    "list.js",
    "latent.js",
    "latents.js",
    "main.js",
)
"""In the order in which they stand in the page; main.js runs, and the others define."""

PageKind = Literal["evaluate", "compare"]
"""The command whose page it is."""

_HEAD = 1024
"""Bytes in which a page says what it is."""


def write_report(
    path: Path,
    results: Sequence[Mapping[str, Any]],
    *,
    title: str,
    latents: Mapping[str, Latents] | None = None,
    token_texts: Mapping[str, Mapping[int, str]] | None = None,
    training: Mapping[str, Sequence[Mapping[str, Any]]] | None = None,
    notes: Sequence[str] = (),
    kind: PageKind = "evaluate",
) -> None:
    """Write the page; it is there whole or not at all.

    Args:
        path: of the file.
        results: each the content of a scores.json, under its own name. The first is shown first.
        title: of the page.
        latents: what is known of latents, by the name of a result.
        token_texts: the text of their tokens, by id, by the name of a result.
        training: lines of a run's metrics.jsonl, by the name of the SAE.
        notes: what a reader should know when he compares the results.
        kind: the command that it is of.

    Raises:
        BadInputError: no result, a result of another schema, or two of one name.
    """
    page = report_page(
        results,
        title=title,
        latents=latents,
        token_texts=token_texts,
        training=training,
        notes=notes,
        kind=kind,
    )
    write_durably(path, [page.encode(errors="replace")])


def page_kind(path: Path) -> PageKind | None:
    """Of which command there is a page that `write_report` wrote; None if there is none."""
    mark = _head_of(path, "generator")
    if mark is None or not mark.startswith("saeflow"):
        return None
    return "compare" if mark == "saeflow compare" else "evaluate"


def shows(path: Path, results: Sequence[Mapping[str, Any]]) -> bool:
    """Whether there is a page of just these results, whatever their names were then."""
    return _head_of(path, "saeflow-results") == _digest(results)


def _head_of(path: Path, name: str) -> str | None:
    if not path.is_file():
        return None
    with path.open("rb") as file:
        head = file.read(_HEAD).decode(errors="replace")
    found = re.search(f'<meta name="{name}" content="([^"]*)">', head)
    return None if found is None else found[1]


def _digest(results: Sequence[Mapping[str, Any]]) -> str:
    """A hash of what results say, without where their SAEs were."""
    whole = [EvaluationResult.from_json(result).to_json() for result in results]
    said = [{k: v for k, v in one.items() if k not in ("name", "options")} for one in whole]
    return hashlib.sha256(json.dumps(said, sort_keys=True).encode()).hexdigest()


def report_page(
    results: Sequence[Mapping[str, Any]],
    *,
    title: str,
    latents: Mapping[str, Latents] | None = None,
    token_texts: Mapping[str, Mapping[int, str]] | None = None,
    training: Mapping[str, Sequence[Mapping[str, Any]]] | None = None,
    notes: Sequence[str] = (),
    kind: PageKind = "evaluate",
) -> str:
    """The page as text; the same for the same content. Arguments as in `write_report`."""
    check_results(results)
    latents, token_texts = latents or {}, token_texts or {}
    shown = [result["name"] for result in results if result["name"] in latents]
    ids = {name: f"latents-{number}" for number, name in enumerate(shown)}
    data = {
        "results": results,
        "training": training_curves(training or {}),
        "blocks": [ids.get(result["name"]) for result in results],
        "notes": notes,
    }
    style, script = _read("report.css"), _script()
    return _filled(
        policy=_policy(style, script),
        generator=f"saeflow {kind}",
        digest=_digest(results),
        title=html.escape(title),
        style=style,
        plain="".join(f"<p>{html.escape(result['verdict'])}</p>" for result in results),
        data=script_safe_json(data),
        script=script,
        latents="\n".join(
            f'<script type="text/plain" id="{ids[name]}">'
            f"{pack_latents(latents[name], token_texts.get(name, {}))}</script>"
            for name in shown
        ),
    )


def _filled(**parts: str) -> str:
    """The template with its parts, put in at once: what is in a part is never taken for a place."""
    return re.sub(r"@(\w+)@", lambda place: parts[place[1]], _read("template.html"))


def _script() -> str:
    return "\n".join(['"use strict";', "{", *map(_read, _SCRIPTS), "}\n"])


def _policy(style: str, script: str) -> str:
    return (
        f"default-src 'none'; script-src '{_hash(script)}'; style-src '{_hash(style)}'; "
        "img-src data:; base-uri 'none'; form-action 'none'"
    )


def _hash(text: str) -> str:
    return f"sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}"


def _read(name: str) -> str:
    return (files(__package__ or "") / name).read_text(encoding="utf-8")
