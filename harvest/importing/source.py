"""A source: activations as somebody else stored them, behind one small interface.

Rows are numbered through all parts of a source, and only by reading them a few
thousand at a time; so a source may be larger than the memory.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float, Int64, UInt32
from torch import Tensor

from saeflow.errors import BadInputError, one_line
from saeflow.harvest.layout import ROW_ARRAYS, HookPoint

DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
"""The precisions that activations come in."""

UNKNOWN = "unknown"
"""What a store says of a model, a text or a hook point that nobody told."""

RowValues = dict[str, UInt32[np.ndarray, " rows"]]
"""What is known of rows, by keys of `ROW_ARRAYS`."""


@dataclass(frozen=True)
class Part:
    """A file of a source, or several that hold the same rows for different hook points.

    Attributes:
        n_rows: rows that are imported.
        read: gives a hook point's rows from `first` to `stop` (excluded), in the
            source's precision.
        values: gives what is known of those rows.
        where: says for a message where a row of a hook point stands.
    """

    n_rows: int
    read: Callable[[str, int, int], Float[Tensor, "rows d_in"]]
    values: Callable[[int, int], RowValues]
    where: Callable[[str, int], str]


@dataclass(frozen=True)
class Source:
    """Activations to import.

    Attributes:
        format: what wrote them: `npy`, `safetensors`, `torch`, `saelens` or `llamascopium`.
        path: the file or folder.
        files: everything that was read, for the provenance.
        hook_points: one kind of row each.
        dtype: their precision; None if it differs between files.
        row_values: what is known of each row.
        parts: where the rows are, in order.
        sequences: the first row of each sequence, and one past the last row; None if
            it isn't known which rows are of one sequence.
        contents: gives what identifies each sequence's text; None if it isn't known.
        masked: rows that the source itself says are no activations of text.
    """

    format: str
    path: Path
    files: tuple[Path, ...]
    hook_points: tuple[HookPoint, ...]
    dtype: torch.dtype | None
    row_values: tuple[str, ...]
    parts: tuple[Part, ...]
    sequences: Int64[np.ndarray, " sequences_and_1"] | None = None
    contents: Callable[[], Iterator[bytes]] | None = None
    masked: int = 0

    @property
    def n_rows(self) -> int:
        """Rows of all parts."""
        return sum(part.n_rows for part in self.parts)


def check_shape(what: str, shape: Sequence[int], dtype: object) -> None:
    """Refuse what can't be activations.

    Args:
        what: the file, and the tensor in it if there are several.
        shape: of the tensor.
        dtype: a torch dtype; anything else is refused and told.

    Raises:
        BadInputError: the numbers are not floating-point, or have one axis or more than three.
    """
    if dtype not in DTYPES:
        raise BadInputError(
            f"{what} holds numbers of type {str(dtype).removeprefix('torch.')}: activations are "
            "float16, bfloat16, float32 or float64"
        )
    if len(shape) not in (2, 3) or shape[-1] == 0:
        raise BadInputError(
            f"{what} has the shape {tuple(shape)}: give (rows, width) or "
            "(sequences, positions, width)"
        )


def flat_slices(leading: Sequence[int], first: int, stop: int) -> Iterator[tuple[slice, ...]]:
    """Slices of the leading axes of an array that together are rows `first` to `stop` of it.

    >>> list(flat_slices((3, 4), 2, 8))
    [(slice(0, 1, None), slice(2, 4, None)), (slice(1, 2, None),)]
    """
    if first >= stop:
        return
    inner = math.prod(leading[1:])
    (i, begin), (j, end) = divmod(first, inner), divmod(stop, inner)
    if i == j and len(leading) > 1:
        yield from ((slice(i, i + 1), *rest) for rest in flat_slices(leading[1:], begin, end))
        return
    if begin:
        rest_of_first = flat_slices(leading[1:], begin, inner)
        yield from ((slice(i, i + 1), *rest) for rest in rest_of_first)
        i += 1
    if i < j:
        yield (slice(i, j),)
    if end:
        yield from ((slice(j, j + 1), *rest) for rest in flat_slices(leading[1:], 0, end))


def token_ids(what: str, tokens: np.ndarray) -> UInt32[np.ndarray, "*shape"]:
    """Token ids as the store holds them.

    Raises:
        BadInputError: there is one that no vocabulary has.
    """
    largest = np.iinfo(ROW_ARRAYS["token"]).max - 1
    if tokens.size and (tokens.min() < 0 or tokens.max() > largest):
        bad = tokens[(tokens < 0) | (tokens > largest)].flat[0]
        raise BadInputError(f"{what} holds token id {bad}: it must be from 0 to {largest}")
    return tokens.astype(np.uint32)


@contextmanager
def reading(path: Path) -> Iterator[None]:
    """Say which file another library could not read.

    Raises:
        BadInputError: it could not.
    """
    try:
        yield
    except BadInputError:
        raise
    except Exception as error:  # each format's library has errors of its own
        raise BadInputError(
            f"{path} can't be read ({one_line(error)}): check that it is whole"
        ) from error
