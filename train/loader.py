"""Batches from the store to the device, read ahead of the trainer."""

import mmap
import time
from collections import deque
from collections.abc import Generator, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from saeflow import console
from saeflow.harvest.layout import HookPoint
from saeflow.harvest.quantise import Quantisation
from saeflow.harvest.reader import RowArray
from saeflow.harvest.store import Store
from saeflow.train.fill import Share, make_filler, wait_for
from saeflow.train.order import StreamOrder
from saeflow.train.reader_process import Kind, Reader, Task

_COPIES = 2
"""Copies to the GPU that may be under way when the next one is begun."""


@dataclass
class Loader:
    """The batches of a run, by number.

    Rows travel as they are stored, and are widened to float32 on the device.

    Attributes:
        store: where from.
        hook_points: which activations; a batch holds the same rows of all of them.
        order: in which order.
        share: the global batch, and this rank's part of it.
        device: where to.
        kind: whether a process or a thread reads; `auto` decides by what there is to read.
        rows, seconds, waited: rows delivered, seconds since the first was asked for, and
            of these the seconds that the trainer spent waiting for them.
    """

    store: Store
    hook_points: tuple[HookPoint, ...]
    order: StreamOrder
    share: Share
    device: torch.device
    kind: Kind = "auto"
    rows: int = field(default=0, init=False)
    seconds: float = field(default=0.0, init=False)
    waited: float = field(default=0.0, init=False)

    def __post_init__(self) -> None:
        split = self.store.train
        arrays = [self.store.activations(h, split) for h in self.hook_points]
        if self.store.layout.dtype == "int8":
            arrays += [self.store.scales(h, split) for h in self.hook_points]
        self.arrays: tuple[RowArray, ...] = tuple(arrays)
        found = self.store.quantisations()
        self._quantisations = [
            Quantisation(q.mean.to(self.device), q.deviation.to(self.device))
            for q in (found[h.name] for h in self.hook_points if found)
        ]

    def batches(
        self, first_step: int, n_steps: int
    ) -> Generator[Float[Tensor, "batch d_in"], None, None]:
        """Batches `first_step` to `n_steps` (excluded) of the first hook point, in float32."""
        with closing(self.all_batches(first_step, n_steps)) as batches:
            for batch in batches:
                yield batch[0]

    def all_batches(
        self, first_step: int, n_steps: int
    ) -> Generator[tuple[Float[Tensor, "batch _"], ...], None, None]:
        """The same rows of every hook point, in float32 on the device."""
        with closing(self._reader(first_step, n_steps)) as reader:
            if self.device.type == "cuda":
                yield from self._sent_ahead(reader, n_steps - first_step)
            else:
                for _ in range(first_step, n_steps):
                    yield self._widen(self._next(reader), copy=True)
                    reader.give_back()

    def stored_batches(self, first_step: int, n_steps: int) -> Iterator[tuple[Tensor, ...]]:
        """The rows as they are stored, in host memory that holds them until the next batch."""
        with closing(self._reader(first_step, n_steps)) as reader:
            for _ in range(first_step, n_steps):
                yield self._next(reader)
                reader.give_back()

    def read(self, step: int) -> Float[Tensor, "batch d_in"]:
        """One batch of the first hook point, read here and now, in float32 on the device."""
        memory = [mmap.mmap(-1, self.share.rows * array.width) for array in self.arrays]
        views = [memoryview(part) for part in memory]
        with closing(make_filler(self.arrays, self.order, self.share, step)) as filler:
            wait_for(filler.begin(step, views))
        return self._widen(self._tensors(views), copy=True)[0]

    def figures(self) -> dict[str, Any]:
        """How fast rows came, in rows and GB a second, how many bytes, and the time waited."""
        seconds = max(self.seconds, 1e-9)
        width = sum(array.width for array in self.arrays)
        return {
            "rows_per_s": round(self.rows / seconds),
            "gb_per_s": round(self.rows * width / seconds / 1e9, 3),
            "bytes": self.rows * width,
            "waited": self.waited / seconds,
        }

    def _reader(self, first_step: int, n_steps: int) -> Reader:
        self.rows, self.seconds, self.waited = 0, 0.0, 0.0
        self._started = time.perf_counter()
        return Reader(
            Task(self.arrays, self.order, self.share, range(first_step, n_steps)), self.kind
        )

    def _next(self, reader: Reader) -> tuple[Tensor, ...]:
        """The next batch as it is stored, in the reader's memory."""
        asked = time.perf_counter()
        views = reader.next()
        now = time.perf_counter()
        self.waited += now - asked
        self.seconds = now - self._started
        self.rows += self.share.rows
        return self._tensors(views)

    def _tensors(self, views: Sequence[memoryview]) -> tuple[Tensor, ...]:
        """Memory as the rows of each hook point, then their scales if there are any."""
        stored, n = self.store.layout.stored.torch, len(self.hook_points)
        dtypes = [stored] * n + [torch.float32] * (len(views) - n)
        raw = [torch.from_numpy(np.frombuffer(view, np.uint8)) for view in views]
        parts = [part.view(dtype) for part, dtype in zip(raw, dtypes, strict=True)]
        rows = [p.view(-1, h.d_in) for p, h in zip(parts, self.hook_points, strict=False)]
        return (*rows, *parts[n:])

    def _widen(self, parts: tuple[Tensor, ...], *, copy: bool = False) -> tuple[Tensor, ...]:
        """Stored rows, on the device already, as float32 in memory of their own if need be."""
        n = len(self.hook_points)
        if self._quantisations:
            triples = zip(self._quantisations, parts[:n], parts[n:], strict=True)
            return tuple(q.dequantise(rows, scales) for q, rows, scales in triples)
        return tuple(rows.to(torch.float32, copy=copy) for rows in parts)

    def _sent_ahead(self, reader: Reader, n_batches: int) -> Iterator[tuple[Tensor, ...]]:
        """Batches on the GPU: each is copied there while the one before is trained on."""
        side, ours = torch.cuda.Stream(self.device), torch.cuda.current_stream(self.device)
        lent: deque[torch.cuda.Event] = deque()  # of batches in the reader's memory

        def send() -> tuple[tuple[Tensor, ...], torch.cuda.Event]:
            while len(lent) > _COPIES or (lent and lent[0].query()):
                lent.popleft().synchronize()
                reader.give_back()
            host = self._next(reader)
            with torch.cuda.stream(side):
                batch = tuple(part.to(self.device, non_blocking=True) for part in host)
            lent.append(side.record_event())
            return batch, lent[-1]

        with _pinned(reader.memory):
            try:
                ahead = send() if n_batches else None
                for left in reversed(range(n_batches)):
                    assert ahead is not None
                    batch, copied = ahead
                    ahead = send() if left else None
                    ours.wait_event(copied)
                    for part in batch:
                        part.record_stream(ours)  # its memory is the side stream's
                    yield self._widen(batch)
            finally:
                side.synchronize()


@contextmanager
def _pinned(memory: mmap.mmap) -> Iterator[None]:
    """Memory that a GPU copies from by itself, where the system allows it."""
    runtime, view = torch.cuda.cudart(), np.frombuffer(memory, np.uint8)
    address = view.ctypes.data
    if int(runtime.cudaHostRegister(address, len(view), 0)) != 0:
        console.warn("batches can't be pinned in memory: copies to the GPU will be slower")
        yield
        return
    try:
        yield
    finally:
        runtime.cudaHostUnregister(address)
