"""The seeds' metrics of a training step in one collection, where shared work is done once."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from saeflow.train.lean import ClasswiseWrapper, Metric, MetricCollection
from saeflow.train.seeds.classwise import ClasswiseWrapperWithMean
from saeflow.train.seeds.firing import NeuronActivityMetric
from saeflow.train.seeds.l0_norm import L0NormMetric
from saeflow.train.seeds.losses import L1AbsoluteLoss, L2ReconstructionLoss, SparseAutoencoderLoss


def _alone() -> bool:
    return False


@contextmanager
def _this_process_only(metrics: Sequence[Metric]) -> Iterator[None]:
    """Values computed meanwhile are this process's own, and are not remembered."""
    before = [(metric.distributed_available_fn, metric.compute_with_cache) for metric in metrics]
    for metric in metrics:
        metric.distributed_available_fn, metric.compute_with_cache = _alone, False
    try:
        yield
    finally:
        for metric, (available, cache) in zip(metrics, before, strict=True):
            metric.distributed_available_fn, metric.compute_with_cache = available, cache


def _inside(metric: Metric) -> Metric:
    return metric.metric if isinstance(metric, ClasswiseWrapper) else metric


def _copied_state(metric: Metric) -> dict[str, Any]:
    """References to the state's tensors; lists are copied, since `reset` empties them."""
    return {
        name: list(state) if isinstance(state, list) else state
        for name, state in metric.metric_state.items()
    }


class SharedMetricCollection(MetricCollection):
    """A `MetricCollection` whose `forward`, too, updates each compute group once.

    torchmetrics shares work in `update` only; its `forward` calls every metric. This
    one gives the same values, of the batch alone and of this process alone. They
    carry no graph: the loss to train on is `itemwise.sparse_autoencoder_loss`.
    Metrics must be such that states can be merged (`full_state_update` False).
    """

    def forward(self, *args: Any, **kwargs: Any) -> dict[str, Any]:
        """The values of this batch alone; it is accumulated too."""
        metrics = [_inside(metric) for metric in self.values(copy_state=False)]
        accumulated = [_copied_state(metric) for metric in metrics]
        self.reset()
        self.update(*args, **kwargs)
        with _this_process_only(metrics):
            values = self.compute()
        for metric, state in zip(metrics, accumulated, strict=True):
            metric.merge_state(state)
        return values


def training_metrics(
    component_names: Sequence[str], n_learned_features: int, l1_coefficient: float = 0.001
) -> SharedMetricCollection:
    """What the seeds log of a training step, each per component and as a mean.

    Takes `source_activations`, `learned_activations` and `decoded_activations` by
    name, with the component axis, or without where there is one component. The L1
    and L2 losses and their sum are one compute group, so each term is computed once.

    Args:
        component_names: in the order of the component axis.
        n_learned_features: latents of one component.
        l1_coefficient: weight of the L1 term in the total; `loss/l1...` is without it.

    >>> import torch
    >>> metrics = training_metrics(["mlp_out"], n_learned_features=3)
    >>> values = metrics(
    ...     source_activations=torch.tensor([[1.0, 1.0]]),
    ...     learned_activations=torch.tensor([[2.0, 0.0, 2.0]]),
    ...     decoded_activations=torch.tensor([[1.0, 3.0]]),
    ... )
    >>> for name, value in sorted(values.items()):
    ...     print(name, round(value.item(), 3))
    loss/l1_learned_activations/mean 4.0
    loss/l1_learned_activations/mlp_out 4.0
    loss/l2_reconstruction/mean 2.0
    loss/l2_reconstruction/mlp_out 2.0
    loss/total/mean 2.004
    loss/total/mlp_out 2.004
    train/l0_norm/mean 2.0
    train/l0_norm/mlp_out 2.0
    train/neuron_activity/mean 1.0
    train/neuron_activity/mlp_out 1
    """
    names, components = list(component_names), len(component_names)

    def named(metric: Metric, prefix: str) -> ClasswiseWrapperWithMean:
        return ClasswiseWrapperWithMean(metric, names, prefix)

    return SharedMetricCollection(
        {
            "l0": named(L0NormMetric(components), "train/l0_norm"),
            "activity": named(
                NeuronActivityMetric(n_learned_features, components), "train/neuron_activity"
            ),
            "l1": named(L1AbsoluteLoss(components), "loss/l1_learned_activations"),
            "l2": named(L2ReconstructionLoss(components), "loss/l2_reconstruction"),
            "loss": named(SparseAutoencoderLoss(components, l1_coefficient), "loss/total"),
        },
        # The first of a group is the one that is updated: it must have the others' states.
        compute_groups=[["loss", "l1", "l2"], ["activity"], ["l0"]],
    )
