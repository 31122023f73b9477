"""The training curves of SAEs that are still in the folder of their run.

They come last, after hours of evaluation may have been paid for: what can't be read of them
is told and left out, and nothing is refused.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from saeflow import console
from saeflow.train.claim import SAES
from saeflow.train.journal import METRICS

Line = dict[str, Any]


def training_of(saes: Mapping[str, Path]) -> dict[str, list[Line]]:
    """The lines of metrics.jsonl of each SAE that has some, by its name.

    A last line that a run is just writing is left out; so are lines that are damaged, or the
    file where it can't be read, with a warning.

    Args:
        saes: folders of SAEs by name, `RUN/sae/<name>` where there is a run.
    """
    folders = {name: folder.resolve() for name, folder in saes.items()}
    runs = dict.fromkeys(f.parent.parent for f in folders.values() if f.parent.name == SAES)
    lines = {run: _whole_lines(run / METRICS) for run in runs if (run / METRICS).is_file()}
    found = {
        name: [line for line in lines.get(f.parent.parent, []) if line["sae"] == f.name]
        for name, f in folders.items()
    }
    return {name: own for name, own in found.items() if own}


def _whole_lines(metrics: Path) -> list[Line]:
    try:
        *written, _ = metrics.read_bytes().split(b"\n")  # no line end: it is being written
    except OSError as error:
        console.warn(f"{metrics} can't be read: {error.strerror}; the page has no training curves")
        return []
    lines = [_parsed(line) for line in written]
    whole = [line for line in lines if line is not None]
    if len(whole) < len(lines):
        console.warn(
            f"{metrics} is damaged: the training curves lack {len(lines) - len(whole)} of its "
            f"{len(lines)} lines, from line {lines.index(None) + 1} on"
        )
    return whole


def _parsed(line: bytes) -> Line | None:
    """A line as `saeflow train` writes it; None if it is something else."""
    try:
        found = json.loads(line)
    except ValueError:
        return None
    of_a_step = isinstance(found, dict) and type(found.get("step")) is int
    return found if of_a_step and isinstance(found.get("sae"), str) else None
