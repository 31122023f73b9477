"""Several results side by side: read, and one page of all."""

import errno
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from saeflow.errors import BadInputError
from saeflow.evaluate.latents.files import read_latents, read_texts
from saeflow.evaluate.like_for_like import differences, told_names
from saeflow.evaluate.outputs import LATENTS, SCORES
from saeflow.evaluate.pages import check_page
from saeflow.evaluate.report.page import write_report
from saeflow.evaluate.report.schema import what_is_wrong
from saeflow.evaluate.report.training import training_of
from saeflow.evaluate.result import SCHEMA
from saeflow.train.claim import SAES


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """Results that were read from files.

    Attributes:
        results: each the content of a scores.json, in the order given, under a name of its own.
        notes: in what they are not like for like, a line each; empty where they are.
        folders: where each is from, by its name.
        training: lines of metrics.jsonl by result, of those that are in a run's folder.
    """

    results: tuple[Mapping[str, Any], ...]
    notes: tuple[str, ...]
    folders: Mapping[str, Path]
    training: Mapping[str, Sequence[Mapping[str, Any]]]

    def to_json(self) -> dict[str, Any]:
        """For machines: the notes and the results."""
        return {"notes": list(self.notes), "results": list(self.results)}


def compare_results(paths: Sequence[Path]) -> Comparison:
    """Read results.

    Args:
        paths: of scores.json files, or of folders that hold them: an SAE, a run, an `--out`.

    Raises:
        BadInputError: a path is not there or holds no scores.json, one is damaged or of another
            schema, or one is given twice.
    """
    files = [file for path in paths for file in _files_of(path)]
    if not files:
        raise BadInputError("there is nothing to compare: name scores.json files or SAE folders")
    places = [file.resolve() for file in files]
    for file, place in zip(files, places, strict=True):
        if places.count(place) > 1:
            raise BadInputError(f"{file} is given more than once: name each result once")
    results = [_read(file) for file in files]
    names = _names(results, places)
    results = [{**result, "name": name} for result, name in zip(results, names, strict=True)]
    folders = {name: file.parent for name, file in zip(names, files, strict=True)}
    return Comparison(
        results=tuple(results),
        notes=tuple(differences(results)),
        folders=folders,
        training=training_of(folders),
    )


def write_comparison(comparison: Comparison, path: Path, *, overwrite: bool = False) -> None:
    """Write the page of a comparison, with the latents that are beside the results.

    It is there whole or not at all.

    Args:
        comparison: what to show.
        path: of the file; a page of another comparison is replaced.
        overwrite: replace whatever file is there.

    Raises:
        BadInputError: a latents.safetensors is damaged; there is another file, or a folder;
            or nothing can be written there.
    """
    check_page(path, "compare", overwrite=overwrite)
    found = {name: folder / LATENTS for name, folder in comparison.folders.items()}
    found = {name: file for name, file in found.items() if file.is_file()}
    models = dict.fromkeys(result["model"] for result in comparison.results)
    try:
        write_report(
            path,
            comparison.results,
            title=f"{len(comparison.results)} results of {', '.join(models)}",
            latents={name: read_latents(file) for name, file in found.items()},
            token_texts={name: read_texts(file) for name, file in found.items()},
            training=comparison.training,
            notes=comparison.notes,
            kind="compare",
        )
    except OSError as error:
        if error.errno == errno.ENOSPC:
            raise
        raise BadInputError(
            f"--out {path} can't be written ({error.strerror}): name another file"
        ) from error


def _files_of(path: Path) -> list[Path]:
    if path.is_file():
        return [path]
    if (path / SCORES).is_file():
        _refuse_two_kinds(path)
        return [path / SCORES]
    if not path.exists():
        raise BadInputError(f"{path} does not exist: check the path")
    within = path / SAES if (path / SAES).is_dir() else path
    found = sorted(within.glob(f"*/{SCORES}"))
    if not found:
        raise BadInputError(f"{path} holds no {SCORES}: run saeflow evaluate on it first")
    return found


def _refuse_two_kinds(folder: Path) -> None:
    below = sorted(file.parent.name for file in folder.glob(f"*/{SCORES}"))
    if below:
        raise BadInputError(
            f"{folder} holds a {SCORES} of its own and those of {told_names(below)}: "
            f"name the files that are meant, {folder / SCORES} or those in its folders"
        )


def _read(file: Path) -> dict[str, Any]:
    try:
        result = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise BadInputError(f"{file} is no {SCORES}: run saeflow evaluate again") from error
    schema = result.get("schema") if isinstance(result, dict) else None
    if schema != SCHEMA:
        raise BadInputError(
            f"{file} has schema {schema!r}, and this saeflow reads {SCHEMA}: evaluate again"
        )
    wrong = what_is_wrong(result)
    if wrong is not None:
        raise BadInputError(f"{file} is damaged, {wrong}: run saeflow evaluate again")
    return dict(result)


def _names(results: Sequence[Mapping[str, Any]], places: Sequence[Path]) -> list[str]:
    """The results' own names; where two are equal, as much of their paths as tells them apart."""
    own = [str(result["name"]) for result in results]
    for depth in range(1, max(len(place.parts) for place in places) + 1):
        names = [
            name if own.count(name) == 1 else "/".join(place.parent.parts[-depth:] + suffix)
            for name, place, suffix in zip(own, places, map(_suffix, places), strict=True)
        ]
        if len(set(names)) == len(names):
            return names
    return [str(place) for place in places]


def _suffix(place: Path) -> tuple[str, ...]:
    return () if place.name == SCORES else (place.name,)
