"""latents.safetensors: all that is known of latents in one file, nothing of it pickled.

Its tensors are the arrays of `Latents`, those of `Contexts`, `OutputTokens` and `Nearest`
under names such as `contexts.tokens`; the last two may be missing. Its metadata holds the
format's version, the three plain numbers, and as JSON the text of every token, by id.
"""

import json
from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from safetensors import SafetensorError, safe_open

from saeflow.errors import BadInputError, one_line
from saeflow.evaluate.latents.result import Contexts, Latents, Nearest, OutputTokens
from saeflow.files import PARTIAL, sync_directory
from saeflow.train.tensors import write_tensors

NAME = "latents.safetensors"

_VERSION = "1"
_PARTS: dict[str, type[Any]] = {
    "contexts": Contexts,
    "output_tokens": OutputTokens,
    "nearest": Nearest,
}
_NUMBERS = {"d_sae", "rows", "before"}

Part = TypeVar("Part")


def write_latents(latents: Latents, texts: Mapping[int, str], path: Path) -> None:
    """Write a file under a temporary name, flush it to the disk, and rename it into place.

    Args:
        latents: all that is known of them.
        texts: of the tokens, by id.
        path: of the file.

    Raises:
        OSError: it can't be written.
    """
    tensors, numbers = _flat(latents)
    partial = path.with_name(path.name + PARTIAL)
    metadata = {
        "saeflow_latents": _VERSION,
        "texts": json.dumps(texts),
        **{k: str(n) for k, n in numbers.items()},
    }
    write_tensors({k: torch.from_numpy(a) for k, a in tensors.items()}, partial, metadata)
    partial.replace(path)
    sync_directory(path.parent)


def read_latents(path: Path) -> Latents:
    """Read a file that `write_latents` wrote.

    Raises:
        BadInputError: there is none, or it is another kind of file, or damaged.
    """
    try:
        with safe_open(path, framework="numpy") as file:
            metadata = file.metadata() or {}
            version = metadata.get("saeflow_latents")
            if version != _VERSION:
                raise BadInputError(
                    f"{path} has version {version} of saeflow's latents, where {_VERSION} is "
                    "known: evaluate again with --overwrite"
                )
            held: dict[str, Any] = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        return _from_flat({**held, **{name: int(metadata[name]) for name in _NUMBERS}})
    except (OSError, SafetensorError, KeyError, ValueError) as error:
        raise BadInputError(
            f"{path} can't be read: {one_line(error)}: evaluate again with --overwrite"
        ) from error


def read_texts(path: Path) -> dict[int, str]:
    """The texts of the tokens that are in a file of `write_latents`.

    Raises:
        BadInputError: as `read_latents`.
    """
    try:
        with safe_open(path, framework="numpy") as file:
            held = json.loads((file.metadata() or {})["texts"])
        return {int(token): str(text) for token, text in held.items()}
    except (OSError, SafetensorError, KeyError, ValueError, AttributeError) as error:
        raise BadInputError(
            f"{path} can't be read: {one_line(error)}: evaluate again with --overwrite"
        ) from error


def _flat(value: Any, prefix: str = "") -> tuple[dict[str, np.ndarray], dict[str, int]]:
    """A dataclass's arrays, those of its parts by dotted names, and its plain numbers."""
    arrays: dict[str, np.ndarray] = {}
    numbers: dict[str, int] = {}
    for field in fields(value):
        held = getattr(value, field.name)
        if isinstance(held, np.ndarray):
            arrays[prefix + field.name] = held
        elif isinstance(held, int):
            numbers[field.name] = held
        elif held is not None:
            more, others = _flat(held, f"{field.name}.")
            arrays |= more
            numbers |= others
    return arrays, numbers


def _from_flat(held: Mapping[str, Any]) -> Latents:
    """The other way round.

    Raises:
        KeyError: something is missing.
    """
    parts = {
        name: _made(part, held, f"{name}.")
        for name, part in _PARTS.items()
        if name == "contexts" or any(key.startswith(f"{name}.") for key in held)
    }
    return _made(Latents, {**dict.fromkeys(_PARTS), **held, **parts}, "")


def _made(part: type[Part], held: Mapping[str, Any], prefix: str) -> Part:
    names = [field.name for field in fields(part)]  # type: ignore[arg-type]  # all are dataclasses
    return part(**{name: held[name if name in _NUMBERS else prefix + name] for name in names})
