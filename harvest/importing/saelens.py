"""SAELens's cached activations: a Hugging Face dataset, one context a row.

`CacheActivationsRunner` (SAELens 6) writes what `datasets.load_from_disk` opens: a
column of type `Array2D` (context, d_in) named by the hook point, and `token_ids`.
All positions of a context are there, the first one included. Which part of a longer
context that was (`seqpos_slice`), and the model, are not recorded; so positions
count from 0 in what was stored.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from jaxtyping import Float, UInt32
from torch import Tensor

from saeflow import console
from saeflow.errors import BadInputError
from saeflow.harvest.importing.array_files import sequence_values
from saeflow.harvest.importing.source import (
    Part,
    RowValues,
    Source,
    check_shape,
    reading,
    token_ids,
)
from saeflow.harvest.layout import HookPoint

if TYPE_CHECKING:
    from datasets import Dataset

INFO, STATE = "dataset_info.json", "state.json"
TOKENS = "token_ids"
_CONTEXTS_AT_ONCE = 4096
_TORCH_NAMES = {"float16": torch.float16, "float32": torch.float32, "float64": torch.float64}


def open_saelens(path: Path, *, hook: tuple[str, ...]) -> Source:
    """The cached activations in a folder.

    Args:
        path: the folder.
        hook: the hook points to take, all if empty.

    Raises:
        BadInputError: it can't be read, or holds no such column.
    """
    from datasets import Dataset, load_from_disk, logging

    logging.set_verbosity(logging.CRITICAL)  # an error is told in one line, ours
    if not (path / STATE).is_file() or not (path / INFO).is_file():
        raise BadInputError(
            f"{path} has no {STATE} and {INFO}: SAELens has not written it to the end"
        )
    with reading(path):
        dataset = load_from_disk(str(path))
        assert isinstance(dataset, Dataset)
        dataset = dataset.with_format("arrow")  # slices of columns, without Python objects
        files = (
            *(Path(file["filename"]) for file in dataset.cache_files),
            path / STATE,
            path / INFO,
        )
    names = _choose(dataset, path, hook)
    hook_points, dtypes, lengths = [], set(), set()
    for name in names:
        context, width = dataset.features[name].shape
        dtype = _TORCH_NAMES.get(dataset.features[name].dtype, dataset.features[name].dtype)
        check_shape(f"column {name} of {path}", (len(dataset), context, width), dtype)
        hook_points.append(HookPoint(name, (width,)))
        dtypes.add(dtype)
        lengths.add(context)
    if len(lengths) > 1:
        raise BadInputError(
            f"the columns {', '.join(names)} of {path} have contexts of different lengths: "
            "import one at a time with --hook"
        )
    (context,) = lengths
    has_tokens = TOKENS in dataset.column_names
    return Source(
        format="saelens",
        path=path,
        files=files,
        hook_points=tuple(hook_points),
        dtype=dtypes.pop() if len(dtypes) == 1 else None,
        row_values=("token", "seq", "pos") if has_tokens else ("seq", "pos"),
        parts=(_part(dataset, path, context, has_tokens=has_tokens),),
        sequences=np.arange(len(dataset) + 1) * context,
        contents=(lambda: _contents(dataset, path, context)) if has_tokens else None,
    )


def _choose(dataset: "Dataset", path: Path, hook: tuple[str, ...]) -> list[str]:
    """The columns of activations that are wanted."""
    from datasets import Array2D

    held = [name for name, f in dataset.features.items() if isinstance(f, Array2D)]
    if not held:
        raise BadInputError(
            f"{path} has no column of activations (Array2D): "
            f"it has {', '.join(dataset.column_names) or 'none at all'}"
        )
    missing = [name for name in hook if name not in held]
    if missing:
        raise BadInputError(
            f"{path} does not hold hook point {missing[0]}: it holds {', '.join(held)}"
        )
    taken = list(hook) or held
    others = [name for name in dataset.column_names if name not in (*held, TOKENS)]
    if others:
        console.warn(f"{path} has more columns, which are not imported: {', '.join(others)}")
    return taken


def _part(dataset: "Dataset", path: Path, context: int, *, has_tokens: bool) -> Part:
    def read(hook: str, first: int, stop: int) -> Float[Tensor, "rows d_in"]:
        width = dataset.features[hook].shape[1]
        begin, end = first // context, -(-stop // context)
        values = _column(dataset, path, hook, begin, end, context * width).reshape(-1, width)
        return torch.from_numpy(values[first - begin * context : stop - begin * context].copy())

    def values(first: int, stop: int) -> RowValues:
        known = sequence_values(0, context, first, stop)
        if has_tokens:
            begin, end = first // context, -(-stop // context)
            tokens = _tokens(dataset, path, begin, end, context).reshape(-1)
            known["token"] = tokens[first - begin * context : stop - begin * context]
        return known

    def where(hook: str, row: int) -> str:
        return f"{path}, {hook}, context {row // context}, position {row % context}"

    return Part(len(dataset) * context, read, values, where)


def _column(
    dataset: "Dataset", path: Path, name: str, begin: int, end: int, values_a_context: int
) -> np.ndarray:
    """All numbers of some contexts."""
    gaps, found = 0, []
    with reading(path):
        for chunk in dataset[begin:end].column(name).chunks:
            values = getattr(chunk, "storage", chunk)
            while hasattr(values.type, "value_type"):  # a list of something
                values = values.flatten()
            gaps += values.null_count
            found.append(values.to_numpy(zero_copy_only=False))
        flat: np.ndarray = np.concatenate(found)
    if gaps or len(flat) != (end - begin) * values_a_context:
        raise BadInputError(
            f"column {name} of {path} has a gap between context {begin} and {end}: "
            "SAELens stores all positions of each"
        )
    return flat


def _tokens(
    dataset: "Dataset", path: Path, begin: int, end: int, context: int
) -> UInt32[np.ndarray, "contexts context"]:
    tokens = _column(dataset, path, TOKENS, begin, end, context)
    return token_ids(str(path), tokens).reshape(-1, context)


def _contents(dataset: "Dataset", path: Path, context: int) -> Iterator[bytes]:
    for begin in range(0, len(dataset), _CONTEXTS_AT_ONCE):
        end = min(begin + _CONTEXTS_AT_ONCE, len(dataset))
        for tokens in _tokens(dataset, path, begin, end, context):
            yield tokens.astype("<u4").tobytes()
