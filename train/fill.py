"""Batches into memory: the rows of the streaming order, read from the store's shard files.

What the page cache holds is copied at once. What it does not hold is read by more
threads, as many reads at a time as a disk wants, while the next batch is begun.
Nothing here needs torch.
"""

import mmap
import os
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import groupby

import numpy as np
from jaxtyping import Int64, UInt8

from saeflow.errors import SaeflowError
from saeflow.harvest.reader import LateRead, RowArray, RowReader
from saeflow.train.mapped import MappedStrips
from saeflow.train.order import StreamOrder, WindowCut

COPYING = 2 if (os.cpu_count() or 1) >= 4 else 1
"""Batches that are copied at a time. One core may not feed a fast GPU, two do; but where
there is no core to spare, a second thread only takes from the first."""

IN_FLIGHT = 16
"""Reads that wait for the disk at a time."""


Batch = Future[list[Future[None]]]
"""A batch on its way: what is copied at once, and then the reads that wait for the disk."""


def is_there(batch: Batch) -> bool:
    """Whether nothing of a batch is under way any more."""
    return batch.done() and (batch.exception() is not None or all(p.done() for p in batch.result()))


def wait_for(batch: Batch) -> None:
    """Wait for all of a batch.

    Raises:
        SaeflowError: a file is missing, cut short or damaged.
    """
    for part in batch.result():
        part.result()


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

    def __init__(
        self, arrays: Sequence[RowArray], order: StreamOrder, share: Share, *, mapped: bool = False
    ) -> None:
        self._readers = [RowReader(array, most_open=_most_open(arrays)) for array in arrays]
        self._maps = [
            MappedStrips(reader, order.rows_per_strip)
            if mapped and order.kept is None and MappedStrips.fit(reader.array)
            else None
            for reader in self._readers
        ]
        self._order, self._share = order, share
        self._copying = ThreadPoolExecutor(COPYING, "saeflow-copy") if COPYING > 1 else None
        self._waiting = ThreadPoolExecutor(IN_FLIGHT, "saeflow-read")

    def begin(self, step: int, targets: Sequence[memoryview]) -> Batch:
        """Begin to read a batch, one memory an array; what is at hand, perhaps here and now."""
        if self._copying is not None:
            return self._copying.submit(self._fill, step, targets)
        batch: Batch = Future()
        try:
            batch.set_result(self._fill(step, targets))
        except SaeflowError as error:
            batch.set_exception(error)
        return batch

    def close(self) -> None:
        """End the threads and close the files."""
        if self._copying is not None:
            self._copying.shutdown(cancel_futures=True)
        self._waiting.shutdown(cancel_futures=True)
        for reader, maps in zip(self._readers, self._maps, strict=True):
            reader.close()
            if maps is not None:
                maps.close()

    def _fill(self, step: int, targets: Sequence[memoryview]) -> list[Future[None]]:
        strips = self._order.strips(self._share.first(step), self._share.rows)
        late: list[LateRead] = []
        for reader, maps, target in zip(self._readers, self._maps, targets, strict=True):
            begin, width = 0, reader.array.width
            for part, numbers in self._parts(strips):
                stop = begin + width * sum(len(run) for runs in part for run in runs)
                place = target[begin:stop]
                if maps is None or not numbers or not maps.copy(numbers, place):
                    late += _read_strips(reader, part, place)
                begin = stop
        each = -(-len(late) // IN_FLIGHT)
        groups = [late[i : i + each] for i in range(0, len(late), each)] if late else []
        return [self._waiting.submit(_finish, group) for group in groups]

    def _parts(
        self, strips: Sequence[list[range]]
    ) -> Iterator[tuple[list[list[range]], list[int]]]:
        """The strips as groups of whole ones with their numbers, and of others without."""
        size = self._order.rows_per_strip
        for whole, part in groupby(strips, lambda runs: len(runs[0]) == size):
            group = list(part)
            yield group, [runs[0].start // size for runs in group] if whole else []


def _read_strips(
    reader: RowReader, strips: Sequence[list[range]], target: memoryview
) -> list[LateRead]:
    """Copy strips one after another as far as the page cache holds them; what is left."""
    late, begin, width = [], 0, reader.array.width
    for runs in strips:
        stop = begin + width * (len(runs[0]) if len(runs) == 1 else sum(map(len, runs)))
        rest = reader.begin(runs, target[begin:stop])
        if rest is not None:
            late.append(rest)
        begin = stop
    return late


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

    def begin(self, step: int, targets: Sequence[memoryview]) -> Batch:
        """Begin to gather a batch, one memory an array."""
        return self._gathering.submit(self._fill, step, targets)

    def close(self) -> None:
        """End the threads and close the files."""
        self._gathering.shutdown(cancel_futures=True)
        self._reading.shutdown(cancel_futures=True)
        for reader in self._readers:
            reader.close()

    def _fill(self, step: int, targets: Sequence[memoryview]) -> list[Future[None]]:
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
        return []

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
    arrays: Sequence[RowArray],
    order: StreamOrder,
    share: Share,
    last_step: int,
    *,
    mapped: bool = False,
) -> Filler:
    """What fills batches in an order.

    Args:
        arrays: of whose rows.
        order: in which order.
        share: of each global batch.
        last_step: the last batch that will be asked for.
        mapped: whether hot files may be read through memory maps.
    """
    if order.window:
        return WindowFiller(arrays, order, share, last_step)
    return StripFiller(arrays, order, share, mapped=mapped)


def _finish(reads: Sequence[LateRead]) -> None:
    for read in reads:
        read.finish()


def _most_open(arrays: Sequence[RowArray]) -> int:
    """Files to keep open of each array: half of what the process may, together."""
    return max(8, os.sysconf("SC_OPEN_MAX") // 2 // len(arrays))
