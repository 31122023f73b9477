"""Where an evaluation's files go, and what an earlier one has left there."""

import errno
import json
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from saeflow.errors import BadInputError
from saeflow.evaluate.like_for_like import told_names
from saeflow.evaluate.opening import OpenedSAE
from saeflow.evaluate.resolved import changed
from saeflow.evaluate.result import EvaluationResult

SCORES, LATENTS, REPORT = "scores.json", "latents.safetensors", "report.html"

_SHOWN = 40
"""Characters of a value that a message shows: not all of a hash."""


@dataclass(frozen=True)
class Outputs:
    """The folders of an evaluation's files.

    Attributes:
        report: report.html.
        saes: of each SAE, where its scores.json and latents.safetensors go.
    """

    report: Path
    saes: Mapping[str, Path]


def outputs_of(given: Path, out: Path | None, saes: Sequence[OpenedSAE]) -> Outputs:
    """Beside each SAE, and the report in the folder that was named; or all of it in `--out`.

    Args:
        given: the SAE folder or the run that is evaluated.
        out: `--out`; naming `given` there is as naming nothing.
        saes: what it holds.

    Raises:
        BadInputError: `--out` is a file; or it holds scores of one SAE where those of several
            would go, or the other way round.
    """
    if out is None or out.resolve() == given.resolve():
        return Outputs(given / REPORT, {one.name: one.folder for one in saes})
    if out.exists() and not out.is_dir():
        raise BadInputError(f"--out {out} is a file: name a folder")
    _refuse_two_kinds(out, len(saes))
    if len(saes) == 1:
        return Outputs(out / REPORT, {saes[0].name: out})
    return Outputs(out / REPORT, {one.name: out / one.name for one in saes})


def _refuse_two_kinds(out: Path, saes: int) -> None:
    """Beside each other, neither a page nor a comparison would be of all that is there."""
    there = (out / SCORES).is_file()
    below = sorted(file.parent.name for file in out.glob(f"*/{SCORES}"))
    if saes == 1 and below and not there:
        raise BadInputError(
            f"--out {out} holds scores in folders of their own ({told_names(below)}): "
            "name a folder in it, or another --out"
        )
    if saes > 1 and there:
        raise BadInputError(
            f"--out {out} holds the scores of one SAE, and here are {saes}: name another --out"
        )


def make_folders(outputs: Outputs) -> None:
    """Make the folders that are not there, and see that files can be made in them.

    Raises:
        BadInputError: they can't.
    """
    for folder in dict.fromkeys([outputs.report.parent, *outputs.saes.values()]):
        try:
            folder.mkdir(parents=True, exist_ok=True)
            tempfile.TemporaryFile(dir=folder).close()
        except OSError as error:
            if error.errno == errno.ENOSPC:
                raise
            raise BadInputError(
                f"{folder} can't be written to ({error.strerror}): name another folder with --out"
            ) from error


def earlier_result(folder: Path, name: str, options: Mapping[str, Any]) -> EvaluationResult | None:
    """What an evaluation of the same, with the same options, has found; None if there was none.

    Args:
        folder: where its files are.
        name: of the SAE, whose folder may have had another name and place then.
        options: as `resolved` gives them.

    Raises:
        BadInputError: there are scores that are damaged, or were made from other things or
            with other options.
    """
    path = folder / SCORES
    if not path.is_file():
        return None
    try:
        result = EvaluationResult.from_json(json.loads(path.read_text(encoding="utf-8")))
    except (ValueError, KeyError, TypeError) as error:
        raise BadInputError(
            f"{path} is no scores.json of this saeflow: move it, or give --overwrite"
        ) from error
    if names := changed(result.options, options):
        told = "; ".join(
            f"{k}: {_shown(result.options.get(k))} there, {_shown(options.get(k))} now"
            for k in names
        )
        raise BadInputError(
            f"{path} holds scores made with other options ({told}): name another --out, "
            "or replace them with --overwrite"
        )
    return replace(result, name=name, options={**result.options, "sae": options["sae"]})


def _shown(value: Any) -> str:
    told = repr(value)
    return told if len(told) <= _SHOWN else f"{told[:_SHOWN]}..."
