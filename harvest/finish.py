"""The end of a harvest: statistics merged, the manifest, and only then `complete`."""

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import zarr

from saeflow.files import write_json
from saeflow.harvest import commits
from saeflow.harvest.arrays import write_array
from saeflow.harvest.layout import HookPoint, Layout
from saeflow.harvest.manifest import ROOT as ROOT
from saeflow.harvest.manifest import complete_attributes, root_metadata, seal
from saeflow.harvest.shard_files import checksum
from saeflow.harvest.statistics import ShardStatistics, merge


def finish_store(store: Path, layout: Layout, attributes: dict[str, Any]) -> None:
    """Merge the shards' statistics, write the manifest, and mark the store complete.

    Args:
        store: the store's folder, every shard committed.
        layout: its layout.
        attributes: what its root says of it, `state` aside.
    """
    records = commits.read_records(store)
    for hook_point in layout.hook_points:
        write_statistics(store, layout, hook_point, records)
    shards = [record for _, record in sorted(records.items())]
    manifest = seal(attributes, _other_files(store, records), shards)
    write_json(store / commits.MANIFEST, manifest)
    commits.drop_log(store)
    digest = hashlib.sha256((store / commits.MANIFEST).read_bytes()).hexdigest()
    write_root(store, complete_attributes(manifest, digest))


def write_root(store: Path, attributes: dict[str, Any]) -> None:
    """Write the root group's metadata: one rename changes the state of the store."""
    write_json(store / ROOT, root_metadata(attributes))


def _other_files(
    store: Path, records: dict[tuple[str, int], commits.Record]
) -> dict[str, dict[str, int]]:
    """Bytes and crc32c of every file that belongs to no shard: metadata, sequences, statistics."""
    in_shards = {path for record in records.values() for path in record["files"]}
    found = {}
    for path in sorted(p for p in store.rglob("*") if p.is_file()):
        name = path.relative_to(store).as_posix()
        if name not in in_shards and name != ROOT and not name.startswith(f"{commits.FOLDER}/"):
            found[name] = checksum([path.read_bytes()])
    return found


def write_statistics(
    store: Path,
    layout: Layout,
    hook_point: HookPoint,
    records: Mapping[tuple[str, int], commits.Record],
) -> None:
    """Merge a hook point's statistics over all training shards."""
    folder = f"stats/{hook_point.name}"
    channels = np.asarray(zarr.open_array(store / folder / "shards", mode="r")[:])
    merged = merge(
        [
            ShardStatistics.from_record(
                records["train", k]["statistics"][hook_point.name], channels[k]
            )
            for k in range(layout.splits["train"].n_shards)
        ]
    )
    for name in ("mean", "std", "absmax", "geometric_median"):
        write_array(store, f"{folder}/{name}", getattr(merged, name), ("d_in",))
    write_array(store, f"{folder}/median_norm", merged.median_norm, ("shard",))
    write_array(store, f"{folder}/norm_histogram", merged.norm_histogram, ("bin",))
    zarr.open_group(store / folder, mode="a").update_attributes(
        {
            "saeflow": {
                "ordinary": merged.ordinary,
                "massive": merged.massive,
                "mean_square": merged.mean_square,
                "massive_tokens": dict(merged.massive_tokens),
                "massive_positions": dict(merged.massive_positions),
            }
        }
    )
