"""Batches from the store to the device, read ahead of the trainer by a thread of their own."""

import time
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field

import torch
from jaxtyping import Float
from torch import Tensor

from saeflow.harvest.layout import HookPoint
from saeflow.harvest.store import Store
from saeflow.train.order import StreamOrder

_AHEAD = 2
"""Batches that are read before they are asked for."""


@dataclass
class Loader:
    """The batches of a run, by number.

    Attributes:
        store: where from.
        hook_point: which activations.
        order: in which order.
        batch_size: rows of a batch.
        device: where to.
        waited: seconds that the trainer spent waiting for rows.
    """

    store: Store
    hook_point: HookPoint
    order: StreamOrder
    batch_size: int
    device: torch.device
    waited: float = field(default=0.0, init=False)

    def batches(self, first_step: int, n_steps: int) -> Iterator[Float[Tensor, "batch d_in"]]:
        """Batches `first_step` to `n_steps` (excluded), in float32 on the device."""
        steps = iter(range(first_step, n_steps))
        ahead: deque[Future[Tensor]] = deque()
        with ThreadPoolExecutor(1, "saeflow-reader") as reader:
            for step in steps:
                ahead.append(reader.submit(self.read, step))
                if len(ahead) > _AHEAD:
                    yield self._widen(ahead.popleft())
            while ahead:
                yield self._widen(ahead.popleft())

    def read(self, step: int) -> Float[Tensor, "batch d_in"]:
        """One batch in the stored precision, in host memory."""
        runs = self.order.runs(step * self.batch_size, self.batch_size)
        rows = self.store.rows(self.hook_point, self.store.train, runs)
        return rows.pin_memory() if self.device.type == "cuda" else rows

    def _widen(self, batch: Future[Tensor]) -> Tensor:
        started = time.perf_counter()
        rows = batch.result()
        self.waited += time.perf_counter() - started
        return rows.to(self.device, non_blocking=True).float()
