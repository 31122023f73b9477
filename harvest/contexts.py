"""Rows to contexts and back: which sequences hold a shard's rows, and what batches they make."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Int64, UInt32, UInt64

from saeflow.harvest.layout import Split
from saeflow.harvest.store import Store


@dataclass(frozen=True)
class Batch:
    """Sequences that go through the source model together.

    Attributes:
        tokens: token ids, padded at the end where packing is off.
        stored: which positions are stored.
        rows: the number of each stored position's row in its split, in the order of
            sequence and position; before permuting.
    """

    tokens: Int64[np.ndarray, "batch longest"]
    stored: Bool[np.ndarray, "batch longest"]
    rows: Int64[np.ndarray, " rows"]


@dataclass(frozen=True)
class Contexts:
    """The sequences that hold some consecutive rows of a split.

    Attributes:
        first: the number of the first of them.
        tokens: token ids, position 0 included.
        row_starts: the number of each sequence's first row, and one past the last row.
        rows: the rows that are wanted of them.
    """

    first: int
    tokens: UInt32[np.ndarray, "sequences context"]
    row_starts: Int64[np.ndarray, " sequences_and_1"]
    rows: range

    def batches(self, size: int) -> Iterator[Batch]:
        """Up to `size` sequences each, of similar length."""
        lengths = np.diff(self.row_starts)
        order = np.argsort(-lengths, kind="stable")
        for begin in range(0, len(order), size):
            chosen = order[begin : begin + size]
            longest = 1 + int(lengths[chosen].max())
            numbers, stored = self.rows_at(chosen, longest)
            yield Batch(self.tokens[chosen, :longest].astype(np.int64), stored, numbers[stored])

    def rows_at(
        self, sequences: Int64[np.ndarray, " n"], longest: int
    ) -> tuple[Int64[np.ndarray, "n longest"], Bool[np.ndarray, "n longest"]]:
        """The row number at each position of some sequences, and whether it is wanted."""
        positions = np.arange(longest)
        begins, ends = self.row_starts[sequences, None], self.row_starts[sequences + 1, None]
        numbers = begins + positions - 1
        wanted = (numbers >= self.rows.start) & (numbers < self.rows.stop)
        return numbers, wanted & (positions > 0) & (numbers < ends)


@dataclass(frozen=True)
class Text:
    """A split's tokens as the store holds them.

    Attributes:
        sequences: gives the sequences from `first` to `stop` (excluded).
        row_starts: gives the numbers of the first rows of sequences, likewise.
        of_row: gives the number of the sequence that holds a row.
        documents, starts: the dataset index of each document, and its first row.
    """

    sequences: Callable[[int, int], UInt32[np.ndarray, "n context"]]
    row_starts: Callable[[int, int], Int64[np.ndarray, " n"]]
    of_row: Callable[[int], int]
    documents: UInt32[np.ndarray, " documents"]
    starts: UInt64[np.ndarray, " documents"]

    def contexts(self, rows: range) -> Contexts:
        """The sequences that hold some rows."""
        first, stop = self.of_row(rows.start), self.of_row(rows.stop - 1) + 1
        return Contexts(first, self.sequences(first, stop), self.row_starts(first, stop + 1), rows)

    def row_values(self, contexts: Contexts) -> dict[str, UInt32[np.ndarray, " rows"]]:
        """Token, document, sequence and position of rows, in that order of theirs.

        Row `r` is token `r` of the split's stream.
        """
        everything = np.arange(len(contexts.tokens))
        numbers, stored = contexts.rows_at(everything, contexts.tokens.shape[1])
        sequence, position = np.nonzero(stored)
        which = np.searchsorted(self.starts, numbers[stored].astype(np.uint64), side="right") - 1
        return {
            "token": contexts.tokens[stored],
            "doc": self.documents[which],
            "seq": (sequence + contexts.first).astype(np.uint32),
            "pos": position.astype(np.uint32),
        }


def open_text(store: Store, split: Split) -> Text:
    """A split's tokens, from its `sequences/` arrays.

    Args:
        store: complete or not; its skeleton has to be there.
        split: one with at least one row.
    """
    folder = f"{split.folder}sequences"
    row_starts, of_row = _row_bounds(store, folder)
    return Text(
        lambda first, stop: store.sequences(split, first, stop),
        row_starts,
        of_row,
        np.asarray(store.array(f"{folder}/document")[:], np.uint32),
        np.asarray(store.array(f"{folder}/start")[:], np.uint64),
    )


def _row_bounds(
    store: Store, folder: str
) -> tuple[Callable[[int, int], Int64[np.ndarray, " n"]], Callable[[int], int]]:
    """From sequences to their first rows, and from a row to its sequence."""
    packing = store.layout.packing
    assert packing is not None
    if packing.packed:
        per_sequence = packing.rows_per_sequence
        return (
            lambda first, stop: np.arange(first, stop) * per_sequence,
            lambda row: row // per_sequence,
        )
    lengths = np.asarray(store.array(f"{folder}/length")[:], np.int64)
    starts = np.concatenate([[0], np.cumsum(lengths - 1)])
    return (
        lambda first, stop: starts[first:stop],
        lambda row: int(np.searchsorted(starts, row, side="right")) - 1,
    )
