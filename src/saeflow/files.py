"""Files that are there whole or not at all, also after a crash."""

import json
import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

PARTIAL = ".partial"
"""The ending of a file that is being written; such a file never counts."""


class DurableFiles:
    """Files that are flushed to the disk under temporary names, then renamed all together.

    One flush of the directories at the end costs a fraction of one a file.
    """

    def __init__(self) -> None:
        self._written: list[Path] = []

    def write(self, path: Path, parts: Iterable[bytes | memoryview]) -> None:
        """Write and flush a file; it has no name yet."""
        path.parent.mkdir(parents=True, exist_ok=True)
        with naming(path), _partial(path).open("wb") as file:
            for part in parts:
                file.write(part)
            file.flush()
            os.fsync(file.fileno())
        self._written.append(path)

    def rename(self) -> None:
        """Give every file its name."""
        for path in self._written:
            _partial(path).replace(path)
        for folder in dict.fromkeys(path.parent for path in self._written):
            sync_directory(folder)
        self._written.clear()


def write_durably(path: Path, parts: Iterable[bytes | memoryview]) -> None:
    """Write a file under a temporary name, flush it to the disk, and rename it into place."""
    files = DurableFiles()
    files.write(path, parts)
    files.rename()


@contextmanager
def naming(path: Path) -> Iterator[None]:
    """Give an operating system's error the path that it is about, where it names none."""
    try:
        yield
    except OSError as error:
        error.filename = error.filename or str(path)
        raise


def write_json(path: Path, value: Any) -> None:
    """Write JSON durably."""
    write_durably(path, [json_bytes(value)])


def json_bytes(value: Any) -> bytes:
    """JSON as saeflow writes it: indented by two, keys in the order given, a newline at the end."""
    text = json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n"
    return text.encode()


def _partial(path: Path) -> Path:
    return path.with_name(path.name + PARTIAL)


def byte_view(values: np.ndarray) -> memoryview:
    """The bytes of an array, in C order, without a copy where it already is."""
    return np.ascontiguousarray(values).reshape(-1).view(np.uint8).data


def sync_directory(path: Path) -> None:
    """Flush a directory's entries, so that a rename in it survives a power loss."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        with naming(path):
            os.fsync(descriptor)
    finally:
        os.close(descriptor)
