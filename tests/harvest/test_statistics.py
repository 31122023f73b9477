"""Statistics made shard by shard, held against numpy over all rows."""

import json

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from saeflow.harvest import statistics as statistics_module
from saeflow.harvest.statistics import NORM_BINS, ShardStatistics, merge, shard_statistics
from saeflow.harvest.store import Store


def rows_of(n: int, seed: int = 0, d_in: int = 5) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return 3 + torch.randn(n, d_in, generator=generator, dtype=torch.float64) * torch.arange(
        1, d_in + 1
    )


@given(sizes=st.lists(st.integers(20, 60), min_size=1, max_size=6), seed=st.integers(0, 1000))
def test_merged_shards_are_numpy_over_all_rows(sizes: list[int], seed: int) -> None:
    shards = [rows_of(size, seed + i) for i, size in enumerate(sizes)]
    merged = merge([shard_statistics(shard) for shard in shards])
    everything = torch.cat(shards).numpy()
    assert (merged.ordinary, merged.massive) == (len(everything), 0)
    np.testing.assert_allclose(merged.mean, everything.mean(0), rtol=1e-12)
    np.testing.assert_allclose(merged.std, everything.std(0), rtol=1e-12)
    np.testing.assert_array_equal(merged.absmax, np.abs(everything).max(0))
    assert merged.mean_square == pytest.approx((everything**2).sum(1).mean())


def test_a_massive_row_is_counted_and_changes_no_mean() -> None:
    rows = rows_of(300)
    rows[7] *= 1000
    merged = merge([shard_statistics(part) for part in rows.split(100)])
    ordinary = np.delete(rows.numpy(), 7, 0)
    assert (merged.ordinary, merged.massive) == (299, 1)
    np.testing.assert_allclose(merged.mean, ordinary.mean(0), rtol=1e-12)
    np.testing.assert_allclose(merged.std, ordinary.std(0), rtol=1e-12)
    assert merged.mean_square == pytest.approx((ordinary**2).sum(1).mean())
    assert merged.absmax.max() == rows[7].abs().max()


def test_the_histogram_counts_every_row_in_the_bin_of_its_norm() -> None:
    rows = torch.diag(torch.tensor([1.0, 1.0, 2.0, 0.0, 1e30]))
    histogram = shard_statistics(rows).norm_histogram
    assert histogram.shape == (NORM_BINS,)
    assert histogram.sum() == 5
    assert histogram[NORM_BINS // 2] == 2  # eight bins an octave, 1.0 in the middle
    assert histogram[NORM_BINS // 2 + 8] == 1
    assert histogram[0] == histogram[-1] == 1


def test_equal_rows_have_no_deviation() -> None:
    statistics = merge(
        [shard_statistics(torch.full((9, 3), 0.1)), shard_statistics(torch.zeros(1, 3))]
    )
    assert statistics.mean == pytest.approx(0.09)
    assert merge([shard_statistics(torch.full((9, 3), 0.1))]).std == pytest.approx(0)


def test_the_precision_of_the_rows_does_not_limit_the_sums() -> None:
    rows = rows_of(3000).bfloat16()
    merged = merge([shard_statistics(rows)])
    np.testing.assert_allclose(merged.mean, rows.double().mean(0), rtol=1e-12)


def test_blocks_do_not_change_the_figures(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = shard_statistics(rows_of(100))
    monkeypatch.setattr(statistics_module, "_BLOCK", 7)
    in_blocks = shard_statistics(rows_of(100))
    np.testing.assert_allclose(in_blocks.channels, whole.channels, rtol=1e-12)
    assert in_blocks.norm_histogram.tolist() == whole.norm_histogram.tolist()


def test_a_record_brings_the_figures_back_exactly() -> None:
    found = shard_statistics(rows_of(50))
    back = ShardStatistics.from_record(json.loads(json.dumps(found.to_record())), found.channels)
    assert back.to_record() == found.to_record()
    assert back.norm_histogram.tolist() == found.norm_histogram.tolist()
    assert (back.ordinary, back.square_sum) == (found.ordinary, found.square_sum)


def test_the_stores_statistics_are_those_of_its_training_rows(store: Store) -> None:
    for hook_point in store.layout.hook_points:
        shards = [
            range(k, min(k + 512, store.train.n_rows)) for k in range(0, store.train.n_rows, 512)
        ]
        rows = store.rows(hook_point, store.train, shards).double().numpy()
        found = store.statistics(hook_point)
        assert found["ordinary"] + found["massive"] == store.train.n_rows
        assert found["massive"] == 0
        np.testing.assert_allclose(found["mean"], rows.mean(0), rtol=1e-9, atol=1e-15)
        np.testing.assert_allclose(found["std"], rows.std(0), rtol=1e-9)
        np.testing.assert_array_equal(found["absmax"], np.abs(rows).max(0))
        assert found["mean_square"] == pytest.approx((rows**2).sum(1).mean())
        histogram = store.array(f"stats/{hook_point.name}/norm_histogram")[:]
        assert np.sum(histogram) == store.train.n_rows
