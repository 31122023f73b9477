"""The streaming order: which stored rows make each batch, a pure function of seed and position.

Rows come in strips, runs of consecutive stored rows. An epoch is a seeded
permutation of the split's strips (a short last strip comes last), epochs follow
each other without a gap, and global batch `t` of size `B` is rows `t*B` to
`(t+1)*B` of that endless stream. So each row comes once an epoch, every batch is
full, to resume at a step is to know its number, and neither the number of ranks
nor who reads ahead of whom has a say in it.

Where neighbours in a strip are of one text, or where only whole chunks can be
read, strips are mixed further: `window` strips in a row of an epoch make a
window, whose rows come in an order permuted once more. That is the same kind of
function, and takes the memory of one window (two, to read the next one ahead).

A filter takes rows out of the stream, not out of the strips: an epoch is the
same permutation, less the rows that are not kept. Where a place of the stream is
then found by the kept rows of each strip, added up in the epoch's order.

Nothing here needs torch: a reader process computes the order itself.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from itertools import pairwise
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Int64, UInt8, UInt32

from saeflow.harvest.permutation import derive_key, permute

_BLOCK = 4096
"""Strips that are permuted at a time: one alone costs as much as some hundred."""

_TABLE_STEP = 64
"""Every so many strips, the table of a filtered epoch has an entry."""


@dataclass(frozen=True, eq=False)
class KeptRows:
    """The rows that a filter keeps: a bit a row, and their number in each strip.

    For a billion rows that is 125 MB of bits and, in strips of 64, 62 MB of counts.

    Attributes:
        bits: row `i` is bit `i % 8` of byte `i // 8`.
        counts: kept rows of each strip.
    """

    bits: UInt8[np.ndarray, " bytes"]
    counts: UInt32[np.ndarray, " strips"]

    @staticmethod
    def of(bits: UInt8[np.ndarray, " bytes"], n_rows: int, rows_per_strip: int) -> "KeptRows":
        """Count the kept rows of each strip."""
        n_strips = -(-n_rows // rows_per_strip)
        counts = np.empty(n_strips, np.uint32)
        step = max(1, 2**22 // rows_per_strip)
        for first in range(0, n_strips, step):
            stop = min(first + step, n_strips)
            keep = _unpack(bits, first * rows_per_strip, min(stop * rows_per_strip, n_rows))
            starts = np.arange(0, len(keep), rows_per_strip)
            counts[first:stop] = np.add.reduceat(keep, starts, dtype=np.uint32)
        return KeptRows(bits, counts)

    @cached_property
    def total(self) -> int:
        """How many rows are kept."""
        return int(self.counts.sum(dtype=np.int64))


class WindowCut(NamedTuple):
    """Part of a window: its rows from `begin` to `end` in their permuted order."""

    epoch: int
    window: int
    begin: int
    end: int


@dataclass(frozen=True, eq=False)
class StreamOrder:
    """The order of a split's rows under a seed.

    Attributes:
        n_rows: rows of the split.
        rows_per_strip: a divisor of the store's shard, so that no strip crosses one.
        seed: of the permutations, those of strips and those within windows.
        window: strips of a window; 0 if rows are not mixed beyond their strips.
        kept: the rows to read; None for all.
    """

    n_rows: int
    rows_per_strip: int
    seed: int
    window: int = 0
    kept: KeptRows | None = field(default=None, repr=False)
    _tables: dict[int, Int64[np.ndarray, " entries"]] = field(
        default_factory=dict, init=False, repr=False
    )

    @property
    def n_strips(self) -> int:
        """Strips of an epoch, the last one perhaps short."""
        return -(-self.n_rows // self.rows_per_strip)

    @property
    def rows_per_epoch(self) -> int:
        """Rows of an epoch: those that are kept."""
        return self.n_rows if self.kept is None else self.kept.total

    def rows(self, first: int, count: int) -> Int64[np.ndarray, " count"]:
        """The stored rows at places `first` to `first + count` of the endless stream."""
        if self.window:
            parts = [self._window_rows(cut) for cut in self.window_cuts(first, count)]
        else:
            strips = self.strips(first, count)
            parts = [np.arange(run.start, run.stop) for runs in strips for run in runs]
        return np.concatenate(parts) if parts else np.zeros(0, np.int64)

    def runs(self, first: int, count: int) -> list[range]:
        """The same rows as runs of consecutive ones, none of them across a strip."""
        rows = self.rows(first, count)
        breaks = np.flatnonzero((np.diff(rows) != 1) | (rows[1:] % self.rows_per_strip == 0)) + 1
        ends = [0, *breaks.tolist(), len(rows)] if count else []
        return [range(int(rows[b]), int(rows[e - 1]) + 1) for b, e in pairwise(ends)]

    def strips(self, first: int, count: int) -> list[list[range]]:
        """The same rows strip by strip, each as runs of consecutive ones; without a window only."""
        found: list[list[range]] = []
        for epoch, place, taken in self._by_epoch(first, count):
            slot, stop, before = self._slots(epoch, place, place + taken)
            strips = self._strips(epoch, slot, stop)
            sizes = self._sizes(strips)
            starts = before + np.cumsum(sizes) - sizes
            begins = np.clip(place - starts, 0, sizes)
            ends = np.clip(place + taken - starts, 0, sizes)
            firsts = strips * self.rows_per_strip
            if self.kept is None:
                bounds = (firsts + begins).tolist(), (firsts + ends).tolist()
                found += [[range(b, e)] for b, e in zip(*bounds, strict=True)]
            else:
                found += self._kept_runs(strips, begins, ends)
        return found

    def window_cuts(self, first: int, count: int) -> Iterator[WindowCut]:
        """The windows at those places, in the order of the stream."""
        for epoch, place, taken in self._by_epoch(first, count):
            begin, end = place, place + taken
            while begin < end:
                window, start = self._window_at(epoch, begin)
                stop = min(end, start + self.window_size(epoch, window))
                yield WindowCut(epoch, window, begin - start, stop - start)
                begin = stop

    def window_strips(self, epoch: int, window: int) -> Int64[np.ndarray, " strips"]:
        """The strips of a window, in the order of the epoch."""
        first = window * self.window
        return self._strips(epoch, first, min(first + self.window, self.n_strips))

    def window_order(self, epoch: int, window: int) -> Int64[np.ndarray, " rows"]:
        """The permuted order of a window's rows.

        Returns:
            Places in the window's strips laid one behind the other; those of rows that
            are not kept don't occur.
        """
        strips = self.window_strips(epoch, window)
        if self.kept is None:
            places = np.arange(int(self._sizes(strips).sum()))
        else:
            rows = strips[:, None] * self.rows_per_strip + np.arange(self.rows_per_strip)
            places = np.flatnonzero(self._is_kept(rows))
        key = derive_key(self.seed, "window", epoch, window)
        order = permute(np.arange(len(places)), len(places), key)
        permuted: Int64[np.ndarray, " rows"] = places[order]
        return permuted

    def window_size(self, epoch: int, window: int) -> int:
        """Rows of a window."""
        if self.kept is None:
            size = self.window * self.rows_per_strip
            return min(size, self.n_rows - window * size)
        begin, end = self._table(epoch)[window : window + 2].tolist()
        return int(end - begin)

    def _kept_runs(
        self,
        strips: Int64[np.ndarray, " strips"],
        begins: Int64[np.ndarray, " strips"],
        ends: Int64[np.ndarray, " strips"],
    ) -> list[list[range]]:
        """Kept rows of strips, from the `begins`-th to the `ends`-th of each, as runs."""
        rows = strips[:, None] * self.rows_per_strip + np.arange(self.rows_per_strip)
        keep = self._is_kept(rows)
        rank = np.cumsum(keep, axis=1)
        chosen = keep & (rank > begins[:, None]) & (rank <= ends[:, None])
        row, strip = rows[chosen], np.nonzero(chosen)[0]
        first = np.diff(row, prepend=-2) != 1
        first[1:] |= np.diff(strip) != 0
        starts, stops = np.flatnonzero(first), np.append(np.flatnonzero(first)[1:], len(row)) - 1
        bounds = strip[starts].tolist(), row[starts].tolist(), (row[stops] + 1).tolist()
        found: list[list[range]] = []
        last = -1
        for number, begin, end in zip(*bounds, strict=True):
            if number != last:
                found.append([])
                last = number
            found[-1].append(range(begin, end))
        return found

    def _window_rows(self, cut: WindowCut) -> Int64[np.ndarray, " rows"]:
        places = self.window_order(cut.epoch, cut.window)[cut.begin : cut.end]
        strips = self.window_strips(cut.epoch, cut.window)
        strip, row = np.divmod(places, self.rows_per_strip)
        return np.asarray(strips[strip] * self.rows_per_strip + row)

    def _by_epoch(self, first: int, count: int) -> Iterator[tuple[int, int, int]]:
        """The places cut at the borders of epochs: epoch, first place in it, how many."""
        length = self.rows_per_epoch
        while count > 0:
            epoch, place = divmod(first, length)
            taken = min(count, length - place)
            yield epoch, place, taken
            first, count = first + taken, count - taken

    def _slots(self, epoch: int, place: int, stop: int) -> tuple[int, int, int]:
        """Which strips of an epoch's order hold some places, and the place of their first row."""
        if self.kept is None:
            first = place // self.rows_per_strip
            return first, -(-stop // self.rows_per_strip), first * self.rows_per_strip
        table = self._table(epoch)
        entry = int(np.searchsorted(table, place, "right")) - 1
        last = int(np.searchsorted(table, stop, "left"))
        return entry * _TABLE_STEP, min(last * _TABLE_STEP, self.n_strips), int(table[entry])

    def _window_at(self, epoch: int, place: int) -> tuple[int, int]:
        """The window at a place of an epoch, and the place of its first row."""
        if self.kept is None:
            size = self.window * self.rows_per_strip
            return place // size, place // size * size
        table = self._table(epoch)
        window = int(np.searchsorted(table, place, "right")) - 1
        return window, int(table[window])

    def _table(self, epoch: int) -> Int64[np.ndarray, " entries"]:
        """Kept rows before every so many strips of an epoch's order, and in all of it."""
        if epoch not in self._tables:
            assert self.kept is not None
            step = self.window or _TABLE_STEP
            block = -(-_BLOCK // step) * step
            sums = [np.zeros(1, np.int64)]
            for first in range(0, self.n_strips, block):
                strips = self._strips(epoch, first, min(first + block, self.n_strips))
                starts = np.arange(0, len(strips), step)
                sums.append(np.add.reduceat(self.kept.counts[strips], starts, dtype=np.int64))
            while len(self._tables) > 1:  # at the border of two epochs both are needed
                self._tables.pop(next(iter(self._tables)))
            self._tables[epoch] = np.concatenate(sums).cumsum()
        return self._tables[epoch]

    def _strips(self, epoch: int, first: int, stop: int) -> Int64[np.ndarray, " slots"]:
        """The strips at places `first` to `stop` of an epoch's order."""
        whole = self.n_rows // self.rows_per_strip
        key = derive_key(self.seed, "epoch", epoch)
        blocks = range(first // _BLOCK, -(-min(stop, whole) // _BLOCK))
        parts = [_permuted(whole, key, block) for block in blocks]
        short = np.arange(whole, stop) if stop > whole else np.zeros(0, np.int64)
        skipped = first - blocks.start * _BLOCK if parts else 0
        strips: Int64[np.ndarray, " slots"] = np.concatenate([*parts, short])
        return strips[skipped : skipped + stop - first]

    def _sizes(self, strips: Int64[np.ndarray, " strips"]) -> Int64[np.ndarray, " strips"]:
        """Kept rows of strips."""
        if self.kept is not None:
            sizes: Int64[np.ndarray, " strips"] = self.kept.counts[strips].astype(np.int64)
            return sizes
        left = self.n_rows - strips * self.rows_per_strip
        return np.asarray(np.minimum(self.rows_per_strip, left))

    def _is_kept(self, rows: Int64[np.ndarray, "strips size"]) -> Bool[np.ndarray, "strips size"]:
        """Whether the filter keeps rows; those behind the last row are not kept."""
        assert self.kept is not None
        inside = np.minimum(rows, self.n_rows - 1)
        bits = self.kept.bits[inside >> 3] >> (inside & 7).astype(np.uint8)
        return np.asarray((bits & 1).view(np.bool_) & (rows < self.n_rows))


def _unpack(bits: UInt8[np.ndarray, " bytes"], first: int, stop: int) -> Bool[np.ndarray, " rows"]:
    unpacked = np.unpackbits(bits[first // 8 : -(-stop // 8)], bitorder="little")
    return unpacked[first % 8 : first % 8 + stop - first].view(np.bool_)


@lru_cache(maxsize=8)
def _permuted(n: int, key: int, block: int) -> Int64[np.ndarray, " strips"]:
    """A block of a permutation; kept, as the next batch asks for the same one."""
    return permute(np.arange(block * _BLOCK, min((block + 1) * _BLOCK, n)), n, key)
