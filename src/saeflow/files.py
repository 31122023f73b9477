"""Files that are there whole or not at all, also after a crash."""

import json
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

PARTIAL = ".partial"
"""The ending of a file that is being written; such a file never counts."""


def write_durably(path: Path, parts: Iterable[bytes | memoryview]) -> None:
    """Write a file under a temporary name, flush it to the disk, and rename it into place."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(path.name + PARTIAL)
    with partial.open("wb") as file:
        for part in parts:
            file.write(part)
        file.flush()
        os.fsync(file.fileno())
    partial.replace(path)
    sync_directory(path.parent)


def write_json(path: Path, value: Any) -> None:
    """Write JSON durably: two spaces of indent, keys in the order given, a newline at the end."""
    text = json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n"
    write_durably(path, [text.encode()])


def byte_view(values: np.ndarray) -> memoryview:
    """The bytes of an array, in C order, without a copy where it already is."""
    return np.ascontiguousarray(values).reshape(-1).view(np.uint8).data


def sync_directory(path: Path) -> None:
    """Flush a directory's entries, so that a rename in it survives a power loss."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
