"""Checkpoints: all that a run goes on from, written beside training, whole or not at all.

`RUN/checkpoints/<step>/` holds `state.safetensors`, the tensors of every SAE, and
`state.json`, the numbers, the store that they are from, and the sha256 of the
tensors. The newest two are kept.
"""

import hashlib
import json
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from saeflow import console
from saeflow.files import PARTIAL, naming, sync_directory, write_json
from saeflow.harvest.overlap import Background, background
from saeflow.train.tensors import write_tensors

_TENSORS, _NUMBERS = "state.safetensors", "state.json"
_KEPT = 2
_SCHEMA = 1

State = Mapping[str, Any]
"""Tensors and numbers under flat names."""


@dataclass(frozen=True)
class Checkpoint:
    """Where a run was.

    Attributes:
        step: steps that were done.
        store: identity of the store.
        metrics_bytes: how long metrics.jsonl was.
        states: of each SAE, by its name.
    """

    step: int
    store: str
    metrics_bytes: int
    states: Mapping[str, State]


@dataclass(frozen=True)
class Checkpoints:
    """The checkpoints of a run, and who writes them meanwhile.

    Attributes:
        folder: where they are.
        writer: one is written at a time.
    """

    folder: Path
    writer: Background

    def save(self, checkpoint: Checkpoint) -> None:
        """Copy the state, and write it while training goes on; waits for the one before.

        Raises:
            OSError: the one before could not be written.
        """
        self.writer.wait()
        tensors, numbers = _taken_apart(checkpoint)
        self.writer.start(lambda: _write(self.folder, checkpoint, tensors, numbers))

    def wait(self) -> None:
        """Until what was saved is on the disk.

        Raises:
            OSError: it could not be written.
        """
        self.writer.wait()


@contextmanager
def open_checkpoints(folder: Path) -> Iterator[Checkpoints]:
    """A run's checkpoints; at the end, also after an error, what is being written is whole."""
    with background() as writer:
        yield Checkpoints(folder, writer)


def newest(folder: Path) -> Checkpoint | None:
    """The newest checkpoint that is whole; None if there is none."""
    for path in reversed(_folders(folder)):
        try:
            return _read(path)
        except (OSError, ValueError, KeyError, TypeError, SafetensorError) as error:
            console.warn(f"checkpoint {path} can't be used: {error}")
    return None


def _folders(folder: Path) -> list[Path]:
    found = [path for path in folder.glob("*") if path.name.isdecimal()]
    return sorted(found, key=lambda path: int(path.name))


def _taken_apart(checkpoint: Checkpoint) -> tuple[dict[str, Tensor], dict[str, dict[str, Any]]]:
    """Copies of all tensors in the host's memory, and all numbers, of each SAE."""
    tensors: dict[str, Tensor] = {}
    numbers: dict[str, dict[str, Any]] = {}
    for number, (sae, state) in enumerate(checkpoint.states.items()):
        kept = {k: v for k, v in state.items() if isinstance(v, Tensor)}
        tensors |= {f"{number}/{k}": v.detach().to("cpu", copy=True) for k, v in kept.items()}
        numbers[sae] = {k: v for k, v in state.items() if k not in kept}
    return tensors, numbers


def _write(
    folder: Path,
    checkpoint: Checkpoint,
    tensors: dict[str, Tensor],
    numbers: dict[str, dict[str, Any]],
) -> None:
    """Write a checkpoint, then throw away all but the newest."""
    path = folder / str(checkpoint.step)
    partial = folder / f"{checkpoint.step}{PARTIAL}"
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    with naming(path):
        write_tensors(tensors, partial / _TENSORS)
        with (partial / _TENSORS).open("rb") as file:
            sha256 = hashlib.file_digest(file, "sha256").hexdigest()
        described = {
            "schema": _SCHEMA,
            "step": checkpoint.step,
            "store": checkpoint.store,
            "metrics_bytes": checkpoint.metrics_bytes,
            "sha256": sha256,
            "saes": numbers,
        }
        write_json(partial / _NUMBERS, described)
        if path.exists():  # of a run that was cut short between writing it and going on
            shutil.rmtree(path)
        partial.rename(path)
        sync_directory(folder)
    for old in _folders(folder)[:-_KEPT]:
        shutil.rmtree(old)


def _read(path: Path) -> Checkpoint:
    described = json.loads((path / _NUMBERS).read_text(encoding="utf-8"))
    if described["schema"] != _SCHEMA:
        raise ValueError(f"it is of schema {described['schema']}, not {_SCHEMA}")
    with (path / _TENSORS).open("rb") as file:
        if hashlib.file_digest(file, "sha256").hexdigest() != described["sha256"]:
            raise ValueError(f"{_TENSORS} is not as it was written")
    tensors = load_file(path / _TENSORS)
    states = {
        sae: {
            **numbers,
            **{k.partition("/")[2]: v for k, v in tensors.items() if k.startswith(f"{number}/")},
        }
        for number, (sae, numbers) in enumerate(described["saes"].items())
    }
    return Checkpoint(
        int(described["step"]), described["store"], int(described["metrics_bytes"]), states
    )
