"""Statistics made shard by shard, held against numpy over all rows."""

import json
from collections.abc import Mapping

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from saeflow.harvest import statistics as statistics_module
from saeflow.harvest.statistics import (
    NORM_BINS,
    ShardStatistics,
    geometric_median,
    merge,
    norm_quantiles,
    row_norms,
    shard_statistics,
)
from saeflow.harvest.store import Store


def rows_of(n: int, seed: int = 0, d_in: int = 5) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return 3 + torch.randn(n, d_in, generator=generator, dtype=torch.float64) * torch.arange(
        1, d_in + 1
    )


def figures(rows: Tensor, values: Mapping[str, np.ndarray] | None = None) -> ShardStatistics:
    """The figures of one shard that holds these rows."""

    def some(first: int, stop: int) -> Tensor:
        return rows[first:stop]

    return shard_statistics(some, row_norms(some, len(rows)), values or {})


@given(sizes=st.lists(st.integers(20, 60), min_size=1, max_size=6), seed=st.integers(0, 1000))
def test_merged_shards_are_numpy_over_all_rows(sizes: list[int], seed: int) -> None:
    shards = [rows_of(size, seed + i) for i, size in enumerate(sizes)]
    merged = merge([figures(shard) for shard in shards])
    everything = torch.cat(shards).numpy()
    assert (merged.ordinary, merged.massive) == (len(everything), 0)
    np.testing.assert_allclose(merged.mean, everything.mean(0), rtol=1e-12)
    np.testing.assert_allclose(merged.std, everything.std(0), rtol=1e-12)
    np.testing.assert_array_equal(merged.absmax, np.abs(everything).max(0))
    assert merged.mean_square == pytest.approx((everything**2).sum(1).mean())
    medians = [np.sort(np.linalg.norm(shard, axis=1))[(len(shard) - 1) // 2] for shard in shards]
    np.testing.assert_allclose(merged.median_norm, medians, rtol=1e-6)


def test_a_massive_row_is_counted_and_changes_no_mean() -> None:
    rows = rows_of(300)
    rows[7] *= 1000
    merged = merge([figures(part) for part in rows.split(100)])
    ordinary = np.delete(rows.numpy(), 7, 0)
    assert (merged.ordinary, merged.massive) == (299, 1)
    np.testing.assert_allclose(merged.mean, ordinary.mean(0), rtol=1e-12)
    np.testing.assert_allclose(merged.std, ordinary.std(0), rtol=1e-12)
    assert merged.mean_square == pytest.approx((ordinary**2).sum(1).mean())
    assert merged.absmax.max() == rows[7].abs().max()
    whole = merge([figures(part) for part in rows_of(300).split(100)])
    np.testing.assert_allclose(merged.geometric_median, whole.geometric_median, atol=0.2)


def test_a_row_is_massive_from_ten_times_the_median_norm_on() -> None:
    rows = torch.ones(9, 1)
    rows[3], rows[4] = 10.0, 10.001
    assert figures(rows).massive == 1


def test_massive_rows_are_counted_by_token_and_position() -> None:
    shards = []
    for massive in ([3, 4, 50], [4], []):
        rows = rows_of(100)
        rows[massive] *= 1000
        numbers = np.arange(100, dtype=np.uint32)
        shards.append(figures(rows, {"token": numbers // 10, "pos": numbers % 10 + 1}))
    merged = merge(shards)
    assert (merged.massive, shards[2].massive_tokens) == (4, {})
    assert list(merged.massive_tokens.items()) == [("0", 3), ("5", 1)]
    assert list(merged.massive_positions.items()) == [("5", 2), ("1", 1), ("4", 1)]


def test_of_many_massive_tokens_the_commonest_are_counted() -> None:
    rows = torch.ones(500, 2)
    rows[:200] = 100
    found = figures(rows, {"token": np.arange(500, dtype=np.uint32) // 2 % 99})
    assert found.massive == 200
    assert found.massive_positions == {}  # nobody knows, so nobody counts
    assert len(found.massive_tokens) == 32
    assert found.massive_tokens["0"] == 4  # rows 0, 1, 198 and 199
    assert set(found.massive_tokens.values()) == {2, 4}


@pytest.mark.parametrize("outliers", [0, 5])
@pytest.mark.parametrize("seed", range(3))
def test_the_geometric_median_is_the_one_found_by_minimising(outliers: int, seed: int) -> None:
    rows = rows_of(400, seed) + torch.rand(400, 1, dtype=torch.float64) ** 3 * 20
    rows[:outliers] *= 500
    median = rows.median(0).values.requires_grad_()
    search = torch.optim.LBFGS([median], max_iter=500, line_search_fn="strong_wolfe")

    def distance() -> Tensor:
        search.zero_grad()
        summed: Tensor = (rows - median).norm(dim=1).mean()
        summed.backward()
        return summed

    search.step(distance)
    found = geometric_median(rows, start=rows.mean(0))
    torch.testing.assert_close(found, median.detach(), rtol=2e-3, atol=2e-3)
    if outliers:
        assert (rows.mean(0) - median).norm() > 10 * (found - median).norm()


def test_the_stores_geometric_median_is_the_average_of_its_shards() -> None:
    shards = [figures(rows_of(n, seed)) for seed, n in enumerate((50, 150))]
    one, other = (shard.channels[3] for shard in shards)
    np.testing.assert_allclose(merge(shards).geometric_median, (one + 3 * other) / 4, rtol=1e-12)


@given(seed=st.integers(0, 1000), n_rows=st.integers(1, 500))
def test_norm_quantiles_are_numpys_to_within_a_bin(seed: int, n_rows: int) -> None:
    rows = rows_of(n_rows, seed)
    shares = (0.0, 0.01, 0.5, 0.9, 1.0)
    found = norm_quantiles(figures(rows).norm_histogram, shares)
    expected = np.quantile(np.linalg.norm(rows, axis=1), shares, method="inverted_cdf")
    assert list(found) == list(shares)
    assert np.abs(np.log2(list(found.values()) / expected)).max() < 1 / 16 + 1e-6


def test_the_histogram_counts_every_row_in_the_bin_of_its_norm() -> None:
    rows = torch.diag(torch.tensor([1.0, 1.0, 2.0, 0.0, 1e30]))
    histogram = figures(rows).norm_histogram
    assert histogram.shape == (NORM_BINS,)
    assert histogram.sum() == 5
    assert histogram[NORM_BINS // 2] == 2  # eight bins an octave, 1.0 in the middle
    assert histogram[NORM_BINS // 2 + 8] == 1
    assert histogram[0] == histogram[-1] == 1


def test_equal_rows_have_no_deviation() -> None:
    statistics = merge([figures(torch.full((9, 3), 0.1)), figures(torch.zeros(1, 3))])
    assert statistics.mean == pytest.approx(0.09)
    equal = merge([figures(torch.full((9, 3), 0.1))])
    assert equal.std == pytest.approx(0)
    assert equal.geometric_median == pytest.approx(0.1)
    assert equal.massive == 0


@pytest.mark.parametrize("value", [0.0, 2.0])
def test_a_shard_of_one_row(value: float) -> None:
    statistics = merge([figures(torch.full((1, 3), value))])
    assert (statistics.ordinary, statistics.massive) == (1, 0)
    for middle in (statistics.mean, statistics.geometric_median, statistics.absmax):
        assert middle.tolist() == [value] * 3
    assert statistics.std.tolist() == [0.0] * 3
    assert statistics.median_norm == pytest.approx(value * 3**0.5)


def test_where_most_rows_are_zero_all_others_are_massive() -> None:
    statistics = merge([figures(torch.eye(5)), figures(torch.cat([torch.zeros(6, 5), rows_of(5)]))])
    assert (statistics.ordinary, statistics.massive) == (11, 5)
    assert np.isfinite(statistics.std).all()
    assert np.isfinite(statistics.geometric_median).all()


def test_the_precision_of_the_rows_does_not_limit_the_sums() -> None:
    rows = rows_of(3000).bfloat16()
    merged = merge([figures(rows)])
    np.testing.assert_allclose(merged.mean, rows.double().mean(0), rtol=1e-12)


def test_blocks_do_not_change_the_figures(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = rows_of(100)
    rows[50:57] *= 1000  # a block of massive rows alone
    whole = figures(rows)
    monkeypatch.setattr(statistics_module, "_BLOCK", 7 * 5)
    in_blocks = figures(rows)
    np.testing.assert_allclose(in_blocks.channels, whole.channels, rtol=1e-12)
    assert in_blocks.norm_histogram.tolist() == whole.norm_histogram.tolist()


def test_a_record_brings_the_figures_back_exactly() -> None:
    rows = rows_of(50)
    rows[9] *= 1000
    numbers = np.arange(50, dtype=np.uint32)
    found = figures(rows, {"token": numbers, "pos": numbers})
    back = ShardStatistics.from_record(json.loads(json.dumps(found.to_record())), found.channels)
    assert back.to_record() == found.to_record()
    assert back.norm_histogram.tolist() == found.norm_histogram.tolist()
    assert (back.ordinary, back.square_sum) == (found.ordinary, found.square_sum)
    assert back.massive_tokens == {"9": 1}


def test_the_stores_statistics_are_those_of_its_training_rows(store: Store) -> None:
    for hook_point in store.layout.hook_points:
        shards = [store.train.shard(k) for k in range(store.train.n_shards)]
        rows = store.rows(hook_point, store.train, shards).double().numpy()
        found = store.statistics(hook_point)
        assert found["ordinary"] + found["massive"] == store.train.n_rows
        assert found["massive"] == 0
        assert found["massive_tokens"] == found["massive_positions"] == {}
        np.testing.assert_allclose(found["mean"], rows.mean(0), rtol=1e-9, atol=1e-15)
        np.testing.assert_allclose(found["std"], rows.std(0), rtol=1e-9)
        np.testing.assert_array_equal(found["absmax"], np.abs(rows).max(0))
        assert found["mean_square"] == pytest.approx((rows**2).sum(1).mean())
        assert found["norm_histogram"].sum() == store.train.n_rows
        norms = np.linalg.norm(rows, axis=1)
        by_shard = [np.sort(norms[shard.start : shard.stop]) for shard in shards]
        medians = [shard[(len(shard) - 1) // 2] for shard in by_shard]
        np.testing.assert_allclose(found["median_norm"], medians, rtol=1e-6)


def test_the_store_holds_the_norm_of_every_row(store: Store) -> None:
    for split in (store.train, store.held_out):
        runs = [split.shard(k) for k in range(split.n_shards)]
        for hook_point in store.layout.hook_points:
            rows = store.rows(hook_point, split, runs).double()
            norms = store.array(f"{split.folder}norm/{hook_point.name}")[:]
            assert np.array_equal(norms, rows.norm(dim=1).float().numpy())
