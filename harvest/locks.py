"""Who may write to a store: operating system's locks, which end with their process.

`_saeflow/lock`, the main lock, belongs to whoever reads the text, creates the
arrays, or completes the store, and for a moment to each worker that begins. A
worker then holds the lock beside its own log for as long as it builds shards. It
takes that one only while it holds the main lock, so whoever holds the main lock
knows who is at work, and nobody joins or leaves a file that is being removed.

A lock's file says who holds it, for messages; only the kernel says whether it is held.
"""

import errno
import fcntl
import json
import os
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from saeflow import console
from saeflow.errors import BadInputError, SaeflowError
from saeflow.harvest.commits import FOLDER, LOGS
from saeflow.harvest.workers import Worker

LOCK = "lock"
"""The main lock's name in the folder `_saeflow`."""

_ASK_AGAIN = 0.05
"""Seconds between two tries to get a lock."""

_TRIES = 20
"""As often a lock's file may be found empty: its holder may just be about to say who it is."""


@dataclass(frozen=True)
class Holder:
    """Who holds a lock, as its file says it."""

    rank: int
    count: int
    host: str
    pid: int

    def __str__(self) -> str:
        if self == _UNKNOWN:
            return "another process"
        who = f"process {self.pid} on {self.host}"
        return who if self.count == 1 else f"worker {self.rank}/{self.count}, {who}"

    def excludes(self, worker: Worker) -> bool:
        """Whether the two can't fill a store together: the same rank, or another number of them."""
        return self.count != worker.count or self.rank == worker.rank


_UNKNOWN = Holder(rank=-1, count=1, host="", pid=-1)
"""Who holds a lock whose file doesn't say so."""


@contextmanager
def main_lock(store: Path, worker: Worker, *, patient: bool = False) -> Iterator[None]:
    """Hold a store's main lock, after waiting for other workers of the same harvest.

    Args:
        store: the store's folder, which is made if need be.
        worker: who asks.
        patient: wait for anyone, not only for workers that this one can work with.

    Raises:
        BadInputError: the folder can't be made, or a writer that this one can't work
            with holds the lock.
    """
    path = store / FOLDER / LOCK
    _make(path.parent, store)
    told: Holder | None = None
    refusal: Holder | None = None
    tries = 0
    while (descriptor := _try(path)) is None:
        tries += 1
        holder = _holder(path) or (_UNKNOWN if tries > _TRIES else None)
        if holder is not None and not patient and holder.excludes(worker):
            if holder == refusal:  # read twice: it wasn't what a dead one had left there
                raise _refused(store, holder, worker)
            refusal = holder
        elif holder is not None and holder != told:
            console.say(f"waiting for {holder}, which holds {path}")
            told = holder
        time.sleep(_ASK_AGAIN)
        _make(path.parent, store)
    with _held(descriptor, worker):
        yield


@contextmanager
def worker_lock(store: Path, worker: Worker) -> Iterator[None]:
    """Hold a worker's own lock; to be taken after `refuse_others`, under the same main lock."""
    path = store / LOGS / f"rank{worker.rank:05d}.lock"
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor = _try(path)
    assert descriptor is not None
    with _held(descriptor, worker):
        yield


def refuse_others(store: Path, worker: Worker, *, alone: bool) -> None:
    """Refuse to write beside workers that this one can't work with.

    Args:
        store: the store's folder, its main lock held.
        worker: who wants to write.
        alone: no other worker will do, since the store is to be thrown away.

    Raises:
        BadInputError: there is such a worker, and it is building shards.
    """
    for path in sorted((store / LOGS).glob("*.lock")):
        descriptor = _try(path)
        if descriptor is not None:
            os.close(descriptor)
            continue
        holder = _holder(path) or _UNKNOWN
        if alone or holder.excludes(worker):
            raise _refused(store, holder, worker)


def _try(path: Path) -> int | None:
    """A descriptor that holds a file's lock; None if another process does, or removed the file."""
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
    except FileNotFoundError:
        return None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if os.path.samestat(os.fstat(descriptor), path.stat()):
            return descriptor
    except (BlockingIOError, FileNotFoundError):
        pass
    except OSError as error:
        os.close(descriptor)
        raise SaeflowError(
            f"{path} can't be locked ({error.strerror}): put --out on a disk with file locks"
        ) from error
    os.close(descriptor)
    return None


@contextmanager
def _held(descriptor: int, worker: Worker) -> Iterator[None]:
    """Say in a lock's file who holds it, and take that back when the lock is given back."""
    try:
        told = {
            "rank": worker.rank,
            "count": worker.count,
            "host": socket.gethostname(),
            "pid": os.getpid(),
        }
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, json.dumps(told).encode(), 0)
        yield
    finally:
        with suppress(OSError):
            os.ftruncate(descriptor, 0)
        os.close(descriptor)


def _holder(path: Path) -> Holder | None:
    """Who a lock's file says holds it; None while that is being written."""
    try:
        return Holder(**json.loads(path.read_bytes()))
    except (OSError, ValueError, TypeError):
        return None


def _refused(store: Path, holder: Holder, worker: Worker) -> BadInputError:
    join = holder.count not in (1, worker.count)
    return BadInputError(
        f"store {store} is being written by {holder}: wait for it, or stop it"
        + (f", or be one of its {holder.count} workers" if join else "")
    )


def _make(folder: Path, store: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        if error.errno == errno.ENOSPC:
            raise
        raise BadInputError(
            f"--out {store} can't be made ({error.strerror}): name another folder"
        ) from error
