"""How well a store's rows are mixed in the batches that a trainer gets.

Rows of one document resemble each other, so a batch with many of them says less
than its size promises. The measure is a row's *mates*: how many other rows of its
batch are of its document, on average. Rows drawn at random from all the store
would have a few too; that is the ideal.

This stands with the trainer, not with the store, as the order of reading decides it.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Int64, UInt32

from saeflow.files import byte_view
from saeflow.harvest.layout import HookPoint
from saeflow.harvest.reader import RowArray, RowReader
from saeflow.harvest.store import Store
from saeflow.train.choose import choose_order
from saeflow.train.order import StreamOrder

BATCH_SIZE = 4096
"""Rows of a batch that is looked at, or all rows if there are fewer."""

_BATCHES = 4
"""They come from four seeds, and from four places of an epoch."""


@dataclass(frozen=True)
class Mixing:
    """How many rows of a batch are of the same document as a given one, on average.

    Attributes:
        batch_size: rows of a batch.
        batches: how many were looked at.
        rows_per_strip: consecutive stored rows that are read together.
        strips_per_window: strips whose rows are mixed once more; 0 without windows.
        mates: what was found; None if nothing was looked at, over a network.
        expected: what strips (and windows) of these sizes should give.
        ideal: what a shuffle of all rows of the store would give.
    """

    batch_size: int
    batches: int
    rows_per_strip: int
    strips_per_window: int
    mates: float | None
    expected: float
    ideal: float


def measure_mixing(store: Store, hook_point: HookPoint) -> Mixing | None:
    """Count mates in a few batches of the order that `saeflow train` would read.

    Reads where the documents begin, and the documents' numbers of those batches' rows:
    one read a strip, so none of them from a remote store.

    Args:
        store: a complete store.
        hook_point: one of its own; the width of its rows decides the length of strips.

    Returns:
        None where the store doesn't say which document a row is from.
    """
    layout, split = store.layout, store.train
    if layout.packing is None or "doc" not in layout.row_values:
        return None
    batch_size = min(BATCH_SIZE, split.n_rows)
    orders = [
        choose_order(layout, split, hook_point, batch_size=batch_size, seed=k, remote=store.remote)
        for k in range(_BATCHES)
    ]
    starts = np.asarray(store.array("sequences/start")[:], np.int64)
    lengths = np.diff(np.append(starts, split.n_rows))
    order = orders[0]
    block = split.rows_per_shard if layout.order == "permuted" else order.rows_per_strip
    found = [] if store.remote else _count(store, orders, batch_size)
    return Mixing(
        batch_size=batch_size,
        batches=len(found),
        rows_per_strip=order.rows_per_strip,
        strips_per_window=order.window,
        mates=float(np.mean(found)) if found else None,
        expected=expected_mates(lengths, order, block, batch_size),
        ideal=ideal_mates(lengths, batch_size),
    )


def _count(store: Store, orders: Sequence[StreamOrder], batch_size: int) -> list[float]:
    """The mates in one batch of each order, from places all over an epoch."""
    split, found = store.train, []
    array = RowArray(str(store.path / "doc"), "doc", 4, split.n_rows, split.rows_per_shard)
    reader = RowReader(array)
    for k, order in enumerate(orders):
        step = k * (split.n_rows // batch_size) // len(orders)
        rows = order.rows(step * batch_size, batch_size)
        found.append(mates(_read(reader, rows, order.rows_per_strip)))
    reader.close()
    return found


def mates(documents: UInt32[np.ndarray, " batch"]) -> float:
    """Other rows of a row's document in a batch, averaged over its rows."""
    _, counts = np.unique(documents, return_counts=True)
    return float(counts @ (counts - 1) / len(documents))


def ideal_mates(lengths: Int64[np.ndarray, " documents"], batch_size: int) -> float:
    """The mates of a row in a batch drawn at random.

    Each of the other `batch_size - 1` rows is any other row of the store, and of the
    row's document with the share that the rest of it has of them.

    Args:
        lengths: rows of each document, all the store's.
        batch_size: rows of a batch.
    """
    n_rows = int(lengths.sum())
    if n_rows < 2:
        return 0.0
    return (batch_size - 1) * _same(lengths) / (n_rows - 1)


def expected_mates(
    lengths: Int64[np.ndarray, " documents"], order: StreamOrder, block: int, batch_size: int
) -> float:
    """The mates of a row in a batch of the streaming order, by arithmetic.

    With strips of r rows, shards of S and documents of L it is (r - 1)(L - 1) / S and
    about the ideal: a row shares its batch with the other r - 1 of its strip, each of
    which is any other row of its shard. In a window of w strips it shares it with
    fewer of them. The rest of the batch comes from anywhere else.

    Args:
        lengths: rows of each document, in the order of the store.
        order: how rows are read.
        block: rows among which those of a strip lie at random: a shard's if rows are
            permuted in shards, else a strip's.
        batch_size: rows of a batch.
    """
    n_rows, strip = int(lengths.sum()), min(order.rows_per_strip, int(lengths.sum()))
    together = float(min(strip, batch_size) - 1)
    if order.window:
        together = (batch_size - 1) * (strip - 1) / max(1, min(order.window * strip, n_rows) - 1)
    near = _same_within(lengths, block)
    apart = (_same(lengths) - (strip - 1) * near) / max(1, n_rows - strip)
    return together * near + (batch_size - 1 - together) * max(0.0, apart)


def _same(lengths: Int64[np.ndarray, " documents"]) -> float:
    """Other rows of a row's document, averaged over all rows."""
    return float(lengths @ (lengths - 1) / lengths.sum())


def _same_within(lengths: Int64[np.ndarray, " documents"], block: int) -> float:
    """The share of a row's document among the other rows of its block, averaged over all rows."""
    ends = np.cumsum(lengths)
    n_rows = int(ends[-1])
    borders = np.arange(0, n_rows + block, block).clip(max=n_rows)
    # Both rise, so a stable sort only merges them; a cut that is there twice makes no piece.
    cuts = np.sort(np.concatenate([borders, ends]), kind="stable")
    pieces = np.diff(cuts)
    begins, pieces = cuts[:-1][pieces > 0], pieces[pieces > 0]
    others = np.diff(borders)[begins // block] - 1
    return float((pieces * (pieces - 1) / others.clip(min=1)).sum() / n_rows)


def _read(
    reader: RowReader, rows: Int64[np.ndarray, " batch"], rows_per_strip: int
) -> UInt32[np.ndarray, " batch"]:
    """The documents' numbers of some rows, in the order of the store."""
    rows = np.sort(rows)
    breaks = np.flatnonzero(np.diff(rows // rows_per_strip)) + 1
    found = []
    for part in np.split(rows, breaks):
        run = range(int(part[0]), int(part[-1]) + 1)
        strip = np.empty(len(run), "<u4")
        reader.read([run], byte_view(strip))
        found.append(strip[part - run.start])
    return np.concatenate(found).astype(np.uint32, copy=False)
