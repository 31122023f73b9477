"""What a harvest will take: bytes on disk, memory and time, before it is begun."""

import resource
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch

from saeflow.files import byte_view
from saeflow.harvest.capture import capture
from saeflow.harvest.layout import ROW_ARRAYS, SHARD_FIGURES, HookPoint, Layout, Split
from saeflow.harvest.models import SourceModel
from saeflow.harvest.quantise import calibrate
from saeflow.harvest.sample import SAMPLE_ROWS
from saeflow.harvest.sequences import Stream, TextCounts
from saeflow.harvest.shard_files import ENCODERS
from saeflow.harvest.statistics import MEDIAN_ROWS, NORM_BINS

_METADATA_BYTES = 800
"""About what one array's zarr.json takes, and its line in the manifest."""

_RECORD_BYTES = 120
"""About what one file of a shard takes in the manifest."""

_SHARDS_IN_MEMORY = 2
"""One is gathered while the one before it is written."""

_COPIES_FOR_MEDIAN = 3
"""Of some rows of a shard, in float32, while their geometric median is sought."""

_BYTES_A_ROW = 64
"""What a row takes besides its activations: names, places and masks."""


@dataclass(frozen=True)
class Cost:
    """What a harvest will take.

    Attributes:
        layout: of the store.
        text: what becomes of the dataset.
        bytes_on_disk: of the finished store.
        bytes_in_memory: the process's peak, libraries and model included.
        bytes_on_device: the peak on a GPU; 0 without one.
        seconds: of the forward passes, by one measured batch; writing overlaps them.
    """

    layout: Layout
    text: TextCounts
    bytes_on_disk: int
    bytes_in_memory: int
    bytes_on_device: int
    seconds: float

    def to_json(self) -> dict[str, Any]:
        """For people and machines, before anything is written."""
        rows = {name: split.n_rows for name, split in self.layout.splits.items()}
        return {
            "tokens": sum(rows.values()),
            "bytes_on_disk": self.bytes_on_disk,
            "bytes_in_memory": self.bytes_in_memory,
            "bytes_on_device": self.bytes_on_device,
            "seconds": round(self.seconds, 1),
            "text": asdict(self.text),
            "layout": self.layout.to_attributes(),
        }


def estimate_cost(
    layout: Layout,
    streams: Mapping[str, Stream],
    counts: TextCounts,
    model: SourceModel,
    batch_size: int,
) -> Cost:
    """Run one batch, and reckon the rest from it.

    Args:
        layout: of the store to be.
        streams: the tokenised text.
        counts: what became of the dataset.
        model: the source model.
        batch_size: sequences in a forward pass.
    """
    assert layout.packing is not None
    stream = streams["train"]
    tokens = stream.sequences(layout.packing, 0, min(batch_size, stream.n_sequences))
    batch = torch.from_numpy(tokens.astype(np.int64))
    capture(model, batch, layout.hook_points)  # the first pass allocates and compiles
    started = time.perf_counter()
    rows = {
        n: a[:, 1:].flatten(0, 1).cpu()
        for n, a in capture(model, batch, layout.hook_points).items()
    }
    seconds = time.perf_counter() - started
    on_device = torch.cuda.max_memory_allocated() if model.device.type == "cuda" else 0
    sequences = sum(s.n_sequences + s.n_shards for s in layout.splits.values())
    return Cost(
        layout=layout,
        text=counts,
        bytes_on_disk=bytes_on_disk(layout, encoded_share_of(layout, rows)),
        bytes_in_memory=resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
        + shard_memory(layout),
        bytes_on_device=on_device,
        seconds=seconds * sequences / len(batch),
    )


def bytes_on_disk(layout: Layout, encoded_share: Mapping[str, float] | None = None) -> int:
    """What a finished store takes.

    Args:
        layout: of the store.
        encoded_share: by hook point, bytes of an encoded chunk over bytes of its
            rows; 1 if not given, which no codec exceeds but by its checksum.
    """
    shares = encoded_share or {}
    total = sum(_split_bytes(layout, split, shares) for split in layout.splits.values())
    return total + min(SAMPLE_ROWS, layout.splits["train"].n_rows) * 8 + 4 * _METADATA_BYTES


def encoded_share_of(layout: Layout, rows: Mapping[str, torch.Tensor]) -> dict[str, float]:
    """By hook point, bytes of an encoded chunk over bytes of its rows, of the rows given."""
    if layout.codec == "bytes":
        return {}
    shares = {}
    for hook_point in layout.hook_points:
        some = rows[hook_point.name][: layout.rows_per_chunk(hook_point)]
        stored = (
            calibrate(some).quantise(some)[0]
            if layout.dtype == "int8"
            else some.to(layout.stored.torch)
        )
        plain = byte_view(stored.contiguous().view(torch.uint8).numpy())
        shares[hook_point.name] = len(ENCODERS[layout.codec](plain)) / len(plain)
    return shares


def shard_memory(layout: Layout) -> int:
    """What the shards take that are in memory at a time."""
    widths = [h.d_in * layout.stored.itemsize for h in layout.hook_points]
    rows = min(layout.rows_per_shard, max(s.n_rows for s in layout.splits.values()))
    widened = max(h.d_in for h in layout.hook_points) * torch.float32.itemsize
    median = _COPIES_FOR_MEDIAN * min(MEDIAN_ROWS, rows) * widened
    return _SHARDS_IN_MEMORY * rows * (sum(widths) + _BYTES_A_ROW) + median


def _split_bytes(layout: Layout, split: Split, shares: Mapping[str, float]) -> int:
    packing = layout.packing
    rows_on_disk = split.n_shards * split.rows_per_shard
    total = sum(np.dtype(ROW_ARRAYS[name]).itemsize for name in layout.row_values) * rows_on_disk
    files, arrays = len(layout.row_values) * split.n_shards, len(layout.row_values)
    if packing is not None:
        total += split.n_sequences * (packing.context_size * 4 + (0 if packing.packed else 4))
        total += split.n_documents * 12
        arrays += 4
    for hook_point in layout.hook_points:
        total += _hook_point_bytes(layout, split, hook_point, shares.get(hook_point.name, 1.0))
        files += (3 + (layout.dtype == "int8") + (split.name == "train")) * split.n_shards
        arrays += 3 + (layout.dtype == "int8") + 8 * (split.name == "train")
    return total + _RECORD_BYTES * files + _METADATA_BYTES * arrays


def _hook_point_bytes(layout: Layout, split: Split, hook_point: HookPoint, share: float) -> int:
    chunk = layout.rows_per_chunk(hook_point)
    chunks = sum(-(-len(split.shard(k)) // chunk) for k in range(split.n_shards))
    # Rows behind the last one are one value, of which zstd makes next to nothing.
    encoded = split.n_rows if layout.codec == "zstd" else chunks * chunk
    total = int(encoded * hook_point.d_in * layout.stored.itemsize * share)
    total += split.n_shards * (split.rows_per_shard // chunk * (16 + 4) + 4)
    total += split.n_shards * split.rows_per_shard * (8 if layout.dtype == "int8" else 4)
    if split.name == "train":
        figures = split.n_shards * len(SHARD_FIGURES) + 4 + (layout.dtype == "int8")
        total += figures * hook_point.d_in * 8 + NORM_BINS * 8 + split.n_shards * (8 + 700)
    return total
