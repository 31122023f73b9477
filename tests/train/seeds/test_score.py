"""The reconstruction score, against the seeds' numbers and in its other definition."""

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from saeflow import BadInputError, ReconstructionScoreMetric
from saeflow.train.lean import MetricCollection

CASES = [
    "docstring",
    "ratio_of_sums_vs_mean_of_ratios",
    "c1_many",
    "c1_scalars",
    "c3_interleaved",
    "c2_one_component_never_updated",
    "zero_ablation_equals_baseline",
    "perfect_recon",
    "worse_than_zero",
    "zero_better_than_baseline",
]


@pytest.mark.parametrize("case_name", CASES)
def test_the_score_is_the_seeds(oracle: Any, case_name: str) -> None:
    case = oracle("reconstruction_score", case_name)
    metric = ReconstructionScoreMetric(int(case["num_components"]))
    for i in range(int(case["n_updates"])):
        source, spliced, zero = (case[f"{name}_{i}"] for name in ("loss", "recon", "zero"))
        metric.update(source, spliced, zero, component_idx=int(case[f"component_{i}"]))
    torch.testing.assert_close(metric.compute(), case["compute"], rtol=1e-6, atol=0, equal_nan=True)


DIFFERENT = torch.tensor([1.0, 1.0]), torch.tensor([2.0, 1.0]), torch.tensor([3.0, 11.0])


def test_the_two_definitions_differ_where_items_matter_differently() -> None:
    """Ratios 1/2 and 1: their mean is 3/4, but the second item has ten of the twelve nats."""
    assert ReconstructionScoreMetric()(*DIFFERENT).item() == pytest.approx(11 / 12)
    by_item = ReconstructionScoreMetric(definition="mean_of_ratios")
    assert by_item(*DIFFERENT).item() == 0.75


def test_both_definitions_are_one_compute_group() -> None:
    metrics = MetricCollection(
        {
            "score": ReconstructionScoreMetric(),
            "by_item": ReconstructionScoreMetric(definition="mean_of_ratios"),
        }
    )
    for _ in range(2):
        metrics.update(*DIFFERENT)
    assert len(metrics.compute_groups) == 1
    values = {name: value.item() for name, value in metrics.compute().items()}
    assert values == {"score": pytest.approx(11 / 12), "by_item": 0.75}


def test_forward_gives_the_batch_and_compute_gives_the_run() -> None:
    metric = ReconstructionScoreMetric()
    losses = [torch.tensor([1.0]), torch.tensor([1.5]), torch.tensor([3.0])]
    assert metric(*losses).item() == 0.75
    assert metric(*(3 * loss for loss in losses[:2]), torch.tensor([3.0])).isneginf()
    assert metric.compute().item() == 0.0  # (6 - 6) / (6 - 4)


@pytest.mark.parametrize(
    ("reconstruction", "expected"), [(3.0, -torch.inf), (1.0, torch.inf), (2.0, torch.nan)]
)
def test_ablation_that_costs_nothing_gives_no_finite_score(
    reconstruction: float, expected: float
) -> None:
    same = torch.tensor([2.0])
    for definition in ("ratio_of_sums", "mean_of_ratios"):
        metric = ReconstructionScoreMetric(definition=definition)
        score = metric(same, torch.tensor([reconstruction]), same)
        assert score.item() == pytest.approx(expected, nan_ok=True)


def test_items_of_one_update_or_of_many_are_the_same(oracle: Any) -> None:
    case = oracle("reconstruction_score", "docstring")
    losses = [case[f"{name}_0"] for name in ("loss", "recon", "zero")]
    one_by_one = ReconstructionScoreMetric()
    for items in zip(*losses, strict=True):
        one_by_one.update(*items)
    assert one_by_one.compute().item() == ReconstructionScoreMetric()(*losses).item()


@given(
    cuts=st.lists(st.integers(1, 19), max_size=4, unique=True),
    definition=st.sampled_from(["ratio_of_sums", "mean_of_ratios"]),
    seed=st.integers(0, 99),
)
def test_batching_and_components_make_no_difference(
    cuts: list[int], definition: Any, seed: int
) -> None:
    losses = torch.rand(2, 3, 20, generator=torch.Generator().manual_seed(seed))
    losses = losses + torch.tensor([1.0, 2.0, 4.0])[:, None]
    together = ReconstructionScoreMetric(2, definition=definition)
    for first, stop in zip([0, *sorted(cuts)], [*sorted(cuts), 20], strict=True):
        for component in (1, 0):
            source, spliced, zero = losses[component, :, first:stop]
            together.update(source, spliced, zero, component_idx=component)
    alone = [ReconstructionScoreMetric(definition=definition)(*each) for each in losses]
    torch.testing.assert_close(together.compute(), torch.stack(alone))


def test_bad_input_is_refused() -> None:
    metric = ReconstructionScoreMetric(2)
    for index in (2, -1):
        with pytest.raises(BadInputError, match=f"component_idx is {index}: give one from 0 to 1"):
            metric.update(*DIFFERENT, component_idx=index)
    with pytest.raises(BadInputError, match="definition is median: give one of ratio_of_sums"):
        ReconstructionScoreMetric(definition="median")
