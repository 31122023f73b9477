"""Batches into memory: the rows of the streaming order, read from the store's shard files.

What the page cache holds is copied at once, two batches at a time. What it does not
hold is read by more threads, as many reads at a time as a disk wants. Nothing here
needs torch.
"""

import mmap
import os
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
from jaxtyping import Int64, UInt8

from saeflow.harvest.reader import LateRead, RowArray, RowReader
from saeflow.train.order import StreamOrder, WindowCut

COPYING = 2
"""Batches that are copied at a time: one core hardly feeds a fast GPU, two do."""

IN_FLIGHT = 16
"""Reads that wait for the disk at a time."""


@dataclass(frozen=True)
class Share:
    """Which rows of each global batch are read here.

    Attributes:
        batch_size: of the global batch.
        rank: who reads, of `world` ranks.
        world: how many ranks there are; they take equal parts where the batch divides.
    """

    batch_size: int
    rank: int = 0
    world: int = 1

    @property
    def rows(self) -> int:
        """Rows of a batch that are read here."""
        begin, stop = (r * self.batch_size // self.world for r in (self.rank, self.rank + 1))
        return stop - begin

    def first(self, step: int) -> int:
        """The place in the stream of the first of them."""
        return step * self.batch_size + self.rank * self.batch_size // self.world


class StripFiller:
    """Fills batches strip by strip, straight from the files into their places."""

    def __init__(self, arrays: Sequence[RowArray], order: StreamOrder, share: Share) -> None:
        self._readers = [RowReader(array, most_open=_most_open(arrays)) for array in arrays]
        self._order, self._share = order, share
        self._copying = ThreadPoolExecutor(COPYING, "saeflow-copy")
        self._waiting = ThreadPoolExecutor(IN_FLIGHT, "saeflow-read")

    def begin(self, step: int, targets: Sequence[memoryview]) -> Future[None]:
        """Begin to read a batch, one memory an array."""
        return self._copying.submit(self._fill, step, targets)

    def close(self) -> None:
        """End the threads and close the files."""
        self._copying.shutdown(cancel_futures=True)
        self._waiting.shutdown(cancel_futures=True)
        for reader in self._readers:
            reader.close()

    def _fill(self, step: int, targets: Sequence[memoryview]) -> None:
        strips = self._order.strips(self._share.first(step), self._share.rows)
        late: list[LateRead] = []
        for reader, target in zip(self._readers, targets, strict=True):
            begin, width = 0, reader.array.width
            for runs in strips:
                stop = begin + width * (len(runs[0]) if len(runs) == 1 else sum(map(len, runs)))
                rest = reader.begin(runs, target[begin:stop])
                if rest is not None:
                    late.append(rest)
                begin = stop
        each = -(-len(late) // IN_FLIGHT)
        groups = [late[i : i + each] for i in range(0, len(late), each)] if late else []
        for done in [self._waiting.submit(_finish, group) for group in groups]:
            done.result()


class WindowFiller:
    """Fills batches from a window of chunks in memory, while the next one is read."""

    def __init__(
        self, arrays: Sequence[RowArray], order: StreamOrder, share: Share, last_step: int
    ) -> None:
        self._readers = [RowReader(array, most_open=_most_open(arrays)) for array in arrays]
        self._order, self._share = order, share
        self._end = share.first(last_step) + share.rows
        self._gathering = ThreadPoolExecutor(1, "saeflow-gather")
        self._reading = ThreadPoolExecutor(IN_FLIGHT, "saeflow-read")
        self._free = [self._new_memory(), self._new_memory()]
        self._windows: dict[tuple[int, int], _Window] = {}

    def begin(self, step: int, targets: Sequence[memoryview]) -> Future[None]:
        """Begin to gather a batch, one memory an array."""
        return self._gathering.submit(self._fill, step, targets)

    def close(self) -> None:
        """End the threads and close the files."""
        self._gathering.shutdown(cancel_futures=True)
        self._reading.shutdown(cancel_futures=True)
        for reader in self._readers:
            reader.close()

    def _fill(self, step: int, targets: Sequence[memoryview]) -> None:
        first, at = self._share.first(step), 0
        for cut in self._order.window_cuts(first, self._share.rows):
            window = self._window(cut, first + at)
            places = window.places()[cut.begin : cut.end]
            for reader, rows, target in zip(self._readers, window.memory, targets, strict=True):
                width = reader.array.width
                part = target[at * width : (at + len(places)) * width]
                out = np.frombuffer(part, np.uint8).reshape(-1, width)
                np.take(rows, places, axis=0, out=out, mode="clip")
            at += len(places)

    def _window(self, cut: WindowCut, place: int) -> "_Window":
        """A window, and the one after it on its way.

        Args:
            cut: part of the window.
            place: of the cut in the stream.
        """
        name = cut.epoch, cut.window
        if name not in self._windows:
            self._discard(keep=())
            self._windows[name] = self._load(*name)
        following = place - cut.begin + self._windows[name].n_rows
        if following < self._end:
            (after,) = self._order.window_cuts(following, 1)
            if (after.epoch, after.window) not in self._windows:
                self._discard(keep=(name,))
                self._windows[after.epoch, after.window] = self._load(after.epoch, after.window)
        return self._windows[name]

    def _discard(self, keep: Sequence[tuple[int, int]]) -> None:
        for name in set(self._windows) - set(keep):
            window = self._windows.pop(name)
            window.wait()
            self._free.append(window.memory)

    def _load(self, epoch: int, number: int) -> "_Window":
        memory, order = self._free.pop(), self._order
        places = self._reading.submit(order.window_order, epoch, number)
        strips = order.window_strips(epoch, number).tolist()
        parts = [self._reading.submit(self._read, s, i, memory) for i, s in enumerate(strips)]
        return _Window(order.window_size(epoch, number), memory, places, parts)

    def _read(self, strip: int, slot: int, memory: list[UInt8[np.ndarray, "rows width"]]) -> None:
        size = self._order.rows_per_strip
        run = range(strip * size, min((strip + 1) * size, self._order.n_rows))
        for reader, rows in zip(self._readers, memory, strict=True):
            reader.read([run], rows[slot * size : slot * size + len(run)].reshape(-1).data)

    def _new_memory(self) -> list[UInt8[np.ndarray, "rows width"]]:
        n_rows = min(self._order.window, self._order.n_strips) * self._order.rows_per_strip
        widths = [reader.array.width for reader in self._readers]
        return [np.frombuffer(mmap.mmap(-1, n_rows * w), np.uint8).reshape(-1, w) for w in widths]


@dataclass(frozen=True)
class _Window:
    """A window on its way into memory, or there."""

    n_rows: int
    memory: list[UInt8[np.ndarray, "rows width"]]
    order: Future[Int64[np.ndarray, " rows"]]
    parts: list[Future[None]]

    def places(self) -> Int64[np.ndarray, " rows"]:
        """Where in memory its rows are, in their permuted order, once all are there."""
        while self.parts:
            self.parts[-1].result()
            self.parts.pop()
        return self.order.result()

    def wait(self) -> None:
        """Let nothing more be written into its memory."""
        for part in self.parts:
            if not part.cancel():
                part.exception()


Filler = StripFiller | WindowFiller


def make_filler(
    arrays: Sequence[RowArray], order: StreamOrder, share: Share, last_step: int
) -> Filler:
    """What fills batches in an order; `last_step` is the last one that will be asked for."""
    if order.window:
        return WindowFiller(arrays, order, share, last_step)
    return StripFiller(arrays, order, share)


def _finish(reads: Sequence[LateRead]) -> None:
    for read in reads:
        read.finish()


def _most_open(arrays: Sequence[RowArray]) -> int:
    """Files to keep open of each array: half of what the process may, together."""
    return max(8, os.sysconf("SC_OPEN_MAX") // 2 // len(arrays))
