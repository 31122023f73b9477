"""How others shuffle activations that lie on disk, for `store_read.py` to run beside ours.

Each is a generator of shuffled batches from the same store. SAELens's own code is
used where it is installed; otherwise, as saev's always, the algorithm is built again
as it is documented, without anything that is not part of it.
"""

import multiprocessing
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
import zarr
from torch import Tensor

try:
    from sae_lens.training.mixing_buffer import mixing_buffer

    SAELENS = "SAELens's mixing buffer"
except ImportError:
    SAELENS = "SAELens's mixing buffer, re-created"

    def mixing_buffer(
        buffer_size: int, batch_size: int, activations_loader: Iterator[Tensor]
    ) -> Iterator[Tensor]:
        """Collect `buffer_size` rows, shuffle them all, serve half, keep half for the next mix."""
        held: Tensor | None = None
        for new in activations_loader:
            held = new if held is None else torch.cat([held, new])
            if len(held) >= buffer_size:
                held = held[torch.randperm(len(held))]
                served = max(1, (len(held) - buffer_size // 2) // batch_size) * batch_size
                yield from held[:served].split(batch_size)
                held = held[served:]


def saelens(files: list[Path], d_in: int, batch: int) -> Iterator[Tensor]:
    """The mixing buffer over the files in order, 8,192 rows at a time."""
    return mixing_buffer(8 * batch, batch, _in_order(files, d_in, 8192))


def saev(files: list[Path], d_in: int, batch: int) -> Iterator[Tensor]:
    """A reservoir: rows are put in blocks, and taken one by one from random places.

    A semaphore counts free places and another the full ones, a row at a time; the
    place of a row that was taken is filled with the last one.
    """
    capacity = 8 * batch
    data = torch.empty(capacity, d_in, dtype=torch.bfloat16).share_memory_()
    free, full = multiprocessing.Semaphore(capacity), multiprocessing.Semaphore(0)
    lock, draw, size = multiprocessing.Lock(), np.random.default_rng(0), 0
    for block in _in_order(files, d_in, batch):
        for _ in range(len(block)):
            free.acquire()
        with lock:
            data[size : size + len(block)].copy_(block)
            size += len(block)
        for _ in range(len(block)):
            full.release()
        if size < capacity:
            continue
        for _ in range(batch):
            full.acquire()
        out = torch.empty(batch, d_in, dtype=torch.bfloat16)
        with lock:
            for i in range(batch):
                place = int(draw.integers(size))
                out[i].copy_(data[place])
                size -= 1
                if place != size:
                    data[place].copy_(data[size])
        for _ in range(batch):
            free.release()
        yield out


def zarr_window(store: Path, hook_point: str, batch: int) -> Iterator[np.ndarray]:
    """Windows of 64 random chunks, read through zarr-python, their rows permuted."""
    array = zarr.open_array(store / "acts" / hook_point, mode="r")
    rows, draw = array.chunks[0], np.random.default_rng(0)
    while True:
        chunks = draw.permutation(array.shape[0] // rows)[:64]
        window = np.concatenate([array[c * rows : (c + 1) * rows] for c in chunks])
        order, out = draw.permutation(len(window)), np.empty((batch, array.shape[1]), window.dtype)
        for i in range(0, len(window) - batch + 1, batch):
            yield np.take(window, order[i : i + batch], axis=0, out=out, mode="clip")


def _in_order(files: list[Path], d_in: int, rows: int) -> Iterator[Tensor]:
    while True:
        for file in files:
            size = file.stat().st_size // (2 * d_in)  # the index at the end is less than a row
            bits = np.memmap(file, np.uint16, mode="c", shape=(size, d_in))
            for i in range(0, size - rows + 1, rows):
                yield torch.from_numpy(bits[i : i + rows]).view(torch.bfloat16)
