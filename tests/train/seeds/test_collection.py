"""The collection of a training step: the seeds' names, and shared work done once."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from saeflow import (
    ClasswiseWrapperWithMean,
    L0NormMetric,
    L1AbsoluteLoss,
    L2ReconstructionLoss,
    NeuronActivityMetric,
    SparseAutoencoderLoss,
)
from saeflow.train.lean import MetricCollection
from saeflow.train.seeds import losses
from saeflow.train.seeds.collection import SharedMetricCollection, training_metrics

HOOKS = ["blocks.0.hook_mlp_out", "blocks.1.hook_mlp_out"]


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> dict[str, int]:
    """How often each itemwise term is computed."""
    counts = {"absolute_sum": 0, "mean_square": 0}
    for name in counts:
        original = getattr(losses, name)

        def counted(*args: Tensor, _name: str = name, _original: Any = original) -> Tensor:
            counts[_name] += 1
            result: Tensor = _original(*args)
            return result

        monkeypatch.setattr(losses, name, counted)
    return counts


def alone() -> dict[str, Any]:
    """The same metrics outside any collection, by the prefix that they have in it."""
    return {
        "train/l0_norm": L0NormMetric(2),
        "train/neuron_activity": NeuronActivityMetric(7, 2),
        "loss/l1_learned_activations": L1AbsoluteLoss(2),
        "loss/l2_reconstruction": L2ReconstructionLoss(2),
        "loss/total": SparseAutoencoderLoss(2, 0.1),
    }


def named(values: dict[str, Tensor]) -> dict[str, float]:
    found = {}
    for prefix, value in values.items():
        for name, one in zip(HOOKS, value, strict=True):
            found[f"{prefix}/{name}"] = one.item()
        found[f"{prefix}/mean"] = value.float().mean().item()
    return found


def plain(values: dict[str, Tensor]) -> dict[str, float]:
    return {name: value.item() for name, value in values.items()}


def test_the_values_of_each_batch_and_of_all_are_the_metrics_own(activations: Any) -> None:
    metrics, parts = training_metrics(HOOKS, 7, 0.1), alone()
    for seed in range(3):
        batch = activations(8 + seed, components=2, seed=seed)
        expected = named({prefix: metric(**batch) for prefix, metric in parts.items()})
        assert plain(metrics(**batch)) == pytest.approx(expected, rel=1e-6)
    expected = named({prefix: metric.compute() for prefix, metric in parts.items()})
    assert plain(metrics.compute()) == pytest.approx(expected, rel=1e-6)


def test_shared_terms_are_computed_once_by_update_and_by_forward(
    activations: Any, calls: dict[str, int]
) -> None:
    metrics = training_metrics(HOOKS, 7)
    mixed: list[Callable[..., Any]] = [metrics.update, metrics, metrics, metrics.update]
    for step, call in enumerate(mixed, 1):
        call(**activations(8, components=2, seed=step))
        assert calls == {"absolute_sum": step, "mean_square": step}


def test_update_and_forward_may_be_mixed_with_compute_between(activations: Any) -> None:
    metrics, parts = training_metrics(HOOKS, 7, 0.1), alone()
    mixed: list[Callable[..., Any]] = [metrics.update, metrics, metrics.update, metrics, metrics]
    for step, call in enumerate(mixed):
        batch = activations(8, components=2, seed=step)
        call(**batch)
        for metric in parts.values():
            metric.update(**batch)
        expected = named({prefix: metric.compute() for prefix, metric in parts.items()})
        assert plain(metrics.compute()) == pytest.approx(expected, rel=1e-6)


def test_reset_forgets_everything(activations: Any) -> None:
    metrics, fresh = training_metrics(HOOKS, 7), training_metrics(HOOKS, 7)
    metrics(**activations(8, components=2))
    metrics.reset()
    batch = activations(5, components=2, seed=1)
    assert plain(metrics(**batch)) == plain(fresh(**batch))
    assert plain(metrics.compute()) == plain(fresh.compute())


@pytest.mark.parametrize("collection", [MetricCollection, SharedMetricCollection])
@pytest.mark.parametrize("wrapped", [False, True])
def test_a_compute_group_of_the_losses_works_in_any_collection(
    collection: Callable[..., MetricCollection], wrapped: bool, activations: Any
) -> None:
    """Wrapped members neither warn that they were not updated nor repeat older values."""
    parts: dict[str, Any] = {
        "loss": SparseAutoencoderLoss(2, 0.1),
        "l1": L1AbsoluteLoss(2),
        "l2": L2ReconstructionLoss(2),
    }
    expected = {name: metric.clone() for name, metric in parts.items()}
    if wrapped:
        parts = {n: ClasswiseWrapperWithMean(m, HOOKS, prefix=n) for n, m in parts.items()}
    metrics = collection(parts, compute_groups=[["loss", "l1", "l2"]])
    for seed in range(3):
        batch = activations(6, components=2, seed=seed)
        metrics.update(**batch)
        found = metrics.compute()
        for name, metric in expected.items():
            metric.update(**batch)
            value = (
                torch.stack([found[f"{name}/{hook}"] for hook in HOOKS]) if wrapped else found[name]
            )
            torch.testing.assert_close(value, metric.compute())


def test_kept_items_are_shared_by_forward_too(activations: Any) -> None:
    metrics = SharedMetricCollection(
        {
            "loss": SparseAutoencoderLoss(2, 0.1, keep_batch_dim=True),
            "l2": L2ReconstructionLoss(2, keep_batch_dim=True),
        },
        compute_groups=[["loss", "l2"]],
    )
    for seed in range(3):
        values = metrics(**activations(4, components=2, seed=seed))
        assert values["l2"].shape == (4, 2)
    assert metrics.compute()["loss"].shape == metrics.compute()["l2"].shape == (12, 2)


def test_nothing_keeps_a_graph(activations: Any) -> None:
    metrics = training_metrics(HOOKS, 7)
    batch = {name: x.requires_grad_() for name, x in activations(4, components=2).items()}
    assert not any(value.requires_grad for value in metrics(**batch).values())
    states = [state for metric in metrics.metric_state.values() for state in metric.values()]
    assert not any(state.requires_grad for state in states)


def test_one_component_needs_no_axis(activations: Any) -> None:
    flat = activations(6)
    deep = {name: x[:, None] for name, x in flat.items()}
    assert plain(training_metrics(["only"], 7)(**flat)) == plain(
        training_metrics(["only"], 7)(**deep)
    )
