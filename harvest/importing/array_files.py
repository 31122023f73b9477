"""A file of activations, or a folder of them in the order of their names.

Each holds one array (rows, width), or (sequences, positions, width): then rows know
their sequence, counted through all files, and their position in it.
"""

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float, Int64
from torch import Tensor

from saeflow.errors import BadInputError
from saeflow.harvest.importing.source import UNKNOWN, Part, RowValues, Source, check_shape
from saeflow.harvest.importing.tensors import StoredTensor, open_tensors
from saeflow.harvest.layout import HookPoint


def open_array_files(
    path: Path, kind: str, files: Sequence[Path], *, hook: tuple[str, ...], key: str | None
) -> Source:
    """Activations in files of one kind.

    Args:
        path: the file or folder that the user gave.
        kind: `npy`, `safetensors` or `torch`.
        files: at least one, in order.
        hook: the hook point's name, if the user told it.
        key: the tensor's name, where files hold several.

    Raises:
        BadInputError: a file can't be read, or they don't hold rows of one width.
    """
    if len(hook) > 1:
        raise BadInputError(f"--hook names {len(hook)} hook points: {path} holds rows of one")
    if kind == "npy" and key is not None:
        raise BadInputError(f"--key {key} is for files with names in them: a .npy has none")
    arrays = [_choose(file, key) for file in files]
    first = arrays[0]
    for array in arrays:
        check_shape(str(array.path), array.shape, array.dtype)
        if len(array.shape) != len(first.shape) or array.shape[-1] != first.shape[-1]:
            raise BadInputError(
                f"{array.path} has the shape {array.shape} and {first.path} {first.shape}: "
                "import them into stores of their own"
            )
    hook_point = HookPoint(hook[0] if hook else UNKNOWN, (first.shape[-1],))
    in_sequences = len(first.shape) == 3
    counts = [array.shape[0] for array in arrays]
    return Source(
        format=kind,
        path=path,
        files=tuple(files),
        hook_points=(hook_point,),
        dtype=_common([array.dtype for array in arrays]),
        row_values=("seq", "pos") if in_sequences else (),
        parts=tuple(
            _part(array, sum(counts[:i]) if in_sequences else None)
            for i, array in enumerate(arrays)
        ),
        sequences=_sequences(arrays) if in_sequences else None,
    )


def _choose(file: Path, key: str | None) -> StoredTensor:
    """The tensor with the activations."""
    tensors = open_tensors(file)
    if not tensors:
        raise BadInputError(f"{file} holds no tensor: give activations, one vector a row")
    names = ", ".join(sorted(tensors))
    if key is not None:
        if key not in tensors:
            what = (
                f"it holds {names}" if any(tensors) else "its tensor has no name: leave --key out"
            )
            raise BadInputError(f"{file} has no tensor '{key}': {what}")
        return tensors[key]
    if len(tensors) > 1:
        raise BadInputError(f"{file} holds several tensors ({names}): choose one with --key")
    return next(iter(tensors.values()))


def _part(array: StoredTensor, first_sequence: int | None) -> Part:
    positions = array.shape[1] if first_sequence is not None else 1

    def read(hook: str, first: int, stop: int) -> Float[Tensor, "rows d_in"]:  # noqa: ARG001
        return array.rows(first, stop)

    def where(hook: str, row: int) -> str:  # noqa: ARG001
        place = f"row {row}"
        if first_sequence is not None:
            place = "sequence {}, position {}".format(*divmod(row, positions))
        return f"{array.path}, {place}"

    values: Callable[[int, int], RowValues] = lambda first, stop: {}  # noqa: E731, ARG005
    if first_sequence is not None:
        values = partial(sequence_values, first_sequence, positions)
    return Part(array.shape[0] * positions, read, values, where)


def sequence_values(first_sequence: int, positions: int, first: int, stop: int) -> RowValues:
    """Sequence and position of rows that are in whole sequences of one length."""
    sequence, position = divmod(np.arange(first, stop), positions)
    return {
        "seq": (sequence + first_sequence).astype(np.uint32),
        "pos": position.astype(np.uint32),
    }


def _sequences(arrays: Sequence[StoredTensor]) -> Int64[np.ndarray, " sequences_and_1"]:
    lengths = [np.full(array.shape[0], array.shape[1], np.int64) for array in arrays]
    return np.concatenate([[0], np.cumsum(np.concatenate(lengths))])


def _common(dtypes: Sequence[object]) -> torch.dtype | None:
    found = set(dtypes)
    (only,) = found if len(found) == 1 else (None,)
    return only if isinstance(only, torch.dtype) else None
