"""Names for components: the contract `{prefix}/{component}` and `{prefix}/mean`."""

from typing import Any

import pytest
import torch

from saeflow import (
    BadInputError,
    CapacityMetric,
    ClasswiseWrapperWithMean,
    FeatureDensityMetric,
    L0NormMetric,
    L1AbsoluteLoss,
    ReconstructionScoreMetric,
)
from saeflow.train.lean import MetricCollection

TWO = torch.tensor([[[1.0, 0.0, 1.0], [1.0, 0.0, 0.0]]])
"""One item of two components, with L0 of 2 and of 1."""


def numbers(values: dict[str, Any]) -> dict[str, Any]:
    return {name: value.tolist() for name, value in values.items()}


def test_each_component_and_the_mean_have_names() -> None:
    metric = ClasswiseWrapperWithMean(L0NormMetric(2), ["a", "b"], prefix="train/l0")
    expected = {"train/l0/a": 2.0, "train/l0/b": 1.0, "train/l0/mean": 1.5}
    assert numbers(metric(TWO)) == expected
    assert numbers(metric.compute()) == expected


def test_the_prefix_is_the_metrics_name_and_the_names_are_numbers_unless_given() -> None:
    assert numbers(ClasswiseWrapperWithMean(L0NormMetric(2))(TWO)) == {
        "l0normmetric/0": 2.0,
        "l0normmetric/1": 1.0,
        "l0normmetric/mean": 1.5,
    }


@pytest.mark.parametrize("components", [None, 1])
def test_one_component_has_a_name_and_is_the_mean(components: int | None) -> None:
    metric = ClasswiseWrapperWithMean(L0NormMetric(components), ["only"], prefix="l0")
    assert numbers(metric(TWO[:, 0])) == {"l0/only": 2.0, "l0/mean": 2.0}


def test_a_value_per_latent_is_named_by_component() -> None:
    metric = ClasswiseWrapperWithMean(FeatureDensityMetric(3, 2), ["a", "b"], prefix="d")
    expected = {"d/a": [1.0, 0.0, 1.0], "d/b": [1.0, 0.0, 0.0], "d/mean": [1.0, 0.0, 0.5]}
    assert numbers(metric(TWO)) == expected
    alone = ClasswiseWrapperWithMean(FeatureDensityMetric(3), ["a"], prefix="d")
    assert numbers(alone(TWO[:, 0])) == {"d/a": [1.0, 0.0, 1.0], "d/mean": [1.0, 0.0, 1.0]}


def test_values_that_differ_between_components_only_in_their_items_work_too() -> None:
    metric = ClasswiseWrapperWithMean(CapacityMetric(), ["a", "b"], prefix="c")
    assert numbers(metric(TWO)) == {"c/a": [1.0], "c/b": [1.0], "c/mean": [1.0]}


def test_a_score_of_several_components_is_updated_through_the_wrapper() -> None:
    metric = ClasswiseWrapperWithMean(ReconstructionScoreMetric(2), ["a", "b"], prefix="score")
    for component, spliced in ((0, 2.0), (1, 3.0)):
        metric.update(
            torch.tensor(1.0), torch.tensor(spliced), torch.tensor(5.0), component_idx=component
        )
    assert numbers(metric.compute()) == {"score/a": 0.75, "score/b": 0.5, "score/mean": 0.625}


@pytest.mark.parametrize("names", [["a"], ["a", "b", "c"]])
def test_names_that_are_not_one_for_each_component_are_refused(names: list[str]) -> None:
    metric = ClasswiseWrapperWithMean(L0NormMetric(2), names, prefix="l0")
    with pytest.raises(BadInputError, match=rf"l0 has 2 component\(s\) but {len(names)} comp"):
        metric(TWO)


@pytest.mark.parametrize("names", [["a", "a"], ["a", "mean"]])
def test_names_that_would_hide_a_component_are_refused(names: list[str]) -> None:
    with pytest.raises(BadInputError, match="give each component its own, and none 'mean'"):
        ClasswiseWrapperWithMean(L0NormMetric(num_components=2), names)


def test_a_loss_that_keeps_its_items_is_refused() -> None:
    with pytest.raises(BadInputError, match="L1AbsoluteLoss keeps its items"):
        ClasswiseWrapperWithMean(L1AbsoluteLoss(2, keep_batch_dim=True))


def test_reset_and_a_plain_collection_work_through_the_wrapper() -> None:
    metrics = MetricCollection({"l0": ClasswiseWrapperWithMean(L0NormMetric(2), ["a", "b"], "l0")})
    metrics.update(100 * torch.eye(3)[:, None].expand(3, 2, 3))
    metrics.reset()
    metrics.update(TWO)
    assert numbers(metrics.compute()) == {"l0/a": 2.0, "l0/b": 1.0, "l0/mean": 1.5}
