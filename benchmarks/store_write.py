"""How fast shards are written: beside a plain write of the same bytes, and beside zarr-python.

    python benchmarks/store_write.py [--folder DIR] [--megabytes 512] [--rounds 7]

Each round writes the same activations three ways, in turn: one plain `write` and
`fsync` of the shard files' bytes; saeflow's writer, which besides checksums every
chunk, writes the index, flushes and renames; and zarr-python, with a flush of its
files afterwards. The medians of the rounds' ratios are printed beside the bound, and
the files are compared byte for byte. Exits 1 if the bound does not hold.
"""

import argparse
import os
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
import zarr

from saeflow.harvest.arrays import create_arrays
from saeflow.harvest.layout import HookPoint, Layout, Split, choose_rows_per_shard
from saeflow.harvest.shard_files import ShardWriter, write_activations
from saeflow.harvest.shards import GatheredShard, new_shard, place_shard

BOUND = 0.85
HOOK = "blocks.0.hook_resid_post"


def flush(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    os.fsync(descriptor)
    os.close(descriptor)


def gather(d_in: int, n_bytes: int) -> tuple[Layout, list[GatheredShard]]:
    """Shards of random numbers, as large as a default store's."""
    n_rows = n_bytes // (2 * d_in)
    size = choose_rows_per_shard(d_in, 2, n_rows)
    n_rows = n_rows // size * size
    layout = Layout(
        dtype="bfloat16",
        packing=None,
        order="permuted",
        seed=0,
        rows_per_shard=size,
        hook_points=(HookPoint(HOOK, (d_in,)),),
        row_values=(),
        splits={"train": Split("train", 0, n_rows, 0, size)},
    )
    shards = []
    for k in range(layout.splits["train"].n_shards):
        place = place_shard(layout, layout.splits["train"], k)
        shards.append(new_shard(layout, place, {}, quantisations={}))
        matrix = shards[-1].matrices[HOOK]
        matrix.view(torch.int32).random_(generator=torch.Generator().manual_seed(k))
    return layout, shards


def write_plainly(folder: Path, _layout: Layout, shards: list[GatheredShard]) -> None:
    for k, shard in enumerate(shards):
        path = folder / f"shard{k}"
        with path.open("wb") as file:
            file.write(shard.matrices[HOOK].view(torch.uint8).numpy().data)
            file.flush()
            os.fsync(file.fileno())


def write_ours(folder: Path, layout: Layout, shards: list[GatheredShard]) -> None:
    for shard in shards:
        writer = ShardWriter(folder)
        write_activations(writer, layout, layout.hook_points[0], shard)
        writer.rename()


def write_with_zarr(folder: Path, layout: Layout, shards: list[GatheredShard]) -> None:
    array = zarr.open_array(folder / f"acts/{HOOK}", mode="r+", config={"write_empty_chunks": True})
    size = layout.rows_per_shard
    for k, shard in enumerate(shards):
        values = shard.matrices[HOOK].view(torch.uint8).numpy().view(np.uint16)
        array[k * size : (k + 1) * size] = values
        flush(folder / f"acts/{HOOK}/c/{k}/0")


WAYS: dict[str, Callable[[Path, Layout, list[GatheredShard]], None]] = {
    "plain write + fsync": write_plainly,
    "saeflow": write_ours,
    "zarr-python + fsync": write_with_zarr,
}


def measure(parent: Path, d_in: int, n_bytes: int, rounds: int) -> bool:
    layout, shards = gather(d_in, n_bytes)
    times: dict[str, list[float]] = {name: [] for name in WAYS}
    for number in range(rounds + 1):
        for name, write in WAYS.items():
            folder = parent / name.split()[0]
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir()
            create_arrays(folder, layout, layout.splits["train"])
            os.sync()
            started = time.perf_counter()
            write(folder, layout, shards)
            if number:  # the first round brings the memory and the disk's caches up
                times[name].append(time.perf_counter() - started)
    written = sum(shard.matrices[HOOK].nbytes for shard in shards)
    print(f"\nd_in {d_in}, {len(shards)} shards, {written / 1e6:.0f} MB, {rounds} rounds")
    ratios = {}
    for name, taken in times.items():
        pairs = zip(times["plain write + fsync"], taken, strict=True)
        ratios[name] = statistics.median(plain / one for plain, one in pairs)
        speed = written / statistics.median(taken) / 1e9
        print(f"  {name:22} {speed:5.2f} GB/s   {ratios[name]:5.2f} of plain")
    same = all(
        (parent / f"saeflow/acts/{HOOK}/c/{k}/0").read_bytes()
        == (parent / f"zarr-python/acts/{HOOK}/c/{k}/0").read_bytes()
        for k in range(len(shards))
    )
    print(f"  bound {BOUND}: {'holds' if ratios['saeflow'] >= BOUND else 'DOES NOT HOLD'}")
    print(f"  files byte-identical to zarr-python's: {'yes' if same else 'NO'}")
    return same and ratios["saeflow"] >= BOUND


def main() -> int:
    parser = argparse.ArgumentParser(description="Speed of writing shards.")
    parser.add_argument("--folder", type=Path, help="on the disk to be measured")
    parser.add_argument("--megabytes", type=int, default=512)
    parser.add_argument("--rounds", type=int, default=7)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=arguments.folder) as parent:
        held = [
            measure(Path(parent), d_in, arguments.megabytes * 2**20, arguments.rounds)
            for d_in in (768, 4096)
        ]
    return int(not all(held))


if __name__ == "__main__":
    sys.exit(main())
