"""The random sample of training rows: how many, which, and from which shards."""

import dataclasses

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from saeflow.harvest import sample as sample_module
from saeflow.harvest.layout import Layout, Order, Split
from saeflow.harvest.sample import SAMPLE_ROWS, sample_rows
from saeflow.harvest.store import Store
from saeflow.harvest.tokens import Packing


def layout_of(n_rows: int, rows_per_shard: int, order: Order = "permuted") -> Layout:
    return Layout(
        dtype="float32",
        packing=Packing(context_size=11, bos=0, separator=1),
        order=order,
        seed=0,
        rows_per_shard=rows_per_shard,
        hook_points=(),
        splits={"train": Split("train", 1, n_rows, 1, rows_per_shard)},
    )


@given(
    n_rows=st.integers(1, 10**6),
    rows_per_shard=st.integers(500, 10**6),
    order=st.sampled_from(["permuted", "sequence"]),
)
def test_each_shard_gives_in_proportion_and_no_row_twice(
    n_rows: int, rows_per_shard: int, order: Order
) -> None:
    layout = layout_of(n_rows, rows_per_shard, order)
    rows = sample_rows(layout).astype(int)
    assert len(rows) == min(SAMPLE_ROWS, n_rows)
    assert (np.diff(rows) > 0).all()
    assert 0 <= rows[0] <= rows[-1] < n_rows
    split = layout.splits["train"]
    found = np.bincount(rows // rows_per_shard, minlength=split.n_shards)
    due = np.array([len(split.shard(k)) for k in range(split.n_shards)]) * len(rows) / n_rows
    assert np.abs(found - due).max() < 1


def test_of_a_permuted_shard_it_is_the_first_rows() -> None:
    rows = sample_rows(layout_of(2 * SAMPLE_ROWS, SAMPLE_ROWS // 2)).astype(int)
    assert set(rows % (SAMPLE_ROWS // 2)) == set(range(SAMPLE_ROWS // 4))


def test_in_the_order_of_sequences_it_is_spread_over_the_shard() -> None:
    layout = layout_of(4 * SAMPLE_ROWS, 2 * SAMPLE_ROWS, "sequence")
    rows = sample_rows(layout).astype(int)
    tenths = np.bincount(rows * 10 // (4 * SAMPLE_ROWS))
    assert tenths == pytest.approx(np.full(10, SAMPLE_ROWS / 10), rel=0.05)
    assert np.bincount(np.diff(rows)).argmax() == 1  # no grid: gaps as chance makes them
    assert 0.2 < (np.diff(rows) == 1).mean() < 0.3
    other = sample_rows(dataclasses.replace(layout, seed=1))
    assert not np.array_equal(rows, other)


def test_the_store_holds_it(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    assert np.array_equal(store.array("sample")[:], np.arange(store.train.n_rows))
    monkeypatch.setattr(sample_module, "SAMPLE_ROWS", 100)
    assert len(sample_rows(store.layout)) == 100
