"""One shard: its rows gathered in memory, then written as ordinary zarr v3 chunks.

The bytes are those that zarr-python writes for the same array: the inner chunks
of a shard follow each other from offset 0, then comes the index (offset and
length of each chunk, uint64) and its crc32c. So the body of a shard file is a
row-major matrix, which is what the reader relies on and checks.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Float32, Int64, Shaped, UInt32
from numcodecs.zstd import Zstd
from torch import Tensor

from saeflow.crc import crc32c, joined
from saeflow.files import DurableFiles, byte_view
from saeflow.harvest.layout import Codec, HookPoint, Layout, Split
from saeflow.harvest.permutation import derive_key, permute
from saeflow.harvest.quantise import Quantisation
from saeflow.harvest.statistics import row_norms, shard_statistics

_ABSENT = np.uint64(2**64 - 1)
_CPU = torch.device("cpu")


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


@dataclass(frozen=True)
class GatheredShard:
    """A shard in memory, ready to be written.

    Attributes:
        place: which shard.
        matrices: by hook point, the activations in their places, in the stored
            precision, filled up to whole chunks.
        scales: by hook point, the scale of each row in its place; int8 only.
        quantisations: by hook point, what int8 rows are widened with.
        row_values: by name, one value a row, in the order of sequence and position.
        device: where statistics are computed.
    """

    place: ShardPlace
    matrices: Mapping[str, Shaped[Tensor, "stored_rows _"]]
    scales: Mapping[str, Float32[Tensor, " rows"]]
    quantisations: Mapping[str, Quantisation]
    row_values: Mapping[str, UInt32[np.ndarray, " rows"]]
    device: torch.device = _CPU

    def rows(self, name: str, first: int, stop: int) -> Float32[Tensor, "rows _"]:
        """Some of its stored rows, widened."""
        stored = self.matrices[name][first:stop].to(self.device)
        if name not in self.scales:
            return stored.float()
        scales = self.scales[name][first:stop].to(self.device)
        return self.quantisations[name].dequantise(stored, scales)

    def put(
        self, name: str, places: Int64[Tensor, " rows"], rows: Float[Tensor, "rows d_in"]
    ) -> None:
        """Put finite rows in their places: in the stored precision, or still to be quantised."""
        if name in self.scales:
            rows, scale = self.quantisations[name].quantise(rows)
            self.scales[name][places] = scale.cpu()
        self.matrices[name][places] = rows.cpu()


def new_shard(
    layout: Layout,
    place: ShardPlace,
    row_values: Mapping[str, UInt32[np.ndarray, " rows"]],
    *,
    quantisations: Mapping[str, Quantisation],
    device: torch.device = _CPU,
) -> GatheredShard:
    """Memory for a shard: absent rows of a chunk hold the fill value."""
    matrices, scales = {}, {}
    for hook_point in layout.hook_points:
        chunk = layout.rows_per_chunk(hook_point)
        shape = -(-len(place.rows) // chunk) * chunk, hook_point.d_in
        fill = layout.stored.fill if layout.dtype == "int8" else torch.nan
        matrices[hook_point.name] = torch.full(shape, fill, dtype=layout.stored.torch)
        if layout.dtype == "int8":
            scales[hook_point.name] = torch.full((len(place.rows),), torch.nan)
    return GatheredShard(place, matrices, scales, quantisations, row_values, device)


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
        yield shard_index(lengths, chunks_per_shard)

    *crcs, _ = writer.write(f"{split.folder}acts/{name}/c/{k}/0", parts())
    stored = np.zeros(chunks_per_shard, "<u4")
    stored[: len(crcs)] = crcs
    writer.write(f"{split.folder}crc/{name}/c/{k}", [byte_view(stored)])


def _placed(values: UInt32[np.ndarray, " rows"], place: ShardPlace) -> UInt32[np.ndarray, " rows"]:
    placed = np.empty_like(values)
    placed[place.places] = values
    return placed


def with_crc(encoded: bytes | memoryview) -> bytes:
    """Bytes with their crc32c behind them, as zarr's codec `crc32c` does it."""
    return bytes(encoded) + crc32c(encoded).to_bytes(4, "little")


def _with_zstd(chunk: memoryview) -> bytes:
    encoded: bytes = Zstd(level=1, checksum=True).encode(chunk)
    return encoded


ENCODERS: Mapping[Codec, Callable[[memoryview], bytes | memoryview]] = {
    "bytes": lambda chunk: chunk,
    "crc32c": with_crc,
    "zstd": _with_zstd,
}
"""What `arrays.CODECS` has zarr do, done by the same libraries without it."""


def shard_index(lengths: Sequence[int], chunks_per_shard: int) -> bytes:
    """The index at the end of a shard file (zarr v3 sharding codec, version 1.0)."""
    entries = np.full((chunks_per_shard, 2), _ABSENT, "<u8")
    entries[: len(lengths), 0] = np.cumsum([0, *lengths[:-1]])
    entries[: len(lengths), 1] = lengths
    return with_crc(entries.tobytes())


def checksum(parts: Iterable[bytes | memoryview]) -> dict[str, int]:
    """Length and crc32c of a file's content, as commit records and the manifest hold them."""
    length = crc = 0
    for part in parts:
        length += len(part)
        crc = joined(crc, crc32c(part), len(part))
    return {"bytes": length, "crc32c": crc}
