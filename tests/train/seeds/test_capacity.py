"""Capacity of items: known answers, any batching, and no component axis needed."""

from typing import Any

import pytest
import torch

from saeflow import CapacityMetric
from saeflow.train.seeds import capacity


def test_equal_items_share_and_orthogonal_ones_do_not() -> None:
    items = torch.tensor([[2.0, 0.0], [1.0, 0.0], [0.0, 3.0]])  # 16 / (16 + 4), 1 / (1 + 4), 1
    torch.testing.assert_close(CapacityMetric()(items), torch.tensor([0.8, 0.2, 1.0]))


def test_an_item_without_activations_has_no_capacity_and_takes_none() -> None:
    values = CapacityMetric()(torch.tensor([[1.0, 0.0], [0.0, 0.0]]))
    assert values[0].item() == 1.0
    assert values[1].isnan()


def test_the_component_axis_comes_first_in_the_result_where_there_is_one(
    activations: Any,
) -> None:
    batch = activations(6, components=3)
    together = CapacityMetric()(**batch)
    assert together.shape == (3, 6)
    for c in range(3):
        alone = CapacityMetric()(batch["learned_activations"][:, c])
        torch.testing.assert_close(alone, together[c], equal_nan=True)


def test_all_batches_since_reset_are_compared_with_each_other(activations: Any) -> None:
    batch = activations(9, components=2)["learned_activations"]
    metric = CapacityMetric()
    metric.update(batch)
    metric.reset()
    for part in batch.split(4):
        metric.update(part)
    torch.testing.assert_close(metric.compute(), CapacityMetric()(batch), equal_nan=True)


def test_blocks_make_no_difference(activations: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    batch = activations(10, components=2)["learned_activations"]
    whole = CapacityMetric.capacities(batch)
    monkeypatch.setattr(capacity, "ROWS_AT_ONCE", 3)
    torch.testing.assert_close(CapacityMetric.capacities(batch), whole, equal_nan=True)


def test_what_is_kept_has_no_graph(activations: Any) -> None:
    metric = CapacityMetric()
    metric(activations(4)["learned_activations"].requires_grad_())
    assert not any(kept.requires_grad for kept in metric.learned_activations)


def test_without_updates_there_are_no_items() -> None:
    with pytest.warns(UserWarning, match="before the ``update``"):
        assert CapacityMetric().compute().shape == (0,)
