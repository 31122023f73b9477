"""How fast shuffled batches come out of a store, beside copying it in order, and beside others.

    python benchmarks/store_read.py [--gb 1.5] [--rounds 7] [--d-in 768 4096] [--folder DIR]

Writes a store of random bfloat16 rows and reads batches of 4096 from it:

- hot: from the page cache, beside a copy of the same files in order out of memory maps that
  stay open, into as many places in turn as our ring has;
- busy: likewise, while the consumer runs pure Python for as long as such a copy takes;
- cold: after the page cache was told to forget the files, beside a cold read in order.

All take turns in each round, and a ratio is the median of the rounds' ratios. Wall time
is what counts; CPU seconds, the reader's process and this one's together, are what
remains comparable on a machine that others use too. Exits 1 if a bound is missed.
"""

import argparse
import gc
import mmap
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from peer_loaders import SAELENS, saelens, saev, zarr_window
from synthetic_store import write_store

from saeflow.harvest.store import Store
from saeflow.train.choose import choose_order
from saeflow.train.fill import Share
from saeflow.train.reader_process import Kind, Reader, Task

BATCH = 4096
KINDS: dict[str, Kind] = {"hot": "process", "busy": "process", "thread": "thread"}
NAMES = {
    "in order": "memory map copied in order",
    "one place": "the same into one place, in the processor's cache",
    "anew": "the same from maps opened anew",
    "hot": "ours, shuffled, consumer idle",
    "busy": "ours, shuffled, consumer busy in Python",
    "thread": "ours, a thread instead of a process, consumer busy",
}
BOUNDS = {"hot": 0.7, "busy": 0.6, "cold": 0.8}
_MIB = 2**20


@dataclass
class Case:
    """One contender: rows a second by the clock and by CPU seconds, round by round."""

    name: str
    by_wall: list[float] = field(default_factory=list)
    by_cpu: list[float] = field(default_factory=list)

    def measure(self, run: Callable[[], int], cpu: Callable[[], float] = time.process_time) -> None:
        """Time a run, which says how many rows it was."""
        wall, used = time.perf_counter(), cpu()
        rows = run()
        self.by_wall.append(rows / (time.perf_counter() - wall))
        self.by_cpu.append(rows / max(cpu() - used, 1e-9))


@dataclass
class Peer:
    """Another loader, and how many batches it is given time for."""

    name: str
    count: int
    batches: Iterator[Any]

    def take(self) -> int:
        """Rows of its next batches."""
        return sum(len(next(self.batches)) for _ in range(self.count))


class Ours:
    """Our reader, stopped between rounds: its ring is full then, and those batches don't count."""

    def __init__(self, store: Store, n_steps: int, kind: Kind = "process") -> None:
        hook_point = store.layout.hook_points[0]
        order = choose_order(store.layout, store.train, hook_point, batch_size=BATCH, seed=0)
        array = store.activations(hook_point, store.train)
        self.reader = Reader(Task((array,), order, Share(BATCH), range(n_steps)), kind)

    def take(
        self, count: int, work: Callable[[], object] = lambda: None, *, uncounted: int = 0
    ) -> int:
        """Rows of `count` batches, with some work after each."""
        for _ in range(count):
            self.reader.next()
            self.reader.give_back()
            work()
        return (count - uncounted) * BATCH

    def cpu(self) -> float:
        """CPU seconds of whoever reads; a consumer's own work does not count."""
        if not self.reader.in_process:
            return time.process_time()
        tasks = Path(f"/proc/{self.reader.pid}/task").glob("*/schedstat")
        return sum(int(task.read_text().split()[0]) for task in tasks) / 1e9


def copy_in_order(maps: Sequence[np.ndarray], out: np.ndarray, n_batches: int) -> int:
    """Batches in order out of memory maps, into several places in turn."""
    done, size = 0, out.shape[1]
    while done < n_batches:
        for rows in maps:
            for i in range(0, len(rows) - size + 1, size):
                np.copyto(out[done % len(out)], rows[i : i + size])
                done += 1
                if done == n_batches:
                    return done * BATCH
    return done * BATCH


def read_cold(files: list[Path], width: int, threads: int) -> int:
    """Rows of files read in order, a MiB at a time; by several threads past the page cache."""
    direct = os.O_DIRECT if threads > 1 else 0
    pieces = [(f, i) for f in files for i in range(0, f.stat().st_size - _MIB + 1, _MIB)]
    opened = {file: os.open(file, os.O_RDONLY | direct) for file in files}
    buffers = [mmap.mmap(-1, _MIB) for _ in range(threads)]

    def read(thread: int) -> int:
        return sum(
            os.preadv(opened[file], [buffers[thread]], at) for file, at in pieces[thread::threads]
        )

    with ThreadPoolExecutor(threads) as pool:
        total = sum(pool.map(read, range(threads)))
    for descriptor in opened.values():
        os.close(descriptor)
    return total // width


def forget(files: list[Path]) -> None:
    """Take files out of the page cache."""
    gc.collect()  # mapped pages would stay
    for file in files:
        descriptor = os.open(file, os.O_RDONLY)
        os.fsync(descriptor)
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(descriptor)


def spin(seconds: float) -> None:
    """Pure Python for some time."""
    end = time.perf_counter() + seconds
    while time.perf_counter() < end:
        sum(range(50))


def hot(store: Store, files: list[Path], rounds: int) -> dict[str, Case]:
    hook_point = store.layout.hook_points[0]
    d_in, n = hook_point.d_in, max(24, store.train.n_rows // BATCH)
    readers = {name: Ours(store, 10**6, kind) for name, kind in KINDS.items()}
    slots = readers["hot"].reader.ring.n_slots
    out = np.frombuffer(mmap.mmap(-1, slots * BATCH * d_in * 2), np.uint8).reshape(slots, -1)
    maps = [np.memmap(file, np.uint8, mode="r") for file in files]
    peers = [
        Peer("zarr-python, window of 64 chunks", 24, zarr_window(store.path, "h", BATCH)),
        Peer(SAELENS, 8, saelens(files, d_in, BATCH)),
        Peer("saev's reservoir, re-created", 3, saev(files, d_in, BATCH)),
    ]
    cases = {name: Case(text) for name, text in NAMES.items()}
    cases |= {peer.name: Case(peer.name) for peer in peers}
    copy_in_order(maps, out, n)
    for peer in peers:
        next(peer.batches)
    for _ in range(rounds):
        cases["in order"].measure(partial(copy_in_order, maps, out, n))
        cases["one place"].measure(partial(copy_in_order, maps, out[:1], n))
        anew = [np.memmap(file, np.uint8, mode="r") for file in files]
        cases["anew"].measure(partial(copy_in_order, anew, out, n))
        pace = BATCH / cases["in order"].by_wall[-1]
        for name, ours in readers.items():
            ours.take(slots)
            work = partial(spin, 0.0 if name == "hot" else pace)
            cases[name].measure(partial(ours.take, n, work), ours.cpu)
        for peer in peers:
            cases[peer.name].measure(peer.take)
    for ours in readers.values():
        ours.reader.close()
    return cases


def cold(store: Store, files: list[Path], rounds: int) -> dict[str, Case]:
    width, n = store.layout.hook_points[0].d_in * 2, store.train.n_rows // BATCH
    cases = {
        "in order": Case("cold, in order"),
        "direct": Case("cold, in order, 8 threads, O_DIRECT"),
        "cold": Case("cold, ours, shuffled"),
    }
    for _ in range(rounds):
        forget(files)
        cases["in order"].measure(partial(read_cold, files, width, 1))
        forget(files)
        cases["direct"].measure(partial(read_cold, files, width, 8))
        ours = Ours(store, 10**6)
        time.sleep(1.0)  # until its ring is full: these batches do not count
        forget(files)
        cases["cold"].measure(partial(ours.take, n, uncounted=ours.reader.ring.n_slots), ours.cpu)
        ours.reader.close()
    return cases


def report(cases: dict[str, Case], d_in: int) -> bool:
    """Print a table, ratios to the first case; whether all bounds are held."""
    print(f"\n{'d ' + str(d_in):55}{'M rows/s':>10}{'GB/s':>8}{'ratio':>8}{'CPU ratio':>11}")
    first, held = cases["in order"], True
    for name, case in cases.items():
        rate = statistics.median(case.by_wall)
        wall, cpu = (
            statistics.median(a / b for a, b in zip(mine, theirs, strict=True))
            for mine, theirs in ((case.by_wall, first.by_wall), (case.by_cpu, first.by_cpu))
        )
        line = f"{case.name:55}{rate / 1e6:10.3f}{rate * d_in * 2 / 1e9:8.2f}{wall:8.3f}{cpu:11.3f}"
        if name in BOUNDS:
            line += f"  bound {BOUNDS[name]}: {'held' if wall >= BOUNDS[name] else 'MISSED'}"
            held &= wall >= BOUNDS[name]
        print(line, flush=True)
    return held


def main() -> int:
    arguments = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    arguments.add_argument("--gb", type=float, default=1.5)
    arguments.add_argument("--rounds", type=int, default=7)
    arguments.add_argument("--d-in", type=int, nargs="+", default=[768, 4096])
    arguments.add_argument("--folder", type=Path)
    args = arguments.parse_args()
    torch.set_num_threads(1)
    held = True
    for d_in in args.d_in:
        with tempfile.TemporaryDirectory(dir=args.folder) as folder:
            store = write_store(Path(folder), d_in, int(args.gb * 1e9))
            files = [Path(folder) / f"acts/h/c/{k}/0" for k in range(store.train.n_shards)]
            held &= report(hot(store, files, args.rounds), d_in)
            held &= report(cold(store, files, args.rounds), d_in)
    return int(not held)


if __name__ == "__main__":
    sys.exit(main())
