"""Which latents fire, how often, and which never do; and L0 beside it."""

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from saeflow import (
    BadInputError,
    FeatureDensityMetric,
    L0NormMetric,
    NeuronActivityMetric,
    NeuronFiredCountMetric,
)
from saeflow.train.lean import MetricCollection

METRICS = [FeatureDensityMetric, NeuronActivityMetric, NeuronFiredCountMetric]
MAKERS: list[Callable[[int | None], Any]] = [
    L0NormMetric,
    *(partial(metric, 7) for metric in METRICS),
]


def test_a_negative_latent_does_not_fire_but_is_not_zero() -> None:
    latents = torch.tensor([[-1.0, 0.0, 2.0]])
    assert NeuronFiredCountMetric(3)(latents).tolist() == [0, 0, 1]
    assert NeuronActivityMetric(3)(latents).item() == 2
    assert FeatureDensityMetric(3)(latents).tolist() == [0.0, 0.0, 1.0]
    assert L0NormMetric()(latents).item() == 2.0


def test_l0_is_the_number_that_fire_where_nothing_is_negative(activations: Any) -> None:
    batch = activations(50)
    fired = NeuronFiredCountMetric(7)(**batch).sum().item()
    assert L0NormMetric()(**batch).item() == pytest.approx(fired / 50)


def test_density_is_a_fraction_not_a_percentage() -> None:
    assert FeatureDensityMetric(1)(torch.tensor([[1.0], [1.0]])).item() == 1.0


def test_dead_is_at_most_the_threshold_share_of_the_items() -> None:
    latents = torch.zeros(10, 4)
    for latent, times in enumerate((0, 2, 3, 10)):
        latents[:times, latent] = 1
    dead = {
        share: NeuronActivityMetric(4, None, share)(latents).item() for share in (0.0, 0.2, 1.0)
    }
    assert dead == {0.0: 1, 0.2: 2, 1.0: 4}


def test_dead_means_since_the_reset_and_forward_means_of_this_batch() -> None:
    metric = NeuronActivityMetric(2)
    first, second = torch.tensor([[1.0, 0.0]]), torch.tensor([[0.0, 1.0]])
    assert [metric(first).item(), metric(second).item()] == [1, 1]
    assert metric.compute().item() == 0
    metric.reset()
    metric.update(second)
    assert metric.compute().item() == 1


def test_counts_are_exact_beyond_what_float32_can_count() -> None:
    metric = NeuronFiredCountMetric(1)
    metric.neuron_fired_count = torch.tensor([[2**24]])
    metric.update(torch.ones(1, 1))
    assert metric.compute().item() == 2**24 + 1


def test_without_updates_all_are_dead_none_fired_and_shares_are_nan() -> None:
    found = []
    for metric in (NeuronActivityMetric, NeuronFiredCountMetric, FeatureDensityMetric):
        with pytest.warns(UserWarning, match="before the ``update``"):
            found.append(metric(3, 2).compute())
    assert found[0].tolist() == [3, 3]
    assert found[1].tolist() == [[0, 0, 0]] * 2
    assert found[2].isnan().all()
    with pytest.warns(UserWarning, match="before the ``update``"):
        assert L0NormMetric(2).compute().isnan().all()


@pytest.mark.parametrize("metric", METRICS)
def test_the_axis_is_in_the_result_where_components_were_asked_for(
    metric: Any, activations: Any
) -> None:
    """With one component both forms of input give the same; two-element results keep the axis."""
    flat, deep = activations(6), activations(6, components=1)
    deep = {name: x.reshape(deep[name].shape) for name, x in flat.items()}
    for components in (None, 1):
        values = [metric(7, components)(**batch) for batch in (flat, deep)]
        assert values[0].tolist() == values[1].tolist()
        vector = metric is not NeuronActivityMetric
        assert values[0].ndim == vector * (1 if components is None else 2)


def test_torchmetrics_finds_that_they_are_one_compute_group(activations: Any) -> None:
    metrics = MetricCollection(
        {"density": FeatureDensityMetric(7), "dead": NeuronActivityMetric(7), "l0": L0NormMetric()}
    )
    for seed in range(2):
        metrics.update(**activations(9, seed=seed))
    assert sorted(map(sorted, metrics.compute_groups.values())) == [["dead", "density"], ["l0"]]
    for name, metric in (("density", FeatureDensityMetric(7)), ("dead", NeuronActivityMetric(7))):
        for seed in range(2):
            metric.update(**activations(9, seed=seed))
        assert metrics.compute()[name].tolist() == metric.compute().tolist()


@given(
    cuts=st.lists(st.integers(1, 29), max_size=5, unique=True),
    components=st.sampled_from([None, 1, 3]),
)
def test_batching_makes_no_difference(
    cuts: list[int], components: int | None, activations: Any
) -> None:
    batch = activations(30, components)
    for make in MAKERS:
        whole, parts = make(components), make(components)
        whole.update(**batch)
        for first, stop in zip([0, *sorted(cuts)], [*sorted(cuts), 30], strict=True):
            parts(**{name: x[first:stop] for name, x in batch.items()})
        assert parts.compute().tolist() == whole.compute().tolist()


@given(seed=st.integers(0, 99))
def test_components_together_are_components_alone(seed: int, activations: Any) -> None:
    batch = activations(12, components=3, seed=seed)
    for make in MAKERS:
        alone = [make(None)(**{name: x[:, c] for name, x in batch.items()}) for c in range(3)]
        assert make(3)(**batch).tolist() == torch.stack(alone).tolist()


def test_bad_settings_and_activations_are_refused(activations: Any) -> None:
    with pytest.raises(BadInputError, match="num_learned_features is 0: give at least 1"):
        FeatureDensityMetric(0)
    with pytest.raises(BadInputError, match=r"portion_fires is 1.5: give a share from 0 to 1"):
        NeuronActivityMetric(7, None, 1.5)
    with pytest.raises(BadInputError, match="7 latents, but num_learned_features is 8"):
        NeuronFiredCountMetric(8).update(**activations(4))
    for metric in (L0NormMetric(), NeuronFiredCountMetric(7, 3)):
        with pytest.raises(BadInputError, match="num_components says how long it is"):
            metric.update(**activations(4, components=2))
