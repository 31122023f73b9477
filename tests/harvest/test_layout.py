"""The layout: attributes there and back, and the arithmetic of shards and chunks."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr
from hypothesis import given
from hypothesis import strategies as st

from saeflow.harvest.layout import (
    DTYPES,
    HookPoint,
    Layout,
    Split,
    choose_rows_per_shard,
    create_arrays,
    sequence_chunk,
    write_blocks,
)
from saeflow.harvest.store import Store
from saeflow.harvest.tokens import Packing


def layout_of(
    *, dtype: str = "bfloat16", rows_per_shard: int = 64, n_rows: int = 150, d_in: int = 8
) -> Layout:
    return Layout(
        dtype=dtype,
        packing=Packing(context_size=11, bos=0, separator=1),
        order="permuted",
        seed=3,
        rows_per_shard=rows_per_shard,
        hook_points=(HookPoint("blocks.0.hook_resid_post", (d_in,)), HookPoint("z", (4, d_in))),
        splits={
            "train": Split("train", n_rows // 10, n_rows, 7, rows_per_shard),
            "heldout": Split("heldout", 1, 10, 1, rows_per_shard),
        },
    )


def test_attributes_there_and_back_through_json() -> None:
    layout = layout_of()
    assert Layout.from_attributes(json.loads(json.dumps(layout.to_attributes()))) == layout


@pytest.mark.parametrize("name", ["../../etc", "a/b", "", "..", ".", "a\\b"])
def test_a_hook_point_whose_name_is_a_path_is_refused(name: str) -> None:
    attributes = layout_of().to_attributes()
    attributes["hook_points"][0]["name"] = name
    with pytest.raises(ValueError, match="is not a plain name"):
        Layout.from_attributes(attributes)


def _without(key: str) -> dict[str, Any]:
    return {k: v for k, v in layout_of().to_attributes().items() if k != key}


@pytest.mark.parametrize(
    "attributes",
    [_without("dtype"), _without("splits"), {**_without("dtype"), "dtype": "int3"}],
    ids=["no dtype", "no splits", "unknown dtype"],
)
def test_attributes_that_describe_no_layout_are_refused(attributes: dict[str, Any]) -> None:
    with pytest.raises((KeyError, ValueError), match=r"dtype|splits"):
        Layout.from_attributes(attributes)


@given(n_rows=st.integers(0, 3000), rows_per_shard=st.integers(1, 500))
def test_shards_hold_every_row_once_and_only_the_last_is_not_full(
    n_rows: int, rows_per_shard: int
) -> None:
    split = Split("train", 1, n_rows, 1, rows_per_shard)
    shards = [split.shard(k) for k in range(split.n_shards)]
    assert [row for shard in shards for row in shard] == list(range(n_rows))
    assert all(len(shard) == rows_per_shard for shard in shards[:-1])
    assert all(shards)


@given(
    d_in=st.integers(1, 20_000),
    rows_per_shard=st.integers(1, 2**20),
    dtype=st.sampled_from([*DTYPES]),
)
def test_chunks_divide_the_shard_and_stay_small(d_in: int, rows_per_shard: int, dtype: str) -> None:
    layout = layout_of(d_in=d_in, rows_per_shard=rows_per_shard, dtype=dtype)
    chunk = layout.rows_per_chunk(layout.hook_points[0])
    assert rows_per_shard % chunk == 0
    assert chunk == 1 or chunk * d_in * layout.stored.itemsize <= 2 * 2**20


@given(d_in=st.integers(1, 20_000), n_rows=st.integers(1, 10**9))
def test_a_shard_is_a_power_of_two_of_rows_and_no_larger_than_needed(
    d_in: int, n_rows: int
) -> None:
    rows = choose_rows_per_shard(d_in, 2, n_rows)
    assert rows.bit_count() == 1
    assert rows * d_in * 2 <= 256 * 2**20
    assert rows < 2 * n_rows


def test_absent_rows_read_as_not_a_number_and_the_largest_id(tmp_path: Path) -> None:
    layout = layout_of(dtype="float16")
    create_arrays(tmp_path, layout, layout.splits["train"])
    group: Any = zarr.open_group(tmp_path, mode="r")
    assert np.isnan(group["acts/z"][:]).all()
    assert group["acts/z"].shape == (150, 32)
    assert (group["token"][:] == 2**32 - 1).all()


@pytest.mark.parametrize("n_rows", [0, 1, 7, 10])
def test_blocks_make_up_the_array(tmp_path: Path, n_rows: int) -> None:
    values = np.arange(n_rows * 3, dtype=np.uint32).reshape(n_rows, 3)
    for _ in range(2):  # the second time over what the first one left
        write_blocks(tmp_path, "a/b", values, ("x", "y"), 4, lambda i, j: values[i:j])
    assert np.array_equal(zarr.open_array(tmp_path / "a/b", mode="r")[:], values)


def test_a_sequence_chunk_is_4_mib_of_tokens() -> None:
    assert sequence_chunk(128) * 128 * 4 == 4 * 2**20
    assert sequence_chunk(2**22) == 1


def test_the_tiny_store_is_described_by_its_attributes(store: Store) -> None:
    """What the other tests rely on: several shards, the last one partial, a held-out split."""
    assert store.train.n_shards > 4
    assert store.train.n_rows % 512
    assert store.held_out.n_shards > 1
    assert [h.shape for h in store.layout.hook_points] == [(32,), (4, 8)]
    assert store.array("acts/blocks.1.attn.hook_z").attrs["saeflow"] == {
        "dtype": "bfloat16",
        "hook_point": "blocks.1.attn.hook_z",
        "shape": [4, 8],
    }
