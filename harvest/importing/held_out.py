"""Which rows of a source are kept away from training.

A row is in one split alone. Where it is known which rows are of one sequence, whole
sequences are held out: by a hash of their token ids, as `harvest` does it with
documents, so equal sequences are on the same side; or, where the tokens are not
known, by number. Bare rows are held out in whole blocks of consecutive rows, since
neighbours in a file tend to be of one text, and again by number: the same blocks
whatever the options, so that imports of one source can be compared.

Rows that are equal may then be on both sides, and a text that the source holds twice
may be too: numbers alone don't tell. (The first token's row is the same in every
context of most models, so equal rows say nothing of equal text.)
"""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Int64

from saeflow.errors import BadInputError
from saeflow.harvest.importing.source import Source
from saeflow.harvest.permutation import derive_key, permute
from saeflow.harvest.tokens import is_held_out

BLOCK_ROWS = 1024
"""Rows of a block; fewer where the source is small, so that there are 256 of them."""

_BLOCKS = 256


@dataclass(frozen=True)
class SplitRows:
    """Where the rows of a split are in the source.

    Attributes:
        begins: the number in the source of the first row of each run of rows.
        starts: the number in the split of that row, and one past the last row.
    """

    begins: Int64[np.ndarray, " runs"]
    starts: Int64[np.ndarray, " runs_and_1"]

    @property
    def n_rows(self) -> int:
        """Rows of the split."""
        return int(self.starts[-1])

    def runs(self, rows: range) -> list[range]:
        """Where some consecutive rows of the split are in the source, in order."""
        first, last = np.searchsorted(self.starts, [rows.start, rows.stop - 1], side="right") - 1
        begins = self.begins[first : last + 1] - self.starts[first : last + 1]
        return [
            range(shift + max(rows.start, start), shift + min(rows.stop, stop))
            for shift, start, stop in zip(
                begins.tolist(),
                self.starts[first : last + 1].tolist(),
                self.starts[first + 1 : last + 2].tolist(),
                strict=True,
            )
        ]


def split_source(source: Source, share: float) -> dict[str, SplitRows]:
    """The rows of `train` and of `heldout`.

    Args:
        source: whose rows.
        share: of them that is held out, about, in [0, 1).

    Raises:
        BadInputError: no row is left to train on.
    """
    bounds, held_out = _units(source, share)
    splits = {name: _rows(bounds, held_out == (name == "heldout")) for name in ("train", "heldout")}
    if splits["train"].n_rows == 0:
        raise BadInputError(
            f"{source.path} has {source.n_rows} rows, all of them held out: lower --held-out"
        )
    return splits


def _units(
    source: Source, share: float
) -> tuple[Int64[np.ndarray, " units_and_1"], Bool[np.ndarray, " units"]]:
    """Bounds of what is held out or not as a whole, and whether it is."""
    if source.contents is not None:
        assert source.sequences is not None
        held_out = [is_held_out(content, share) for content in source.contents()]
        return source.sequences, np.array(held_out, bool)
    bounds = source.sequences
    if bounds is None:
        block = max(1, min(BLOCK_ROWS, source.n_rows // _BLOCKS))
        bounds = np.append(np.arange(0, source.n_rows, block), source.n_rows)
    return bounds, _by_number(len(bounds) - 1, share)


def _by_number(units: int, share: float) -> Bool[np.ndarray, " units"]:
    """As many as come nearest to the share, one at least if one can be spared."""
    wanted = round(share * units)
    if share > 0 and units > 1:
        wanted = min(max(wanted, 1), units - 1)
    places = permute(np.arange(units), units, derive_key("held out")) if units else np.arange(0)
    return places < wanted


def _rows(
    bounds: Int64[np.ndarray, " units_and_1"], chosen: Bool[np.ndarray, " units"]
) -> SplitRows:
    """The chosen units, neighbours put together."""
    edges = np.flatnonzero(np.diff(np.concatenate([[False], chosen, [False]])))
    begins, ends = bounds[edges[::2]], bounds[edges[1::2]]
    whole = ends > begins
    lengths = (ends - begins)[whole]
    return SplitRows(begins[whole], np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64))
