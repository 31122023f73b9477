"""What a store says of itself, whatever its size: metadata, merged statistics, no shard."""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from saeflow.harvest import commits
from saeflow.harvest.layout import SHARD_FIGURES, HookPoint, Layout, Split
from saeflow.harvest.statistics import NORM_BINS, norm_quantiles
from saeflow.harvest.store import Store

QUANTILES = (0.01, 0.05, 0.25, 0.5, 0.75, 0.95, 0.99, 0.999, 1.0)
"""Shares of the rows whose largest norm is told; the last one is the largest of all."""

Records = Mapping[tuple[str, int], commits.Record]


@dataclass(frozen=True)
class SplitInfo:
    """How much a split holds.

    Attributes:
        rows: as in the layout, whether or not they are built yet.
        sequences, documents: likewise; None if the rows were imported, and nobody knows.
        shards: how many there are to be.
        shards_built: how many of them are there.
    """

    rows: int
    sequences: int | None
    documents: int | None
    shards: int
    shards_built: int


@dataclass(frozen=True, kw_only=True)
class Figures:
    """A hook point's training rows in a few numbers; means and deviations are of ordinary rows.

    Attributes:
        mean_norm: of all rows, to within a few per cent: from the histogram.
        norm_quantiles: by the share of the rows, to within a bin of the histogram, a
            twelfth; at 1 the largest norm.
        mean_square: mean squared norm of ordinary rows.
        norm_of_mean, norm_of_geometric_median: how far from 0 the middle lies, by
            either reckoning.
        std_min, std_median, std_max: over the channels.
        absmax, absmax_channel: the largest number of all rows, and where it is.
        massive, massive_share: rows whose norm is more than ten times their shard's median.
        massive_tokens, massive_positions: massive rows by token id and by position,
            the commonest first.
    """

    mean_norm: float
    norm_quantiles: Mapping[float, float]
    mean_square: float
    norm_of_mean: float
    norm_of_geometric_median: float
    std_min: float
    std_median: float
    std_max: float
    absmax: float
    absmax_channel: int
    massive: int
    massive_share: float
    massive_tokens: Mapping[str, int]
    massive_positions: Mapping[str, int]


@dataclass(frozen=True, kw_only=True)
class HookPointInfo:
    """One hook point of a store.

    Attributes:
        name: TransformerLens's name.
        shape: of one token's activation.
        d_in: length of a row.
        rows_per_chunk: rows of an inner chunk.
        bytes: of its files that belong to shards.
        figures: None while the store is incomplete.
    """

    name: str
    shape: tuple[int, ...]
    d_in: int
    rows_per_chunk: int
    bytes: int
    figures: Figures | None


def split_info(layout: Layout, split: Split, records: Records | None) -> SplitInfo:
    """How much a split holds.

    Args:
        layout: of the store.
        split: one of its own.
        records: the shards that are built; None for all.
    """
    built = split.n_shards if records is None else sum(name == split.name for name, _ in records)
    if layout.packing is None:
        return SplitInfo(split.n_rows, None, None, split.n_shards, built)
    return SplitInfo(split.n_rows, split.n_sequences, split.n_documents, split.n_shards, built)


def hook_point_info(store: Store, hook_point: HookPoint, records: Records | None) -> HookPointInfo:
    """What there is to say of a hook point.

    Args:
        store: complete or not.
        hook_point: one of its own.
        records: the shards that are built; None for all, of a store that is a folder.
    """
    layout = store.layout
    return HookPointInfo(
        name=hook_point.name,
        shape=hook_point.shape,
        d_in=hook_point.d_in,
        rows_per_chunk=layout.rows_per_chunk(hook_point),
        bytes=(
            sum(_hook_point_bytes(store, split, hook_point) for split in layout.splits.values())
            if records is None
            else _recorded_bytes(records, hook_point.name)
        ),
        figures=summarise(store.statistics(hook_point)) if store.identity else None,
    )


def summarise(statistics: Mapping[str, Any]) -> Figures:
    """The figures of `Store.statistics`."""
    histogram, std, absmax = (statistics[name] for name in ("norm_histogram", "std", "absmax"))
    middles = 2.0 ** ((np.arange(NORM_BINS) - NORM_BINS // 2 + 0.5) / 8)
    quantiles = norm_quantiles(histogram, QUANTILES)
    massive, rows = statistics["massive"], statistics["massive"] + statistics["ordinary"]
    return Figures(
        mean_norm=float(histogram @ middles / histogram.sum()),
        norm_quantiles={share: float(norm) for share, norm in quantiles.items()},
        mean_square=statistics["mean_square"],
        norm_of_mean=float(np.linalg.norm(statistics["mean"])),
        norm_of_geometric_median=float(np.linalg.norm(statistics["geometric_median"])),
        std_min=float(std.min()),
        std_median=float(np.median(std)),
        std_max=float(std.max()),
        absmax=float(absmax.max()),
        absmax_channel=int(absmax.argmax()),
        massive=massive,
        massive_share=massive / rows,
        massive_tokens=statistics["massive_tokens"],
        massive_positions=statistics["massive_positions"],
    )


def bytes_of_shards(
    store: Store, hook_points: Sequence[HookPointInfo], records: Records | None
) -> int:
    """Bytes of the files that belong to shards, by arithmetic: there may be 100,000 of them.

    Args:
        store: complete or not.
        hook_points: all of its own.
        records: the shards that are built; None for all, of a store that is a folder.
    """
    if records is not None:
        return _recorded_bytes(records, None)
    splits = store.layout.splits.values()
    row_values = len(store.layout.row_values) * sum(_row_array_bytes(split) for split in splits)
    return row_values + sum(hook_point.bytes for hook_point in hook_points)


def bytes_of_other_files(store: Path, layout: Layout) -> int:
    """Bytes of the files that belong to no shard: metadata, sequences, merged statistics."""
    arrays = [*layout.row_values]
    for hook_point in layout.hook_points:
        arrays += [f"{kind}/{hook_point.name}" for kind in ("acts", "crc", "norm", "scale")]
        arrays.append(f"stats/{hook_point.name}/shards")
    in_shards = {
        store / f"{split.folder}{array}/c" for split in layout.splits.values() for array in arrays
    }
    total = 0
    for folder, inside, files in os.walk(store):
        inside[:] = [name for name in inside if Path(folder, name) not in in_shards]
        total += sum(Path(folder, name).stat().st_size for name in files)
    return total


def _row_array_bytes(split: Split) -> int:
    """Four bytes a row; the last shard's file is as long as the others."""
    return 4 * split.n_shards * split.rows_per_shard


def _hook_point_bytes(store: Store, split: Split, hook_point: HookPoint) -> int:
    """Bytes of a hook point's files that belong to shards."""
    layout = store.layout
    chunks_per_shard = layout.rows_per_shard // layout.rows_per_chunk(hook_point)
    index, checksums = 16 * chunks_per_shard + 4, 4 * chunks_per_shard
    total = _row_array_bytes(split) * (2 if layout.dtype == "int8" else 1)
    total += split.n_shards * checksums + _activation_bytes(store, split, hook_point, index)
    if split.name == "train":
        total += split.n_shards * len(SHARD_FIGURES) * hook_point.d_in * 8
    return total


def _activation_bytes(store: Store, split: Split, hook_point: HookPoint, index: int) -> int:
    """Bytes of the files of `acts`; only those of a compressed store have to be asked for."""
    layout = store.layout
    if layout.codec == "zstd":
        folder = Path(str(store.path), f"{split.folder}acts/{hook_point.name}/c")
        return sum((folder / f"{k}/0").stat().st_size for k in range(split.n_shards))
    rows = layout.rows_per_chunk(hook_point)
    chunk = rows * hook_point.d_in * layout.stored.itemsize + 4 * (layout.codec == "crc32c")
    return -(-split.n_rows // rows) * chunk + split.n_shards * index


def _recorded_bytes(records: Records, name: str | None) -> int:
    """Bytes of the files of shards that are built: all, or those of one hook point."""
    return sum(
        file["bytes"]
        for record in records.values()
        for path, file in record["files"].items()
        if name is None or name in path.split("/")
    )
