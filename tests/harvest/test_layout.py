"""The layout: attributes there and back, and the arithmetic of shards and chunks."""

import dataclasses
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from saeflow.harvest.layout import (
    DTYPES,
    Codec,
    HookPoint,
    Layout,
    Split,
    choose_rows_per_shard,
    sequence_chunk,
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


@pytest.mark.parametrize("codec", ["bytes", "crc32c", "zstd"])
@pytest.mark.parametrize("dtype", DTYPES)
def test_every_precision_and_codec_there_and_back(dtype: str, codec: Codec) -> None:
    packing = Packing(context_size=11, bos=0, separator=1, packed=False)
    layout = dataclasses.replace(layout_of(dtype=dtype), codec=codec, packing=packing)
    assert Layout.from_attributes(json.loads(json.dumps(layout.to_attributes()))) == layout


def test_imported_rows_have_no_packing_and_few_row_values() -> None:
    layout = dataclasses.replace(layout_of(), packing=None, row_values=("doc",))
    attributes = json.loads(json.dumps(layout.to_attributes()))
    assert attributes["packing"] is None
    assert Layout.from_attributes(attributes) == layout


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
    [
        _without("dtype"),
        _without("splits"),
        {**_without("dtype"), "dtype": "int3"},
        {**_without("codec"), "codec": "numcodecs.pickle"},
        {**_without("row_values"), "row_values": ["../token"]},
        {**_without("packing"), "packing": {"context_size": 11}},
    ],
    ids=["no dtype", "no splits", "unknown dtype", "unknown codec", "a path", "half a packing"],
)
def test_attributes_that_describe_no_layout_are_refused(attributes: dict[str, Any]) -> None:
    with pytest.raises(
        (KeyError, ValueError, TypeError), match=r"dtype|splits|int3|pickle|token|bos"
    ):
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
