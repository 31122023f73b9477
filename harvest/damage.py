"""What can be wrong with a file of a store, and where in a shard of activations it is."""

import os
import re
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from itertools import groupby
from pathlib import Path
from typing import Any, Literal

import numpy as np
from jaxtyping import Int64

from saeflow.crc import crc32c
from saeflow.harvest.layout import HookPoint, Split
from saeflow.harvest.manifest import FileRecord, Manifest
from saeflow.harvest.shard_index import decode_index, index_bytes

Kind = Literal[
    "damaged",
    "missing",
    "truncated",
    "too long",
    "swapped",
    "not a file",
    "unreadable",
    "foreign",
    "left over",
]
"""`left over` is a temporary file of an interrupted writer, which never counts."""


@dataclass(frozen=True, kw_only=True)
class Problem:
    """One thing in a store that is not as it was written.

    Attributes:
        file: its path, relative to the store.
        kind: what is wrong.
        detail: more of that, in words; perhaps empty.
        array: the array that the file belongs to, if to one.
        split: the split of its shard, if it belongs to one.
        shard: the number of that shard.
        part: which part of a shard file of activations it is, where that can be told.
        chunks: the first and the last damaged chunk of that file.
        rows: the first and the last row that it concerns, as numbered in the split.
    """

    file: str
    kind: Kind
    detail: str = ""
    array: str | None = None
    split: str | None = None
    shard: int | None = None
    part: Literal["chunks", "index"] | None = None
    chunks: tuple[int, int] | None = None
    rows: tuple[int, int] | None = None

    def __str__(self) -> str:
        where = []
        if self.array is not None:
            where.append(f"array {self.array}")
        if self.shard is not None:
            where.append(f"{self.split} shard {self.shard}")
        if self.part == "index":
            where.append("the index of its chunks")
        if self.chunks is not None:
            where.append(_span("chunk", self.chunks))
        if self.rows is not None:
            where.append(_span("row", self.rows))
        said = f"{self.file} is {self.kind}" + (f" ({self.detail})" if self.detail else "")
        return f"{said}: {', '.join(where)}" if where else said

    def to_json(self) -> dict[str, Any]:
        """What is known of it, and nothing else."""
        return {key: value for key, value in asdict(self).items() if value not in (None, "")}


def problem(manifest: Manifest, record: FileRecord, kind: Kind, detail: str = "") -> Problem:
    """A problem with a whole file: its array, its shard and all rows of that."""
    array = re.fullmatch(r"(.+)/(?:c(?:/\d+)+|zarr\.json)", record.path)
    name = array[1] if array else None
    if record.shard is None:
        return Problem(file=record.path, kind=kind, detail=detail, array=name)
    split, shard = record.shard
    rows = manifest.layout.splits[split].shard(shard)
    return Problem(
        file=record.path,
        kind=kind,
        detail=detail,
        array=name,
        split=split,
        shard=shard,
        rows=(rows.start, rows.stop - 1),
    )


def find_chunks(store: Path, manifest: Manifest, whole: Problem) -> list[Problem]:
    """The chunks that a problem with a shard file of activations comes down to.

    Args:
        store: the store's folder.
        manifest: its manifest.
        whole: a problem with a file that is there and can be read.

    Returns:
        One problem for each run of damaged chunks, and one for the index; or the
        problem as it was, where the file or its checksums don't tell more.
    """
    hook_point = _hook_point(manifest, whole)
    if hook_point is None or whole.split is None or whole.shard is None:
        return [whole]
    split = manifest.layout.splits[whole.split]
    expected = _chunk_checksums(store, manifest, hook_point, split, whole.shard)
    if expected is None:
        return [whole]
    with (store / whole.file).open("rb") as file:
        descriptor = file.fileno()
        index = _read_index(
            descriptor, split.rows_per_shard // manifest.layout.rows_per_chunk(hook_point)
        )
        places = _chunk_places(manifest, hook_point, len(expected), index)
        if places is None:
            return [whole]
        bad = [
            number
            for number, (offset, length) in enumerate(places)
            if crc32c(os.pread(descriptor, length, offset)) != expected[number]
        ]
    found = list(_runs(bad, manifest.layout.rows_per_chunk(hook_point), whole))
    if index is None or not bad:
        found.append(_with(whole, part="index"))
    return found


def _hook_point(manifest: Manifest, whole: Problem) -> HookPoint | None:
    """Whose activations a problem's file holds, if it is a shard file of `acts`."""
    for hook_point in manifest.layout.hook_points:
        if whole.split is not None:
            folder = manifest.layout.splits[whole.split].folder
            if whole.file == f"{folder}acts/{hook_point.name}/c/{whole.shard}/0":
                return hook_point
    return None


def _chunk_checksums(
    store: Path, manifest: Manifest, hook_point: HookPoint, split: Split, shard: int
) -> Int64[np.ndarray, " chunks"] | None:
    """The crc32c of each written chunk, if the file that holds them is whole."""
    record = manifest.files.get(f"{split.folder}crc/{hook_point.name}/c/{shard}")
    try:
        content = b"" if record is None else (store / record.path).read_bytes()
    except OSError:
        return None
    if record is None or crc32c(content) != record.crc32c:
        return None
    n_chunks = -(-len(split.shard(shard)) // manifest.layout.rows_per_chunk(hook_point))
    return np.frombuffer(content, "<u4")[:n_chunks].astype(np.int64)


def _read_index(descriptor: int, n_chunks: int) -> Int64[np.ndarray, "chunks 2"] | None:
    """Offset and length of each chunk, from the end of a shard file; None if that is damaged."""
    start = os.fstat(descriptor).st_size - index_bytes(n_chunks)
    return decode_index(os.pread(descriptor, index_bytes(n_chunks), max(0, start)), n_chunks)


def _chunk_places(
    manifest: Manifest,
    hook_point: HookPoint,
    n_chunks: int,
    index: Int64[np.ndarray, "chunks 2"] | None,
) -> list[tuple[int, int]] | None:
    """Offset and length of each written chunk; None where only a damaged index would tell."""
    layout = manifest.layout
    if layout.codec == "bytes":
        length = layout.rows_per_chunk(hook_point) * hook_point.d_in * layout.stored.itemsize
        return [(number * length, length) for number in range(n_chunks)]
    if index is None or index[:n_chunks].min() < 0:
        return None
    return [(int(offset), int(length)) for offset, length in index[:n_chunks]]


def _runs(bad: list[int], rows_per_chunk: int, whole: Problem) -> Iterator[Problem]:
    """One problem for each run of neighbouring chunks."""
    assert whole.rows is not None
    for _, run in groupby(enumerate(bad), key=lambda pair: pair[1] - pair[0]):
        chunks = [chunk for _, chunk in run]
        first = whole.rows[0] + chunks[0] * rows_per_chunk
        last = whole.rows[0] + (chunks[-1] + 1) * rows_per_chunk - 1
        yield _with(
            whole,
            part="chunks",
            chunks=(chunks[0], chunks[-1]),
            rows=(first, min(last, whole.rows[1])),
        )


def _with(whole: Problem, **changed: Any) -> Problem:
    return Problem(**{**asdict(whole), **changed})


def _span(word: str, span: tuple[int, int]) -> str:
    first, last = span
    return f"{word} {first}" if first == last else f"{word}s {first} to {last}"
