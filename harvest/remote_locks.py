"""Who may write to a remote store: objects that are created only where there are none.

They are the same two kinds as a folder's locks, and stand for the same: the main
lock for whoever begins or completes the store, a lock a worker for building shards.
But no kernel takes an object back when its writer dies. A writer that ends removes
it, also after an error or a signal; one that was killed leaves it, with its name in
it. A run on the same machine sees that this process is gone and takes the lock over;
from another machine nobody can know, so the user is told which object to remove.
"""

import json
import os
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path

from saeflow import console
from saeflow.errors import BadInputError, SaeflowError
from saeflow.files import json_bytes
from saeflow.harvest.commits import FOLDER
from saeflow.harvest.locks import Holder
from saeflow.harvest.remote import Remote
from saeflow.harvest.workers import Worker

LOCK = f"{FOLDER}/lock.json"
WRITERS = f"{FOLDER}/writers"
_ASK_AGAIN = 1.0
"""Seconds between two tries to get a lock."""


@contextmanager
def main_lock(remote: Remote, worker: Worker, *, patient: bool = False) -> Iterator[None]:
    """Hold a remote store's main lock, after waiting for other workers of the same harvest.

    Args:
        remote: the store.
        worker: who asks.
        patient: wait for anyone, not only for workers that this one can work with.

    Raises:
        BadInputError: a writer that this one can't work with holds the lock.
    """
    told: Holder | None = None
    while (other := _try(remote, LOCK, worker)) is not None:
        if not patient and other.excludes(worker):
            raise _refused(remote, LOCK, other)
        if other != told:
            console.say(f"waiting for {other}, which holds {remote.url}/{LOCK}")
            told = other
        time.sleep(_ASK_AGAIN)
    with _given_back(remote, LOCK, worker):
        yield


@contextmanager
def worker_lock(remote: Remote, worker: Worker) -> Iterator[None]:
    """Hold a worker's own lock; to be taken after `refuse_others`, under the same main lock."""
    name = f"{WRITERS}/rank{worker.rank:05d}.json"
    other = _try(remote, name, worker)
    if other is not None:
        raise _refused(remote, name, other)
    with _given_back(remote, name, worker):
        yield


def refuse_others(remote: Remote, worker: Worker, *, alone: bool) -> None:
    """Refuse to write beside workers that this one can't work with.

    Args:
        remote: the store, its main lock held.
        worker: who wants to write.
        alone: no other worker will do, since the store is to be thrown away.

    Raises:
        BadInputError: there is such a worker, and it is building shards.
    """
    for name in sorted(remote.names(WRITERS)):
        found = remote.read(name)
        lock = None if found is None else _parse(found)
        if lock is None or lock.dead:
            continue
        if alone or lock.holder.excludes(worker):
            raise _refused(remote, name, lock.holder)


@dataclass(frozen=True)
class _Lock:
    """A lock's content: who holds it, and in which space of process numbers."""

    holder: Holder
    processes: str

    @property
    def dead(self) -> bool:
        """Whether the holder is known to be gone: it was of this machine, and isn't there."""
        ours = (socket.gethostname(), _processes())
        if (self.holder.host, self.processes) != ours:
            return False
        if self.holder.pid == os.getpid():
            return True  # an earlier process had our number
        try:
            os.kill(self.holder.pid, 0)
        except ProcessLookupError:
            return True
        except PermissionError:
            pass  # somebody else's, alive
        return False


def _try(remote: Remote, name: str, worker: Worker) -> Holder | None:
    """Take a lock, or say who holds it."""
    content = _content(worker)
    while not remote.create(name, content):
        found = remote.read_version(name)
        if found is None:
            continue  # given back in between
        lock = _parse(found[0])
        if not lock.dead:
            return lock.holder
        if remote.replace(name, content, found[1]):
            return None
    return None


@contextmanager
def _given_back(remote: Remote, name: str, worker: Worker) -> Iterator[None]:
    """Remove a lock at the end, unless somebody has removed it and it is another's now."""
    try:
        yield
    finally:
        with suppress(SaeflowError):  # what ends the block is worth telling, not this
            if remote.read(name) == _content(worker):
                remote.delete([name])


def _content(worker: Worker) -> bytes:
    holder = Holder(worker.rank, worker.count, socket.gethostname(), os.getpid())
    return json_bytes({**asdict(holder), "processes": _processes()})


def _parse(content: bytes) -> _Lock:
    try:
        told = json.loads(content)
        processes = str(told.pop("processes"))
        return _Lock(Holder(**told), processes)
    except (ValueError, TypeError, KeyError, AttributeError):
        return _Lock(Holder(rank=-1, count=-1, host="an unknown machine", pid=-1), "")


def _processes() -> str:
    """What tells containers of one machine apart, whose process numbers mean different things."""
    try:
        return str(Path("/proc/self/ns/pid").readlink())
    except OSError:
        return ""


def _refused(remote: Remote, name: str, holder: Holder) -> BadInputError:
    return BadInputError(
        f"store {remote.url} is being written by {holder}: wait for it, or stop it; "
        f"if it is dead, remove {remote.url}/{name} and run again"
    )
