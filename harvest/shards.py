"""One shard: its rows gathered in memory, then written as ordinary zarr v3 chunks.

The bytes are those that zarr-python writes for the same array: the inner chunks
of a shard follow each other from offset 0, then comes the index (offset and
length of each chunk, uint64) and its crc32c. So the body of a shard file is a
row-major matrix, which is what the reader relies on and checks.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import google_crc32c
import numpy as np
import torch
from jaxtyping import Int64, UInt32
from torch import Tensor

from saeflow.files import byte_view, write_durably
from saeflow.harvest.layout import HookPoint, Layout, Split
from saeflow.harvest.permutation import derive_key, permute
from saeflow.harvest.statistics import shard_statistics

_ABSENT = np.uint64(2**64 - 1)


@dataclass(frozen=True)
class ShardPlace:
    """Which shard, and where each of its rows goes.

    Attributes:
        split: the split that it belongs to.
        index: its number there.
        rows: its rows in the order of sequence and position.
        places: for each of them, its place in the shard.
    """

    split: Split
    index: int
    rows: range
    places: Int64[np.ndarray, " rows"]


def place_shard(layout: Layout, split: Split, index: int) -> ShardPlace:
    """Where a shard's rows go: the permutation is a function of seed, split and shard alone."""
    rows = split.shard(index)
    places = np.arange(len(rows))
    if layout.order == "permuted":
        key = derive_key(layout.seed, "shard", split.name, index)
        places = permute(places, len(rows), key)
    return ShardPlace(split, index, rows, places)


def new_matrix(layout: Layout, hook_point: HookPoint, place: ShardPlace) -> Tensor:
    """Memory for a shard's activations: whole chunks, absent rows filled with not-a-number."""
    chunk = layout.rows_per_chunk(hook_point)
    n_rows = -(-len(place.rows) // chunk) * chunk
    return torch.full((n_rows, hook_point.d_in), torch.nan, dtype=layout.stored.torch)


def write_shard(
    store: Path,
    layout: Layout,
    place: ShardPlace,
    matrices: dict[str, Tensor],
    row_values: dict[str, UInt32[np.ndarray, " rows"]],
) -> dict[str, Any]:
    """Write every file of one shard and return the record that commits it.

    Args:
        store: the store's folder.
        layout: its layout.
        place: which shard.
        matrices: by hook point, the activations already in their places.
        row_values: by name (`token`, `doc`, `seq`, `pos`), one value a row, in the
            order of sequence and position.
    """
    files: dict[str, dict[str, int]] = {}
    statistics: dict[str, dict[str, Any]] = {}

    def write(path: str, parts: list[bytes | memoryview]) -> None:
        write_durably(store / path, parts)
        files[path] = checksum(parts)

    folder, k = place.split.folder, place.index
    for name, values in row_values.items():
        stored = np.full(place.split.rows_per_shard, np.iinfo(values.dtype).max, values.dtype)
        stored[place.places] = values
        write(f"{folder}{name}/c/{k}", [byte_view(stored)])
    for hook_point in layout.hook_points:
        matrix, name = matrices[hook_point.name], hook_point.name
        chunks_per_shard = place.split.rows_per_shard // layout.rows_per_chunk(hook_point)
        chunks = _split_into_chunks(matrix, layout.rows_per_chunk(hook_point))
        write(f"{folder}acts/{name}/c/{k}/0", [*chunks, shard_index(chunks, chunks_per_shard)])
        crcs = np.zeros(chunks_per_shard, "<u4")
        crcs[: len(chunks)] = [google_crc32c.value(bytes(chunk)) for chunk in chunks]
        write(f"{folder}crc/{name}/c/{k}", [byte_view(crcs)])
        if place.split.name == "train":
            found = shard_statistics(matrix[: len(place.rows)])
            write(f"stats/{name}/shards/c/{k}/0/0", [byte_view(found.channels)])
            statistics[name] = found.to_record()
    record = {"split": place.split.name, "shard": k, "rows": len(place.rows), "files": files}
    return {**record, "statistics": statistics} if statistics else record


def shard_index(chunks: list[memoryview], chunks_per_shard: int) -> bytes:
    """The index at the end of a shard file (zarr v3 sharding codec, version 1.0)."""
    entries = np.full((chunks_per_shard, 2), _ABSENT, "<u8")
    lengths = [len(chunk) for chunk in chunks]
    entries[: len(chunks), 0] = np.cumsum([0, *lengths[:-1]])
    entries[: len(chunks), 1] = lengths
    return with_crc(entries.tobytes())


def _split_into_chunks(matrix: Tensor, rows_per_chunk: int) -> list[memoryview]:
    bits = matrix.view(torch.uint8).numpy()
    return [byte_view(part) for part in np.split(bits, len(bits) // rows_per_chunk)]


def with_crc(encoded: bytes) -> bytes:
    """Bytes with their crc32c behind them, as zarr's codec `crc32c` does it."""
    crc: int = google_crc32c.value(encoded)
    return encoded + crc.to_bytes(4, "little")


def checksum(parts: Iterable[bytes | memoryview]) -> dict[str, int]:
    """Length and crc32c of a file's content, as commit records and the manifest hold them."""
    length = crc = 0
    for part in parts:
        length += len(part)
        crc = google_crc32c.extend(crc, bytes(part))
    return {"bytes": length, "crc32c": crc}
