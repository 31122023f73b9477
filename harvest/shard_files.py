"""One shard's files: what zarr-python writes for the same rows, with checksums on the way.

The inner chunks of a shard file follow each other from offset 0, then comes the
index. So the body of the file is a row-major matrix, unless chunks are encoded,
which is what the reader relies on and checks.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Shaped, UInt32
from numcodecs.zstd import Zstd

from saeflow.crc import crc32c, joined
from saeflow.files import DurableFiles, byte_view
from saeflow.harvest.layout import Codec, HookPoint, Layout
from saeflow.harvest.shard_index import encode_index, with_crc
from saeflow.harvest.shards import GatheredShard, ShardPlace
from saeflow.harvest.statistics import row_norms, shard_statistics


def write_shard(store: Path, layout: Layout, shard: GatheredShard) -> dict[str, Any]:
    """Write every file of one shard and return the record that commits it."""
    place, writer = shard.place, ShardWriter(store)
    statistics: dict[str, dict[str, Any]] = {}

    def write_rows(name: str, values: Shaped[np.ndarray, " rows"], fill: int | float) -> None:
        stored = np.full(place.split.rows_per_shard, fill, values.dtype)
        stored[: len(values)] = values
        writer.write(f"{place.split.folder}{name}/c/{place.index}", [byte_view(stored)])

    placed = {name: _placed(values, place) for name, values in shard.row_values.items()}
    for name, values in placed.items():
        write_rows(name, values, np.iinfo(values.dtype).max)
    for hook_point in layout.hook_points:
        name, rows = hook_point.name, partial(shard.rows, hook_point.name)
        norms = row_norms(rows, len(place.rows))
        write_activations(writer, layout, hook_point, shard)
        write_rows(f"norm/{name}", norms, np.nan)
        if name in shard.scales:
            write_rows(f"scale/{name}", shard.scales[name].numpy(), np.nan)
        if place.split.name == "train":
            found = shard_statistics(rows, norms, placed)
            writer.write(f"stats/{name}/shards/c/{place.index}/0/0", [byte_view(found.channels)])
            statistics[name] = found.to_record()
    writer.rename()
    record = {
        "split": place.split.name,
        "shard": place.index,
        "rows": len(place.rows),
        "files": writer.files,
    }
    return {**record, "statistics": statistics} if statistics else record


class ShardWriter:
    """Writes a shard's files, and reckons their checksums on the way.

    Attributes:
        files: length and crc32c of each, by its path in the store.
    """

    def __init__(self, store: Path) -> None:
        self.files: dict[str, dict[str, int]] = {}
        self._store, self._durable = store, DurableFiles()

    def write(self, path: str, parts: Iterable[bytes | memoryview]) -> list[int]:
        """Write a file under a temporary name; the crc32c of each of its parts."""
        crcs: list[int] = []
        length = crc = 0

        def counted() -> Iterator[bytes | memoryview]:
            nonlocal length, crc
            for part in parts:
                crcs.append(crc32c(part))
                length, crc = length + len(part), joined(crc, crcs[-1], len(part))
                yield part

        self._durable.write(self._store / path, counted())
        self.files[path] = {"bytes": length, "crc32c": crc}
        return crcs

    def rename(self) -> None:
        """Give every file its name."""
        self._durable.rename()


def write_activations(
    writer: ShardWriter, layout: Layout, hook_point: HookPoint, shard: GatheredShard
) -> None:
    """Write a shard's file of `acts`, chunk by chunk, and the checksums of its chunks."""
    split, k, name = shard.place.split, shard.place.index, hook_point.name
    rows_per_chunk = layout.rows_per_chunk(hook_point)
    chunks_per_shard = split.rows_per_shard // rows_per_chunk
    bits = shard.matrices[name].view(torch.uint8).numpy()
    lengths: list[int] = []

    def parts() -> Iterator[bytes | memoryview]:
        # A chunk is encoded, checked and written while it is in the processor's cache.
        for rows in np.split(bits, len(bits) // rows_per_chunk):
            chunk = ENCODERS[layout.codec](byte_view(rows))
            lengths.append(len(chunk))
            yield chunk
        yield encode_index(lengths, chunks_per_shard)

    *crcs, _ = writer.write(f"{split.folder}acts/{name}/c/{k}/0", parts())
    stored = np.zeros(chunks_per_shard, "<u4")
    stored[: len(crcs)] = crcs
    writer.write(f"{split.folder}crc/{name}/c/{k}", [byte_view(stored)])


def _placed(values: UInt32[np.ndarray, " rows"], place: ShardPlace) -> UInt32[np.ndarray, " rows"]:
    placed = np.empty_like(values)
    placed[place.places] = values
    return placed


def _with_zstd(chunk: memoryview) -> bytes:
    encoded: bytes = Zstd(level=1, checksum=True).encode(chunk)
    return encoded


ENCODERS: Mapping[Codec, Callable[[memoryview], bytes | memoryview]] = {
    "bytes": lambda chunk: chunk,
    "crc32c": with_crc,
    "zstd": _with_zstd,
}
"""What `arrays.CODECS` has zarr do, done by the same libraries without it."""


def checksum(parts: Iterable[bytes | memoryview]) -> dict[str, int]:
    """Length and crc32c of a file's content, as commit records and the manifest hold them."""
    length = crc = 0
    for part in parts:
        length += len(part)
        crc = joined(crc, crc32c(part), len(part))
    return {"bytes": length, "crc32c": crc}
