"""A store of random bfloat16 rows, written straight in format 1, for benchmarks of the reader."""

from pathlib import Path

import google_crc32c
import numpy as np

from saeflow.harvest.arrays import create_arrays
from saeflow.harvest.layout import HookPoint, Layout, Split, choose_rows_per_shard
from saeflow.harvest.store import Store


def write_store(folder: Path, d_in: int, n_bytes: int) -> Store:
    """A store of one hook point in whole shards, about `n_bytes`; only its `acts` are filled."""
    hook_point = HookPoint("h", (d_in,))
    shard = choose_rows_per_shard(d_in, 2, n_bytes // (2 * d_in))
    n_shards = max(1, round(n_bytes / (2 * d_in * shard)))
    split = Split("train", 0, n_shards * shard, 0, shard)
    layout = Layout(
        dtype="bfloat16",
        packing=None,
        order="permuted",
        seed=0,
        rows_per_shard=shard,
        hook_points=(hook_point,),
        row_values=(),
        splits={"train": split},
    )
    create_arrays(folder, layout, split)
    chunk_bytes = layout.rows_per_chunk(hook_point) * d_in * 2
    lengths = np.full(shard * d_in * 2 // chunk_bytes, chunk_bytes, "<u8")
    index = np.stack([np.cumsum(lengths) - lengths, lengths], axis=1).tobytes()
    index += int(google_crc32c.value(index)).to_bytes(4, "little")
    draw = np.random.default_rng(d_in)
    for k in range(n_shards):
        path = folder / f"acts/{hook_point.name}/c/{k}/0"
        path.parent.mkdir(parents=True)
        path.write_bytes(b"".join([*(draw.bytes(chunk_bytes) for _ in lengths), index]))
    return Store(folder, layout, {}, "synthetic")
