"""The store, read: opened with every refusal it deserves, and its rows by number."""

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
import zarr
from jaxtyping import Float, UInt32
from torch import Tensor

from saeflow.errors import BadInputError, SaeflowError
from saeflow.files import byte_view
from saeflow.harvest import commits
from saeflow.harvest.layout import FORMAT, HookPoint, Layout, Split
from saeflow.harvest.shards import with_crc


@dataclass(frozen=True)
class Store:
    """An opened store.

    Attributes:
        path: its folder.
        layout: where its rows are.
        provenance: source model, dataset, and how they were run.
        identity: sha256 of the manifest, which holds a checksum of every file.
    """

    path: Path
    layout: Layout
    provenance: Mapping[str, Any]
    identity: str
    _descriptors: dict[Path, int] = field(default_factory=dict, repr=False, compare=False)

    @property
    def train(self) -> Split:
        """The rows to train on."""
        return self.layout.splits["train"]

    @property
    def held_out(self) -> Split:
        """The rows of held-out documents."""
        return self.layout.splits["heldout"]

    def hook_point(self, name: str | None) -> HookPoint:
        """A hook point by name, or the only one.

        Raises:
            BadInputError: the store doesn't hold it, or holds several and none was named.
        """
        held = {h.name: h for h in self.layout.hook_points}
        if name is None and len(held) == 1:
            return self.layout.hook_points[0]
        if name is None:
            raise BadInputError(
                f"store {self.path} holds several hook points: "
                f"choose with --hook from {', '.join(held)}"
            )
        if name not in held:
            raise BadInputError(
                f"store {self.path} does not hold hook point {name}: it holds {', '.join(held)}"
            )
        return held[name]

    def array(self, path: str) -> zarr.Array[Any]:
        """One of the store's arrays, through zarr."""
        return zarr.open_array(self.path / path, mode="r", zarr_format=3)

    def statistics(self, hook_point: HookPoint) -> dict[str, Any]:
        """A hook point's merged figures: `mean`, `std`, `absmax` as float64 arrays, and scalars."""
        folder = f"stats/{hook_point.name}"
        arrays = {n: np.asarray(self.array(f"{folder}/{n}")[:]) for n in ("mean", "std", "absmax")}
        scalars = zarr.open_group(self.path / folder, mode="r").attrs["saeflow"]
        assert isinstance(scalars, dict)
        return {**arrays, **scalars}

    def sequences(self, split: Split, first: int, stop: int) -> UInt32[np.ndarray, "n context"]:
        """Token ids of some sequences of a split, position 0 included."""
        return np.asarray(self.array(f"{split.folder}sequences/token")[first:stop], np.uint32)

    def rows(
        self, hook_point: HookPoint, split: Split, runs: Sequence[range]
    ) -> Float[Tensor, "rows d_in"]:
        """Read runs of consecutive stored rows, one after another, in the stored precision.

        Args:
            hook_point: which activations.
            split: from which split.
            runs: row numbers in stored order; no run crosses a shard.

        Raises:
            SaeflowError: a shard file is missing, cut short or not laid out as format 1 says.
        """
        stored = self.layout.stored
        out = torch.empty(sum(map(len, runs)), hook_point.d_in, dtype=stored.torch)
        target = byte_view(out.view(torch.uint8).numpy())
        width = hook_point.d_in * stored.itemsize
        begin = 0
        for run in runs:
            shard, row = divmod(run.start, split.rows_per_shard)
            descriptor, path = self._shard(hook_point, split, shard)
            part = target[begin : begin + len(run) * width]
            if os.preadv(descriptor, [part], row * width) != len(part):
                raise SaeflowError(
                    f"{path} ends before row {run.stop - 1}: harvest the store again"
                )
            begin += len(part)
        return out

    def _shard(self, hook_point: HookPoint, split: Split, shard: int) -> tuple[int, Path]:
        path = self.path / f"{split.folder}acts/{hook_point.name}/c/{shard}/0"
        if path not in self._descriptors:
            try:
                descriptor = os.open(path, os.O_RDONLY)
            except OSError as error:
                raise SaeflowError(f"{path} can't be opened: {error.strerror}") from error
            self._check_index(descriptor, path, hook_point, split, shard)
            self._descriptors[path] = descriptor
        return self._descriptors[path], path

    def _check_index(
        self, descriptor: int, path: Path, hook_point: HookPoint, split: Split, shard: int
    ) -> None:
        """Chunks must follow each other from offset 0: then the file's body is the matrix."""
        rows = self.layout.rows_per_chunk(hook_point)
        chunk_bytes = rows * hook_point.d_in * self.layout.stored.itemsize
        present, all_chunks = -(-len(split.shard(shard)) // rows), split.rows_per_shard // rows
        length = 16 * all_chunks + 4
        size = os.fstat(descriptor).st_size
        index = os.pread(descriptor, length, max(0, size - length))
        expected = np.full((all_chunks, 2), 2**64 - 1, "<u8")
        expected[:present, 0] = chunk_bytes * np.arange(present)
        expected[:present, 1] = chunk_bytes
        if index != with_crc(expected.tobytes()) or size != present * chunk_bytes + length:
            raise SaeflowError(
                f"{path} is damaged or not laid out as format {FORMAT}: harvest the store again"
            )

    def close(self) -> None:
        """Close the shard files."""
        for descriptor in self._descriptors.values():
            os.close(descriptor)
        self._descriptors.clear()


def read_attributes(path: Path) -> dict[str, Any] | None:
    """What saeflow wrote into a store's root, or None if the folder is no saeflow store.

    Raises:
        BadInputError: the store is of a newer format.
    """
    try:
        metadata = json.loads((path / "zarr.json").read_text(encoding="utf-8"))
        attributes = metadata["attributes"]["saeflow"]
        version = int(attributes["format"])
    except (OSError, ValueError, KeyError, TypeError):
        return None
    if version > FORMAT:
        raise BadInputError(
            f"store {path} is of format {version}, newer than this saeflow reads ({FORMAT}): "
            "upgrade saeflow"
        )
    return dict(attributes)


def open_store(path: Path) -> Store:
    """Open a complete store.

    Raises:
        BadInputError: there is no store, it is incomplete, or of a newer format.
    """
    if not path.is_dir():
        raise BadInputError(f"store {path} does not exist: check the path, or run saeflow harvest")
    attributes = read_attributes(path)
    if attributes is None:
        raise BadInputError(f"{path} is not a saeflow store: give the --out of a saeflow harvest")
    if attributes.get("state") != "complete":
        raise BadInputError(
            f"store {path} is incomplete ({_progress(path, attributes)}): "
            "run the same saeflow harvest again, it continues"
        )
    try:
        layout = Layout.from_attributes(attributes["layout"])
        return Store(path, layout, attributes["provenance"], attributes["manifest_sha256"])
    except (KeyError, TypeError, ValueError) as error:
        raise BadInputError(f"store {path} has unreadable attributes: {error!r}") from error


def _progress(path: Path, attributes: dict[str, Any]) -> str:
    if "layout" not in attributes:
        return "its text is not tokenised yet"
    shards = sum(split["n_shards"] for split in attributes["layout"]["splits"].values())
    return f"{len(commits.read_records(path))} of {shards} shards"
