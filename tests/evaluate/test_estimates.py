"""Estimates against the seeds' metric, and intervals against closed forms and simulation."""

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from jaxtyping import Float64

from saeflow import ReconstructionScoreMetric
from saeflow.evaluate.document_sums import DocumentSums
from saeflow.evaluate.estimates import difference_estimate, mean_estimate, score_estimate
from saeflow.evaluate.figures import Estimate
from saeflow.evaluate.resamples import Resamples

ORACLE = Path(__file__).parents[1] / "data/seeds/reconstruction_score.npz"

Column = Float64[np.ndarray, " documents"]


def sums_of(count: Column | None = None, **columns: object) -> DocumentSums:
    arrays = {name: np.asarray(column, np.float64) for name, column in columns.items()}
    n = len(next(iter(arrays.values())))
    counts = np.ones(n) if count is None else count
    return DocumentSums(np.arange(n), counts.astype(np.int64), arrays)


def losses_of(n: int, seed: int = 0) -> DocumentSums:
    draw = np.random.default_rng(seed)
    count = draw.integers(1, 200, n)
    clean = draw.normal(3, 0.5, n)
    cost, kept = draw.normal(2, 0.3, n), draw.normal(0.9, 0.05, n)
    columns = {"clean": clean, "spliced": clean + cost * (1 - kept), "zero_ablated": clean + cost}
    return sums_of(count, **{name: column * count for name, column in columns.items()})


@pytest.mark.parametrize(
    "case",
    [
        "docstring",
        "ratio_of_sums_vs_mean_of_ratios",
        "c1_many",
        "c1_scalars",
        "perfect_recon",
        "worse_than_zero",
    ],
)
def test_both_scores_are_the_seeds_where_items_are_documents(case: str) -> None:
    with np.load(ORACLE) as arrays:
        updates = range(int(arrays[f"{case}__n_updates"]))
        losses = [
            np.concatenate([np.ravel(arrays[f"{case}__{name}_{i}"]) for i in updates])
            for name in ("loss", "recon", "zero")
        ]
        expected = float(arrays[f"{case}__compute"])
    sums = sums_of(clean=losses[0], spliced=losses[1], zero_ablated=losses[2])
    score = score_estimate(sums, Resamples(len(losses[0])), "zero_ablated")
    by_item = ReconstructionScoreMetric(definition="mean_of_ratios")
    source, spliced, zero = map(torch.from_numpy, losses)
    by_item.update(source, spliced, zero)
    assert score.ratio_of_sums.value == pytest.approx(expected, rel=1e-6)
    assert score.mean_of_ratios.value == pytest.approx(by_item.compute().item(), rel=1e-6)
    assert (score.items, score.left_out) == (len(losses[0]), 0)


def test_the_two_scores_differ_where_documents_matter_differently() -> None:
    """Ratios 1/2 and 1: their mean is 3/4, but the second has ten of the twelve nats."""
    sums = sums_of(clean=[1, 1], spliced=[2, 1], zero_ablated=[3, 11])
    score = score_estimate(sums, Resamples(2), "zero_ablated")
    assert score.ratio_of_sums.value == pytest.approx(11 / 12)
    assert score.mean_of_ratios.value == 0.75


def test_documents_that_ablation_hardly_costs_anything_are_left_out_and_counted() -> None:
    """A nat in all for 2,000 predictions is under a thousandth each."""
    sums = sums_of(
        np.array([2000, 10, 10, 10]),
        clean=[10, 10, 10, 10],
        spliced=[12, 15, 11, 12],
        mean_ablated=[11, 20, 9, 30],
    )
    score = score_estimate(sums, Resamples(4), "mean_ablated")
    assert (score.items, score.left_out) == (2, 2)
    assert score.mean_of_ratios.value == pytest.approx((5 / 10 + 18 / 20) / 2)
    assert score.ratio_of_sums.value == pytest.approx(20 / 30)


@pytest.mark.parametrize("ablated", [[2.0, 2.0, 2.0], [2.0005, 2, 2], [1.0, 1.0, 1.0]])
def test_no_score_where_ablation_costs_nothing(ablated: list[float]) -> None:
    sums = sums_of(clean=[2, 2, 2], spliced=[3, 3, 3], zero_ablated=ablated)
    score = score_estimate(sums, Resamples(3), "zero_ablated")
    nothing = Estimate(None, None, None)
    assert (score.ratio_of_sums, score.mean_of_ratios) == (nothing, nothing)
    assert (score.items, score.left_out) == (0, 3)


def test_one_document_has_no_interval() -> None:
    sums = sums_of(clean=[2], spliced=[3], zero_ablated=[6])
    score = score_estimate(sums, Resamples(1), "zero_ablated")
    assert score.ratio_of_sums == Estimate(0.75, None, None)
    assert score.mean_of_ratios == Estimate(0.75, None, None)
    assert mean_estimate(sums, Resamples(1), "clean") == Estimate(2.0, None, None)


def test_one_ratio_among_many_documents_has_no_interval() -> None:
    sums = sums_of(clean=[2, 2, 2], spliced=[3, 2, 2], zero_ablated=[6, 2, 2])
    score = score_estimate(sums, Resamples(3), "zero_ablated")
    assert score.mean_of_ratios == Estimate(0.75, None, None)


def test_no_documents_give_no_figures() -> None:
    sums = sums_of(clean=[], spliced=[], zero_ablated=[])
    assert mean_estimate(sums, Resamples(0), "clean") == Estimate(None, None, None)
    score = score_estimate(sums, Resamples(0), "zero_ablated")
    assert score.ratio_of_sums == Estimate(None, None, None)


def test_an_interval_whose_resamples_may_have_no_denominator_is_not_given() -> None:
    """One document of four has all the cost: (3/4) ** 4, a third of the resamples, miss it."""
    sums = sums_of(clean=[2, 2, 2, 2], spliced=[3, 2, 2, 2], zero_ablated=[6, 2, 2, 2])
    score = score_estimate(sums, Resamples(4), "zero_ablated")
    assert score.ratio_of_sums == Estimate(0.75, None, None)


def test_a_few_resamples_without_a_denominator_only_widen_the_interval() -> None:
    """5 of 40 documents have all the cost: 0.5 % of the resamples miss all of them."""
    draw = np.random.default_rng(0)
    cost, kept = np.where(np.arange(40) < 5, 4.0, 0.0), draw.uniform(0.5, 1, 40)
    sums = sums_of(clean=np.full(40, 2.0), spliced=2 + cost * (1 - kept), zero_ablated=2 + cost)
    score = score_estimate(sums, Resamples(40), "zero_ablated").ratio_of_sums
    assert score.low is not None
    assert score.high is not None
    assert kept[:5].min() <= score.low < kept[:5].mean() < score.high <= kept[:5].max()


def test_the_interval_of_a_mean_is_the_normal_one_for_many_documents() -> None:
    values = np.random.default_rng(1).exponential(2.0, 3000)
    found = mean_estimate(sums_of(clean=values), Resamples(3000), "clean")
    half = 1.96 * values.std() / np.sqrt(3000)
    assert found.value == pytest.approx(values.mean())
    assert found.low == pytest.approx(values.mean() - half, abs=0.12 * half)
    assert found.high == pytest.approx(values.mean() + half, abs=0.12 * half)


def test_grouping_very_many_documents_keeps_the_interval() -> None:
    values = np.random.default_rng(2).normal(3, 1, 100_000)
    found = mean_estimate(sums_of(clean=values), Resamples(100_000), "clean")
    half = 1.96 * values.std() / np.sqrt(100_000)
    assert found.low == pytest.approx(values.mean() - half, abs=0.12 * half)
    assert found.high == pytest.approx(values.mean() + half, abs=0.12 * half)


def test_the_interval_of_a_ratio_is_the_delta_methods() -> None:
    sums = losses_of(2000)
    found = score_estimate(sums, Resamples(2000), "zero_ablated").ratio_of_sums
    recovered = sums.columns["zero_ablated"] - sums.columns["spliced"]
    cost = sums.columns["zero_ablated"] - sums.columns["clean"]
    ratio = recovered.sum() / cost.sum()
    spread = (recovered - ratio * cost).std() / cost.mean() / np.sqrt(2000)
    assert found.value == pytest.approx(ratio)
    assert found.low == pytest.approx(ratio - 1.96 * spread, abs=0.15 * spread * 1.96)
    assert found.high == pytest.approx(ratio + 1.96 * spread, abs=0.15 * spread * 1.96)


def test_95_of_100_intervals_hold_the_truth() -> None:
    """Documents of very different lengths, each with an effect of its own."""
    held = 0
    for seed in range(200):
        draw = np.random.default_rng(seed)
        count = draw.integers(1, 100, 60)
        total = count * draw.normal(3, 1, 60)
        found = mean_estimate(sums_of(count, clean=total), Resamples(60, 500, seed), "clean")
        assert found.low is not None
        assert found.high is not None
        held += found.low <= 3 <= found.high
    assert 0.9 <= held / 200 <= 0.99


def test_a_difference_is_paired() -> None:
    """What the splice adds hardly varies, though the losses do."""
    sums = losses_of(200)
    added = difference_estimate(sums, Resamples(200), "spliced", "clean")
    clean = mean_estimate(sums, Resamples(200), "clean")
    assert added.value == pytest.approx(
        (sums.columns["spliced"] - sums.columns["clean"]).sum() / sums.count.sum()
    )
    assert width(added) < width(clean) / 2


def width(estimate: Estimate) -> float:
    assert estimate.low is not None
    assert estimate.high is not None
    return estimate.high - estimate.low


def test_the_identity_has_1_and_its_interval_too_and_ablation_0() -> None:
    sums = losses_of(50)
    resamples = Resamples(50)
    for spliced, expected in (("clean", 1.0), ("zero_ablated", 0.0)):
        score = score_estimate(sums, resamples, "zero_ablated", spliced=spliced)
        assert score.ratio_of_sums == Estimate(expected, expected, expected)
        by_item = score.mean_of_ratios
        assert (by_item.value, by_item.low, by_item.high) == pytest.approx([expected] * 3)


@given(seed=st.integers(0, 2**20), n=st.integers(2, 30), unit=st.floats(0.1, 10))
def test_intervals_are_within_the_documents_ratios_and_do_not_hang_on_units(
    seed: int, n: int, unit: float
) -> None:
    sums = losses_of(n, seed)
    scaled = sums_of(sums.count, **{k: v * unit for k, v in sums.columns.items()})
    resamples = Resamples(n, 200, seed)
    cost = sums.columns["zero_ablated"] - sums.columns["clean"]
    ratios = (sums.columns["zero_ablated"] - sums.columns["spliced"]) / cost
    least, most = ratios.min() - 1e-9, ratios.max() + 1e-9
    for which in ("ratio_of_sums", "mean_of_ratios"):
        found, again = (
            getattr(score_estimate(each, resamples, "zero_ablated"), which)
            for each in (sums, scaled)
        )
        assert least <= found.low <= found.high <= most
        assert (again.value, again.low, again.high) == pytest.approx(
            (found.value, found.low, found.high), rel=1e-9
        )


def test_resamples_are_a_function_of_the_seed_and_draw_each_document_alike() -> None:
    ones, ids = np.ones((7, 1)), np.arange(7.0)[:, None]
    columns = np.concatenate([ones, ids], 1)
    same, again, other = (Resamples(7, 3000, seed).totals(columns) for seed in (3, 3, 4))
    np.testing.assert_array_equal(same, again)
    assert not np.array_equal(same, other)
    assert set(same[:, 0]) == {7.0}
    assert same[:, 1].mean() == pytest.approx(21, abs=0.4)  # sd of the mean 5.29 / sqrt(3000)
    assert same[:, 1].var() == pytest.approx(28, rel=0.1)
