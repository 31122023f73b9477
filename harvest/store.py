"""The store, read: opened with every refusal it deserves, and its rows by number."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
import zarr
from jaxtyping import Float, UInt32
from torch import Tensor

from saeflow.errors import BadInputError
from saeflow.files import byte_view
from saeflow.harvest import commits
from saeflow.harvest.layout import FORMAT, HookPoint, Layout, Split
from saeflow.harvest.manifest import ROOT
from saeflow.harvest.quantise import Quantisation
from saeflow.harvest.reader import RowArray, RowReader
from saeflow.harvest.remote import connect
from saeflow.location import Location, Place, Url, locate


@dataclass(frozen=True)
class Store:
    """An opened store.

    Attributes:
        path: its folder, or its URL.
        layout: where its rows are.
        provenance: source model, dataset, and how they were run.
        identity: sha256 of the manifest, which holds a checksum of every file.
    """

    path: Location
    layout: Layout
    provenance: Mapping[str, Any]
    identity: str
    _readers: dict[RowArray, RowReader] = field(default_factory=dict, repr=False, compare=False)

    @property
    def folder(self) -> Path:
        """Its folder, for what only files on a disk can do.

        Raises:
            BadInputError: it is behind a URL.
        """
        if isinstance(self.path, Url):
            raise BadInputError(f"store {self.path} is not in a folder: copy it to a disk first")
        return self.path

    @property
    def remote(self) -> bool:
        """Whether reading a few bytes of it costs as much as reading many."""
        return isinstance(self.path, Url)

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
        return zarr.open_array(self._arrays, path=path, mode="r", zarr_format=3)

    def statistics(self, hook_point: HookPoint) -> dict[str, Any]:
        """A hook point's merged figures, arrays and scalars: see docs/store-format.md."""
        folder = f"stats/{hook_point.name}"
        names = ("mean", "std", "absmax", "geometric_median", "median_norm", "norm_histogram")
        arrays = {name: np.asarray(self.array(f"{folder}/{name}")[:]) for name in names}
        group = zarr.open_group(self._arrays, path=folder, mode="r", zarr_format=3)
        scalars = group.attrs["saeflow"]
        assert isinstance(scalars, dict)
        return {**arrays, **scalars}

    def quantisations(self) -> dict[str, Quantisation]:
        """What each hook point's int8 rows are widened with; none in other precisions."""
        if self.layout.dtype != "int8":
            return {}
        return {
            h.name: Quantisation.from_array(np.asarray(self.array(f"quant/{h.name}")[:]))
            for h in self.layout.hook_points
        }

    def sequences(self, split: Split, first: int, stop: int) -> UInt32[np.ndarray, "n context"]:
        """Token ids of some sequences of a split, position 0 included."""
        return np.asarray(self.array(f"{split.folder}sequences/token")[first:stop], np.uint32)

    def rows(
        self, hook_point: HookPoint, split: Split, runs: Sequence[range]
    ) -> Float[Tensor, "rows d_in"]:
        """Read runs of consecutive stored rows, one after another.

        Args:
            hook_point: which activations.
            split: from which split.
            runs: row numbers in stored order; no run crosses a shard.

        Returns:
            The rows in the stored precision; those of an int8 store widened to float32.

        Raises:
            SaeflowError: a shard file is missing, cut short, damaged, or not laid out
                as format 1 says.
        """
        out = torch.empty(sum(map(len, runs)), hook_point.d_in, dtype=self.layout.stored.torch)
        self._read(self.activations(hook_point, split), runs, out)
        if self.layout.dtype != "int8":
            return out
        scales = torch.empty(len(out), dtype=torch.float32)
        self._read(self.scales(hook_point, split), runs, scales)
        return self.quantisations()[hook_point.name].dequantise(out, scales)

    def activations(self, hook_point: HookPoint, split: Split) -> RowArray:
        """Where a reader finds a hook point's rows."""
        path = f"{split.folder}acts/{hook_point.name}"
        return RowArray(
            path=str(self.path / path),
            name=path,
            width=hook_point.d_in * self.layout.stored.itemsize,
            n_rows=split.n_rows,
            rows_per_shard=split.rows_per_shard,
            rows_per_chunk=self.layout.rows_per_chunk(hook_point),
            codec=self.layout.codec,
        )

    def scales(self, hook_point: HookPoint, split: Split) -> RowArray:
        """Where a reader finds the scale of each int8 row, float32."""
        path = f"{split.folder}scale/{hook_point.name}"
        return RowArray(str(self.path / path), path, 4, split.n_rows, split.rows_per_shard)

    @cached_property
    def _arrays(self) -> Any:
        """What zarr reads it through."""
        if isinstance(self.path, Path):
            return self.path
        from saeflow.harvest.remote_arrays import RemoteArrays

        return RemoteArrays(connect(self.path))

    def _read(self, array: RowArray, runs: Sequence[range], out: Tensor) -> None:
        if array not in self._readers:
            self._readers[array] = RowReader(array)
        self._readers[array].read(runs, byte_view(out.view(torch.uint8).numpy()))

    def close(self) -> None:
        """Close the shard files."""
        for reader in self._readers.values():
            reader.close()
        self._readers.clear()


def read_attributes(path: Location) -> dict[str, Any] | None:
    """What saeflow wrote into a store's root, or None if there is no saeflow store.

    Raises:
        BadInputError: the store is of a newer format, or it or its URL may not be read.
        SaeflowError: the server of its URL can't be reached.
    """
    try:
        metadata = json.loads(_read_root(path))
        attributes = metadata["attributes"]["saeflow"]
        version = int(attributes["format"])
    except PermissionError as error:
        raise unreadable(path, ROOT, error) from error
    except (OSError, ValueError, KeyError, TypeError):
        return None
    if version > FORMAT:
        raise BadInputError(
            f"store {path} is of format {version}, newer than this saeflow reads ({FORMAT}): "
            "upgrade saeflow"
        )
    return dict(attributes)


def open_store(place: Place | Url) -> Store:
    """Open a complete store.

    Args:
        place: its folder, or its URL.

    Raises:
        BadInputError: there is no store, it is incomplete, or of a newer format, or its
            URL can't be used.
        SaeflowError: the server of its URL can't be reached.
    """
    path = locate(place)
    if isinstance(path, Path) and not path.is_dir():
        raise BadInputError(f"store {path} does not exist: check the path, or run saeflow harvest")
    attributes = read_attributes(path)
    if attributes is None and isinstance(path, Url):
        raise BadInputError(f"there is no saeflow store at {path}: check the URL")
    if attributes is None:
        raise BadInputError(f"{path} is not a saeflow store: give the --out of a saeflow harvest")
    if attributes.get("state") != "complete":
        raise BadInputError(
            f"store {path} is incomplete ({_progress(path, attributes)}): "
            "run the same saeflow harvest or import again, it continues"
        )
    try:
        layout = Layout.from_attributes(attributes["layout"])
        return Store(path, layout, attributes["provenance"], attributes["manifest_sha256"])
    except (KeyError, TypeError, ValueError) as error:
        raise BadInputError(f"store {path} has unreadable attributes: {error!r}") from error


def unreadable(store: Location, file: str, error: OSError) -> BadInputError:
    """The error of a store that is there, and that this user may not read."""
    return BadInputError(
        f"store {store} can't be read ({file}: {error.strerror}): give yourself permission to "
        "read all of it"
    )


def _read_root(path: Location) -> bytes:
    """The root's metadata; empty if there is none."""
    if isinstance(path, Path):
        return (path / ROOT).read_bytes()
    return connect(path).read(ROOT) or b""


def _progress(path: Location, attributes: dict[str, Any]) -> str:
    if "layout" not in attributes:
        return "its text is not tokenised yet"
    shards = sum(split["n_shards"] for split in attributes["layout"]["splits"].values())
    if isinstance(path, Url):
        return f"not all of its {shards} shards are there"
    return f"{len(commits.read_records(path))} of {shards} shards"
