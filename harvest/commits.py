"""What counts in a store: the commit logs, the manifest, and what a crash leaves behind.

While a store is written, a shard counts if, and only if, its record stands in a
log, and a record is appended only after every file of the shard was renamed into
place. Each worker appends to a log of its own; what counts is all of them together.
A line that a crash cut short is dropped; the shard is then built again, to the same
bytes. When all shards are there, the manifest takes over every record and the logs
go, so that a finished store does not show in what order, or by whom, it was made.
"""

import json
import os
import shutil
from pathlib import Path
from typing import Any

from saeflow.errors import SaeflowError
from saeflow.files import PARTIAL, naming, sync_directory

FOLDER = "_saeflow"
LOGS = f"{FOLDER}/log"
MANIFEST = f"{FOLDER}/manifest.json"

Record = dict[str, Any]
"""One shard's commit: split, shard, rows, files with bytes and crc32c, statistics."""


def log_path(store: Path, rank: int) -> Path:
    """The log of one worker."""
    return store / LOGS / f"rank{rank:05d}.jsonl"


def read_records(store: Path) -> dict[tuple[str, int], Record]:
    """The committed shards, by split and number: from the manifest, or else from the logs.

    Raises:
        SaeflowError: a line of a log is whole, and yet no record.
    """
    if (store / MANIFEST).is_file():
        records = json.loads((store / MANIFEST).read_bytes())["shards"]
    else:
        logs = sorted((store / LOGS).glob("*.jsonl"))
        records = [record for path in logs for record in _read_log(path)]
    return {(record["split"], record["shard"]): record for record in records}


def cut_torn_line(store: Path, rank: int = 0) -> None:
    """Cut off what a crash left at the end of a worker's log; only that worker may do so."""
    path = log_path(store, rank)
    if path.is_file():
        whole = sum(len(line) for line in _whole_lines(path))
        if whole < path.stat().st_size:
            with path.open("r+b") as log:
                log.truncate(whole)
                os.fsync(log.fileno())


def append(store: Path, record: Record, rank: int = 0) -> None:
    """Commit a shard: one line in a worker's log, flushed to the disk."""
    path = log_path(store, rank)
    new = not path.exists()
    path.parent.mkdir(parents=True, exist_ok=True)
    with naming(path), path.open("ab") as log:
        log.write((json.dumps(record, allow_nan=False) + "\n").encode())
        log.flush()
        os.fsync(log.fileno())
    if new:
        sync_directory(path.parent)


def sweep(store: Path) -> None:
    """Remove the files under temporary names that killed workers left, once nobody writes."""
    for leftover in store.rglob(f"*{PARTIAL}"):
        leftover.unlink()


def drop_log(store: Path) -> None:
    """Remove the logs of a store whose manifest is written, and the workers' locks beside them."""
    if (store / LOGS).is_dir():
        shutil.rmtree(store / LOGS)


def _read_log(path: Path) -> list[Record]:
    records = []
    for number, line in enumerate(_whole_lines(path), start=1):
        try:
            records.append(json.loads(line))
        except ValueError as error:
            raise SaeflowError(
                f"{path} is damaged at line {number}: take the line out, and run the same "
                "saeflow harvest again, it builds that shard anew"
            ) from error
    return records


def _whole_lines(path: Path) -> list[bytes]:
    lines = path.read_bytes().splitlines(keepends=True)
    return [line for line in lines if line.endswith(b"\n")]
