"""The reader: a process or a thread that fills a ring of batches, and the trainer's end of it.

A process of its own is not slowed down by what the trainer does in Python: only
one thread of a process runs Python at a time. It is a fresh interpreter that
imports numpy, not torch, so that it is there in a fraction of a second, and it
imports nothing of the program that started it. Where little is read, a thread
is done before a process would have begun.
"""

import json
import mmap
import os
import subprocess
import sys
import threading
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

import numpy as np

from saeflow.errors import BadInputError, SaeflowError
from saeflow.harvest.reader import RowArray
from saeflow.train.fill import Share, make_filler
from saeflow.train.order import KeptRows, StreamOrder
from saeflow.train.ring import Ring, nameless_file, serve

_SLOTS = 4
"""Two batches being copied, one ready, one in the trainer's hands; more would leave the
processor's caches."""

_PATIENCE = 10.0
"""Seconds that a reader may take to stop; the reads under way are finished first."""

_THREAD_READS = 2**30
"""A thread of a busy trainer reads this many bytes while a process would start."""

Kind = Literal["auto", "process", "thread"]

_ORDER = ("n_rows", "rows_per_strip", "seed", "window")

_CODE = "import json, sys; about = json.loads(sys.argv[1]); sys.path[:] = about['path']; "
_CODE += "from saeflow.train.reader_process import main; main(about)"


@dataclass(frozen=True)
class Task:
    """What is to be read.

    Attributes:
        arrays: of whose rows; each batch holds the same rows of all of them.
        order: in which order.
        share: which part of each global batch.
        steps: which batches.
    """

    arrays: tuple[RowArray, ...]
    order: StreamOrder
    share: Share
    steps: range

    @property
    def n_bytes(self) -> int:
        """Bytes of all batches."""
        return len(self.steps) * self.share.rows * sum(array.width for array in self.arrays)


class Reader:
    """Batches of a task, read ahead: `next` and `give_back` in turn, then `close`.

    Attributes:
        ring: how batches lie in the memory.
        memory: which a GPU may copy from.
        in_process: whether a process of its own reads.
    """

    def __init__(self, task: Task, kind: Kind = "auto") -> None:
        self.in_process = kind == "process" or (kind == "auto" and task.n_bytes >= _THREAD_READS)
        self.ring = Ring(_SLOTS, task.share.rows, tuple(a.width for a in task.arrays))
        self._process: subprocess.Popen[bytes] | None = None
        self._thread: threading.Thread | None = None
        self._bug: BaseException | None = None
        self._taken = 0
        inbox, self._to_reader = os.pipe()
        from_reader, outbox = os.pipe()
        self._ready = os.fdopen(from_reader, "rb")
        shared = nameless_file(self.ring.n_bytes)
        self.memory = mmap.mmap(shared, self.ring.n_bytes)
        if self.in_process:
            self._process = _start_process(task, shared, inbox, outbox)
            os.close(inbox)
            os.close(outbox)
        else:
            self._thread = threading.Thread(
                target=self._read, args=(task, inbox, outbox), name="saeflow-reader", daemon=True
            )
            self._thread.start()
        os.close(shared)

    @property
    def pid(self) -> int:
        """Of the process that reads."""
        return os.getpid() if self._process is None else self._process.pid

    def next(self) -> list[memoryview]:
        """The memory of the next batch, one view an array, once it is there.

        Raises:
            SaeflowError: the store can't be read, or the reader has died.
        """
        line = self._ready.readline()
        if line != b"\n":
            raise self._error(line)
        self._taken += 1
        return self.ring.slot(self.memory, self._taken - 1)

    def give_back(self) -> None:
        """The batch that was handed out first may be written over."""
        with suppress(BrokenPipeError):  # a reader that has ended needs no memory
            os.write(self._to_reader, b".")

    def close(self) -> None:
        """End the reader, whatever it is at; nothing of it is left."""
        if self._to_reader < 0:
            return
        os.close(self._to_reader)
        self._to_reader = -1
        self._ready.close()
        if self._thread is not None:
            self._thread.join()
        if self._process is not None:
            try:
                self._process.wait(_PATIENCE)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()

    def _read(self, task: Task, inbox: int, outbox: int) -> None:
        """What the thread does."""
        try:
            _fill_ring(task, self.ring, self.memory, inbox, outbox)
        except BaseException as bug:  # noqa: BLE001  # it is raised again in the trainer
            self._bug = bug
        finally:
            os.close(inbox)
            os.close(outbox)

    def _error(self, line: bytes) -> BaseException:
        if line:
            told = json.loads(line)
            kinds = {kind.exit_code: kind for kind in (SaeflowError, BadInputError)}
            return kinds[told["exit_code"]](told["error"])
        if self._bug is not None:
            return self._bug
        code = self._process.wait() if self._process is not None else 0
        how = f"signal {-code}" if code < 0 else f"exit code {code}"
        return SaeflowError(
            f"the process that reads the store has died ({how}): run again; if memory is short, "
            "lower --batch-size or --window-rows; if it dies again, run saeflow verify"
        )


def _start_process(task: Task, shared: int, inbox: int, outbox: int) -> "subprocess.Popen[bytes]":
    kept = _share_kept(task.order.kept)
    about = {
        "path": sys.path,
        "arrays": [asdict(array) for array in task.arrays],
        "order": {name: getattr(task.order, name) for name in _ORDER},
        "share": asdict(task.share),
        "steps": [task.steps.start, task.steps.stop],
        "descriptors": {"shared": shared, "inbox": inbox, "outbox": outbox, "kept": kept},
    }
    try:
        return subprocess.Popen(  # noqa: S603  # our own interpreter, our own code
            [sys.executable, "-P", "-c", _CODE, json.dumps(about)],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            pass_fds=[d for d in (shared, inbox, outbox, kept) if d is not None],
            process_group=0,  # Ctrl-C is for the trainer, which then ends the reader
            env={**os.environ, "OPENBLAS_NUM_THREADS": "1"},
        )
    finally:
        if kept is not None:
            os.close(kept)


def main(about: Mapping[str, Any]) -> None:
    """The reader process."""
    descriptors = about["descriptors"]
    order = StreamOrder(**about["order"])
    kept = _shared_kept(order, descriptors["kept"])
    task = Task(
        arrays=tuple(RowArray(**array) for array in about["arrays"]),
        order=replace(order, kept=kept),
        share=Share(**about["share"]),
        steps=range(*about["steps"]),
    )
    ring = Ring(_SLOTS, task.share.rows, tuple(array.width for array in task.arrays))
    memory = mmap.mmap(descriptors["shared"], ring.n_bytes)
    _fill_ring(task, ring, memory, descriptors["inbox"], descriptors["outbox"], mapped=True)


def _fill_ring(
    task: Task, ring: Ring, memory: mmap.mmap, inbox: int, outbox: int, *, mapped: bool = False
) -> None:
    filler = make_filler(task.arrays, task.order, task.share, task.steps.stop - 1, mapped=mapped)
    try:
        serve(filler, ring, memory, task.steps, inbox, outbox)
    finally:
        filler.close()


def _share_kept(kept: KeptRows | None) -> int | None:
    """A filter's rows as memory that the reader process maps."""
    if kept is None:
        return None
    descriptor = nameless_file(kept.counts.nbytes + kept.bits.nbytes)
    with mmap.mmap(descriptor, 0) as memory:
        memory.write(kept.counts.data)
        memory.write(kept.bits.data)
    return descriptor


def _shared_kept(order: StreamOrder, descriptor: int | None) -> KeptRows | None:
    if descriptor is None:
        return None
    memory = mmap.mmap(descriptor, 0, access=mmap.ACCESS_READ)
    counts = np.frombuffer(memory, np.uint32, order.n_strips)
    return KeptRows(np.frombuffer(memory, np.uint8, offset=counts.nbytes), counts)
