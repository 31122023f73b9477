"""A ring of batches in memory that two processes share, and the thread or process that fills it.

The ring is one nameless piece of memory: it lives as long as somebody has it
open, so nothing can be left behind in /dev/shm, whoever is killed. Two pipes say
what is where. The consumer writes a byte for every slot that it has done with;
the reader writes an empty line for every batch that is there, in order, and a
line of JSON instead if it failed. An end of file is the other side's death.
"""

import json
import mmap
import os
import select
import tempfile
from collections import deque
from dataclasses import dataclass

from saeflow.errors import SaeflowError
from saeflow.harvest.reader import ALIGNMENT
from saeflow.train.fill import Batch, Filler, is_there, wait_for

_LIFE_SIGN = 1.0
"""Seconds between two looks at whether the consumer is still alive."""


@dataclass(frozen=True)
class Ring:
    """How batches lie in the shared memory: slot by slot, array by array, at whole pages.

    Attributes:
        n_slots: batches.
        n_rows: rows of a batch.
        widths: bytes of a row of each array.
    """

    n_slots: int
    n_rows: int
    widths: tuple[int, ...]

    @property
    def slot_bytes(self) -> int:
        """Bytes from one slot to the next."""
        return sum(_pages(self.n_rows * width) for width in self.widths)

    @property
    def n_bytes(self) -> int:
        """Bytes of the whole ring."""
        return self.n_slots * self.slot_bytes

    def slot(self, memory: mmap.mmap, number: int) -> list[memoryview]:
        """The memory of a batch's rows, one view an array."""
        begin, views = number % self.n_slots * self.slot_bytes, []
        for width in self.widths:
            views.append(memoryview(memory)[begin : begin + self.n_rows * width])
            begin += _pages(self.n_rows * width)
        return views


def nameless_file(n_bytes: int) -> int:
    """A descriptor of memory without a name, that child processes can be given."""
    if hasattr(os, "memfd_create"):
        descriptor = os.memfd_create("saeflow")
    else:  # not Linux
        with tempfile.TemporaryFile() as file:
            descriptor = os.dup(file.fileno())
    try:
        os.truncate(descriptor, n_bytes)
        if hasattr(os, "posix_fallocate"):
            os.posix_fallocate(descriptor, 0, n_bytes)  # no room is an error here, not a signal
    except OSError as error:
        os.close(descriptor)
        raise SaeflowError(
            f"no memory for {n_bytes:,} bytes of batches ({error.strerror}): lower --batch-size"
        ) from error
    return descriptor


def serve(
    filler: Filler,
    ring: Ring,
    memory: mmap.mmap,
    steps: range,
    inbox: int,
    outbox: int,
) -> None:
    """Fill the ring with the batches of some steps until they are all there, or nobody listens.

    Args:
        filler: reads them.
        ring: how the memory is divided.
        memory: of the ring.
        steps: the batches.
        inbox: descriptor that says which slots are free again.
        outbox: descriptor to which ready batches are told.
    """
    parent = os.getppid()
    started: deque[Batch] = deque()
    free = ring.n_slots
    try:
        for number, step in enumerate(steps):
            while free == 0:
                free += _freed(inbox, parent, wait=not started)
                if free == 0:
                    _publish(started.popleft(), outbox)
            free -= 1
            started.append(filler.begin(step, ring.slot(memory, number)))
            while started and is_there(started[0]):
                _publish(started.popleft(), outbox)
        while started:
            _publish(started.popleft(), outbox)
    except SaeflowError as error:
        told = {"error": str(error), "exit_code": error.exit_code}
        os.write(outbox, json.dumps(told).encode() + b"\n")
    except (BrokenPipeError, EOFError):
        return  # the consumer is gone


def _publish(batch: Batch, outbox: int) -> None:
    wait_for(batch)
    os.write(outbox, b"\n")


def _freed(inbox: int, parent: int, *, wait: bool) -> int:
    """How many slots the consumer has given back, at least one if we wait for it.

    Raises:
        EOFError: the consumer has gone.
    """
    while not select.select([inbox], [], [], _LIFE_SIGN if wait else 0)[0]:
        if not wait:
            return 0
        if os.getppid() != parent:  # should another process hold the consumer's end
            raise EOFError
    freed = os.read(inbox, 64)
    if not freed:
        raise EOFError
    return len(freed)


def _pages(n_bytes: int) -> int:
    return -(-n_bytes // ALIGNMENT) * ALIGNMENT
