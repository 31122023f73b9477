"""What counts in a store: the commit log, the lock, and what a crash leaves behind.

While a store is written, a shard counts if, and only if, its record stands in the
log, and a record is appended only after every file of the shard was renamed into
place. A line that a crash cut short is dropped; the shard is then built again, to
the same bytes. When all shards are there, the manifest takes over every record and
the log goes, so that a finished store does not show in what order it was made.
"""

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from saeflow.errors import BadInputError
from saeflow.files import PARTIAL, sync_directory

FOLDER = "_saeflow"
LOG = f"{FOLDER}/log/rank00000.jsonl"
MANIFEST = f"{FOLDER}/manifest.json"
LOCK = "lock"

Record = dict[str, Any]
"""One shard's commit: split, shard, rows, files with bytes and crc32c, statistics."""


@contextmanager
def locked(store: Path) -> Iterator[None]:
    """Hold the store's lock; the kernel gives it back when the process dies.

    Raises:
        BadInputError: another process is writing to the store.
    """
    try:
        (store / FOLDER).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise BadInputError(
            f"--out {store} can't be made ({error.strerror}): name another folder"
        ) from error
    lock = FileLock(store / FOLDER / LOCK, timeout=0)
    try:
        lock.acquire()
    except Timeout as error:
        raise BadInputError(
            f"store {store} is being written by another process: wait for it, or stop it"
        ) from error
    try:
        yield
    finally:
        lock.release()


def read_records(store: Path) -> dict[tuple[str, int], Record]:
    """The committed shards, by split and number: from the manifest, or else from the log."""
    if (store / MANIFEST).is_file():
        records = json.loads((store / MANIFEST).read_bytes())["shards"]
    elif (store / LOG).is_file():
        records = [json.loads(line) for line in _whole_lines(store / LOG)]
    else:
        records = []
    return {(record["split"], record["shard"]): record for record in records}


def recover(store: Path) -> None:
    """Remove what an interrupted writer left: a cut line, and files under temporary names."""
    path = store / LOG
    if path.is_file():
        whole = sum(len(line) for line in _whole_lines(path))
        if whole < path.stat().st_size:
            with path.open("r+b") as log:
                log.truncate(whole)
                os.fsync(log.fileno())
    for leftover in store.rglob(f"*{PARTIAL}"):
        leftover.unlink()


def append(store: Path, record: Record) -> None:
    """Commit a shard: one line, flushed to the disk."""
    path = store / LOG
    new = not path.exists()
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("ab") as log:
        log.write((json.dumps(record, allow_nan=False) + "\n").encode())
        log.flush()
        os.fsync(log.fileno())
    if new:
        sync_directory(path.parent)


def drop_log(store: Path) -> None:
    """Remove the log of a store whose manifest is written."""
    (store / LOG).unlink(missing_ok=True)
    if (store / LOG).parent.is_dir():
        (store / LOG).parent.rmdir()


def _whole_lines(path: Path) -> list[bytes]:
    lines = path.read_bytes().splitlines(keepends=True)
    return [line for line in lines if line.endswith(b"\n")]
