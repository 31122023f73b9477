"""The arrays of a store as they are before the first shard, and how small ones are written."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr

from saeflow.harvest.arrays import CODECS, create_arrays, write_array, write_blocks
from saeflow.harvest.layout import Codec, HookPoint, Layout, Split
from saeflow.harvest.tokens import Packing

LAYOUT = Layout(
    dtype="float16",
    packing=Packing(context_size=11, bos=0, separator=1),
    order="permuted",
    seed=3,
    rows_per_shard=64,
    hook_points=(HookPoint("blocks.0.hook_resid_post", (8,)), HookPoint("z", (4, 8))),
    splits={
        "train": Split("train", 15, 150, 7, 64),
        "heldout": Split("heldout", 1, 10, 1, 64),
    },
)


def created(folder: Path, layout: Layout, split: str = "train") -> dict[str, zarr.Array[Any]]:
    """The arrays of a split by their paths."""
    create_arrays(folder, layout, layout.splits[split])
    group: Any = zarr.open_group(folder, mode="r")
    members = dict(group.members(max_depth=None))
    return {path: member for path, member in members.items() if isinstance(member, zarr.Array)}


@pytest.mark.parametrize("dtype", ["float16", "float32"])
def test_absent_rows_read_as_not_a_number_and_the_largest_id(tmp_path: Path, dtype: str) -> None:
    arrays = created(tmp_path, dataclasses.replace(LAYOUT, dtype=dtype))
    assert arrays["acts/z"].shape == (150, 32)
    for path in ("acts/z", "norm/z", "stats/z/shards"):
        assert np.isnan(arrays[path][:]).all()
    for path in ("token", "doc", "seq", "pos"):
        assert (np.asarray(arrays[path][:]) == 2**32 - 1).all()


def test_absent_rows_of_bfloat16_are_the_bits_of_not_a_number(tmp_path: Path) -> None:
    bits = created(tmp_path, dataclasses.replace(LAYOUT, dtype="bfloat16"))["acts/z"][:]
    assert np.isnan((np.asarray(bits, np.uint32) << 16).view(np.float32)).all()


def test_absent_rows_of_int8_have_a_scale_that_is_not_a_number(tmp_path: Path) -> None:
    arrays = created(tmp_path, dataclasses.replace(LAYOUT, dtype="int8"))
    assert (np.asarray(arrays["acts/z"][:]) == -128).all()
    assert np.isnan(arrays["scale/z"][:]).all()
    assert arrays["scale/z"].shape == (150,)


def test_only_int8_has_scales_and_only_training_rows_have_statistics(tmp_path: Path) -> None:
    of_rows = {"token", "doc", "seq", "pos"}
    of_hooks = {f"{a}/{h.name}" for a in ("acts", "crc", "norm") for h in LAYOUT.hook_points}
    statistics = {f"stats/{h.name}/shards" for h in LAYOUT.hook_points}
    assert set(created(tmp_path / "train", LAYOUT)) == of_rows | of_hooks | statistics
    held_out = set(created(tmp_path / "heldout", LAYOUT, "heldout"))
    assert held_out == {f"heldout/{path}" for path in of_rows | of_hooks}


def test_values_that_nobody_knows_have_no_array(tmp_path: Path) -> None:
    layout = dataclasses.replace(LAYOUT, packing=None, row_values=("doc",))
    assert {path for path in created(tmp_path, layout) if "/" not in path} == {"doc"}


@pytest.mark.parametrize("codec", CODECS)
def test_the_codec_is_that_of_chunks_of_activations_alone(tmp_path: Path, codec: Codec) -> None:
    arrays = created(tmp_path, dataclasses.replace(LAYOUT, codec=codec))
    for path, array in arrays.items():
        codecs = json.loads((tmp_path / path / "zarr.json").read_text())["codecs"]
        if path.startswith("acts/"):
            (sharding,) = codecs
            assert array.shards == (64, array.shape[1])
            assert sharding["configuration"]["index_location"] == "end"
            codecs = sharding["configuration"]["codecs"]
            assert [c["name"] for c in codecs[1:]] == ([codec] if codec != "bytes" else [])
        assert codecs[0]["name"] == "bytes"
        assert path.startswith("acts/") or len(codecs) == 1


@pytest.mark.parametrize("n_rows", [0, 1, 7, 10])
def test_blocks_make_up_the_array(tmp_path: Path, n_rows: int) -> None:
    values = np.arange(n_rows * 3, dtype=np.uint32).reshape(n_rows, 3)
    for _ in range(2):  # the second time over what the first one left
        write_blocks(tmp_path, "a/b", values, ("x", "y"), 4, lambda i, j: values[i:j])
    assert np.array_equal(zarr.open_array(tmp_path / "a/b", mode="r")[:], values)


def test_a_small_array_is_one_chunk_also_if_all_of_it_is_zero(tmp_path: Path) -> None:
    write_array(tmp_path, "a", np.zeros(100), ("x",))
    assert [p.stat().st_size for p in (tmp_path / "a/c").iterdir()] == [800]
