"""Another implementation of zarr reads a store as zarr-python does, and writes the same."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorstore
import zarr

from saeflow.harvest.config import HarvestConfig
from saeflow.harvest.run import harvest_activations

HOOKS = ("blocks.0.hook_resid_post", "blocks.1.attn.hook_z")
VARIANTS: dict[str, dict[str, Any]] = {
    "bfloat16": {},
    "int8, not packed": {"dtype": "int8", "pack": False},
    "int8, crc32c": {"dtype": "int8", "codec": "crc32c"},
    "float32, crc32c": {"dtype": "float32", "codec": "crc32c"},
    "bfloat16, zstd": {"codec": "zstd"},
}


@pytest.fixture(scope="module", params=VARIANTS)
def store(
    request: pytest.FixtureRequest,
    tiny_options: Callable[..., HarvestConfig],
    tmp_path_factory: pytest.TempPathFactory,
) -> Path:
    """Stores of several shards of both splits, the last ones not full."""
    out = tmp_path_factory.mktemp("store") / "store"
    harvest_activations(tiny_options(hook=HOOKS, out=out, tokens=3000, **VARIANTS[request.param]))
    return out


def opened(array: Path, **options: Any) -> Any:
    """An array as tensorstore opens it."""
    kvstore = {"driver": "file", "path": f"{array}/"}
    return tensorstore.open({"driver": "zarr3", "kvstore": kvstore}, **options).result()


def arrays_of(store: Path) -> list[Path]:
    files = store.rglob("zarr.json")
    return [f.parent for f in files if json.loads(f.read_text())["node_type"] == "array"]


def test_tensorstore_reads_every_array_as_zarr_does(store: Path) -> None:
    arrays = arrays_of(store)
    assert len(arrays) > 30
    for array in arrays:
        expected = np.asarray(zarr.open_array(array, mode="r")[:])
        found = np.asarray(opened(array, read=True).read().result())
        assert found.dtype == expected.dtype
        assert np.array_equal(found, expected, equal_nan=expected.dtype.kind == "f"), array


def test_bits_can_be_relabelled_as_the_bfloat16_that_they_are(
    tiny_store: Path, tmp_path: Path
) -> None:
    """tensorstore knows the dtype that zarr-python lacks: the metadata is all that changes."""
    copy = shutil.copytree(tiny_store / "acts" / HOOKS[0], tmp_path / "acts")
    metadata = json.loads((copy / "zarr.json").read_text())
    metadata |= {"data_type": "bfloat16", "fill_value": "NaN"}
    (copy / "zarr.json").write_text(json.dumps(metadata))
    bits = np.asarray(zarr.open_array(tiny_store / "acts" / HOOKS[0], mode="r")[:])
    rows = np.asarray(opened(copy, read=True).read().result()).astype(np.float32)
    assert np.array_equal(rows, (bits.astype(np.uint32) << 16).view(np.float32))


def test_shards_that_tensorstore_writes_are_ours(store: Path, tmp_path: Path) -> None:
    """The same rows written anew: full shards are the same bytes, but for zstd's encoder."""
    for array in (store / "acts" / hook for hook in HOOKS):
        copy = tmp_path / array.name
        copy.mkdir()
        shutil.copy(array / "zarr.json", copy)
        rows = np.asarray(zarr.open_array(array, mode="r")[:])
        opened(copy, write=True).write(rows).result()
        assert np.array_equal(np.asarray(zarr.open_array(copy, mode="r")[:]), rows)
        metadata = json.loads((array / "zarr.json").read_text())
        codecs = metadata["codecs"][0]["configuration"]["codecs"]
        n_full = rows.shape[0] // 512
        assert n_full >= 4
        for shard in range(n_full):
            ours, theirs = ((a / f"c/{shard}/0").read_bytes() for a in (array, copy))
            assert ours == theirs or codecs[-1]["name"] == "zstd"
