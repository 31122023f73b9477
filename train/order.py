"""The streaming order: which stored rows make each batch, a pure function of seed and position.

Rows are read in strips, runs of consecutive stored rows. An epoch is a seeded
permutation of the store's strips (a short last strip comes last), epochs follow
each other without a gap, and batch `t` of size `B` is rows `t*B` to `(t+1)*B` of
that endless stream. So each row comes once an epoch, every batch is full, and to
resume at a step is to know its number.
"""

import math
from dataclasses import dataclass

import numpy as np

from saeflow.harvest.layout import HookPoint, Layout, Split
from saeflow.harvest.permutation import derive_key, permute

_STRIP_BYTES = 128 * 1024
"""Reads of this size run at the speed of a sequential read."""

_STRIPS_PER_BATCH = 32
"""At least so many places of the store make a batch."""


@dataclass(frozen=True)
class StreamOrder:
    """The order of a split's rows under a seed.

    Attributes:
        n_rows: rows of the split.
        rows_per_strip: a divisor of the store's shard, so that no strip crosses one.
        seed: of the permutations, one an epoch.
    """

    n_rows: int
    rows_per_strip: int
    seed: int

    def runs(self, first: int, count: int) -> list[range]:
        """The stored rows at places `first` to `first + count` of the endless stream.

        Returns:
            Runs of consecutive rows, none of them across a strip.
        """
        found: list[range] = []
        while count > 0:
            epoch, place = divmod(first, self.n_rows)
            taken = min(count, self.n_rows - place)
            found += self._within_epoch(epoch, place, taken)
            first, count = first + taken, count - taken
        return found

    def _within_epoch(self, epoch: int, place: int, count: int) -> list[range]:
        size = self.rows_per_strip
        whole = self.n_rows // size
        slots = np.arange(place // size, -(-(place + count) // size))
        strips = slots.copy()
        permuted = slots < whole
        key = derive_key(self.seed, "epoch", epoch)
        strips[permuted] = permute(slots[permuted], whole, key) if permuted.any() else slots[:0]
        begins = np.maximum(place - slots * size, 0) + strips * size
        ends = np.minimum(place + count - slots * size, size) + strips * size
        return [range(b, e) for b, e in zip(begins.tolist(), ends.tolist(), strict=True)]


def choose_order(
    layout: Layout, split: Split, hook_point: HookPoint, *, batch_size: int, seed: int
) -> StreamOrder:
    """Strips as long as fast reading wants and as short as good mixing needs.

    A store in sequence order is read row by row: its neighbours are of one text.
    """
    if layout.order == "sequence":
        return StreamOrder(split.n_rows, 1, seed)
    width = hook_point.d_in * layout.stored.itemsize
    longest = max(1, min(_STRIP_BYTES // width, batch_size // _STRIPS_PER_BATCH))
    strip = math.gcd(split.rows_per_shard, 1 << (longest.bit_length() - 1))
    return StreamOrder(split.n_rows, strip, seed)
