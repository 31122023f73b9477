"""The arrays of a store, made and filled through zarr; docs/store-format.md names them all."""

import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import zarr
from zarr.abc.codec import BytesBytesCodec
from zarr.codecs import Crc32cCodec, ZstdCodec

from saeflow.harvest.layout import ROW_ARRAYS, SHARD_FIGURES, Codec, HookPoint, Layout, Split

CODECS: Mapping[Codec, tuple[BytesBytesCodec, ...]] = {
    "bytes": (),
    "crc32c": (Crc32cCodec(),),
    "zstd": (ZstdCodec(level=1, checksum=True),),
}
"""What zarr does with the bytes of a chunk of activations."""


def create_arrays(store: Path, layout: Layout, split: Split) -> None:
    """Create a split's row arrays: an absent row reads as not-a-number, or the largest id."""
    group = zarr.open_group(store, mode="a", zarr_format=3)
    for hook_point in layout.hook_points:
        _create_activations(group, layout, split, hook_point)
        if split.name == "train":
            group.create_array(
                f"stats/{hook_point.name}/shards",
                shape=(split.n_shards, len(SHARD_FIGURES), hook_point.d_in),
                chunks=(1, len(SHARD_FIGURES), hook_point.d_in),
                dtype="float64",
                fill_value=math.nan,
                compressors=None,
                dimension_names=("shard", "_".join(SHARD_FIGURES), "d_in"),
            )
    for name in layout.row_values:
        dtype = ROW_ARRAYS[name]
        _create_row_array(group, split, name, dtype, int(np.iinfo(dtype).max))


def _create_activations(
    group: zarr.Group, layout: Layout, split: Split, hook_point: HookPoint
) -> None:
    """`acts`, and what goes with it row by row or chunk by chunk."""
    name, shard = hook_point.name, split.rows_per_shard
    chunk = layout.rows_per_chunk(hook_point)
    group.create_array(
        f"{split.folder}acts/{name}",
        shape=(split.n_rows, hook_point.d_in),
        shards=(shard, hook_point.d_in),
        chunks=(chunk, hook_point.d_in),
        dtype=layout.stored.array,
        fill_value=layout.stored.fill,
        compressors=CODECS[layout.codec],
        dimension_names=("row", "d_in"),
        attributes={
            "saeflow": {"dtype": layout.dtype, "hook_point": name, "shape": list(hook_point.shape)}
        },
    )
    group.create_array(
        f"{split.folder}crc/{name}",
        shape=(-(-split.n_rows // chunk),),
        chunks=(shard // chunk,),
        dtype="uint32",
        fill_value=0,
        compressors=None,
        dimension_names=("chunk",),
    )
    _create_row_array(group, split, f"norm/{name}", "float32", math.nan)
    if layout.dtype == "int8":
        _create_row_array(group, split, f"scale/{name}", "float32", math.nan)


def _create_row_array(
    group: zarr.Group, split: Split, path: str, dtype: str, fill: int | float
) -> None:
    group.create_array(
        f"{split.folder}{path}",
        shape=(split.n_rows,),
        chunks=(split.rows_per_shard,),
        dtype=dtype,
        fill_value=fill,
        compressors=None,
        dimension_names=("row",),
    )


def write_array(store: Path, path: str, values: np.ndarray, dimensions: tuple[str, ...]) -> None:
    """Write a small array as one chunk."""
    write_blocks(
        store, path, values, dimensions, len(values), lambda first, stop: values[first:stop]
    )


def write_blocks(
    store: Path,
    path: str,
    like: np.ndarray,
    dimensions: tuple[str, ...],
    rows_per_chunk: int,
    block: Callable[[int, int], np.ndarray],
) -> None:
    """Write an array chunk by chunk, over whatever an interrupted run left there.

    Args:
        store: the store's folder.
        path: the array's path in it.
        like: an array of the shape and dtype to write.
        dimensions: names of the axes.
        rows_per_chunk: along the first axis.
        block: gives the rows from `first` to `stop` (excluded).
    """
    group = zarr.open_group(store, mode="a", zarr_format=3)
    rows = max(1, min(rows_per_chunk, len(like)))
    array: zarr.Array[Any] = group.create_array(
        path,
        shape=like.shape,
        chunks=(rows, *like.shape[1:]),
        dtype=like.dtype,
        compressors=None,
        dimension_names=dimensions,
        config={"write_empty_chunks": True},
        overwrite=True,
    )
    for first in range(0, len(like), rows):
        array[first : first + rows] = block(first, min(first + rows, len(like)))
