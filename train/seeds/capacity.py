"""Capacity: how much of a direction each item has to itself (Scherlis et al., 2022)."""

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from saeflow.train.lean import Metric
from saeflow.train.seeds.axes import widened
from saeflow.train.seeds.gather import gather_items

ROWS_AT_ONCE = 1024
"""Items compared with all others at once: memory grows with the batch, not with its square."""


class CapacityMetric(Metric):
    """For each item, `(f_a . f_a)^2 / sum over items b of (f_a . f_b)^2`, within a component.

    1 for an item that is orthogonal to all others, 1 / n for one of n equal ones. It
    says something of the items' learned activations, not of the latents. An item
    without activations has no direction: its capacity is NaN.

    All activations are kept until `reset`: this is a metric for a few batches.

    >>> import torch
    >>> metric = CapacityMetric()
    >>> metric.forward(torch.tensor([[[1.0, 0.0, 1.0]], [[0.0, 1.0, 0.0]]]))
    tensor([[1., 1.]])
    >>> metric.forward(torch.tensor([[[1.0, 1.0, 1.0]], [[1.0, 1.0, 1.0]]]))
    tensor([[0.5000, 0.5000]])
    >>> CapacityMetric().forward(torch.tensor([[1.0, 0.0], [1.0, 0.0]]))  # no component axis
    tensor([0.5000, 0.5000])
    """

    full_state_update = False
    learned_activations: Tensor | list[Tensor]

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**{"dist_sync_fn": gather_items} | kwargs)
        self.add_state("learned_activations", [], dist_reduce_fx="cat")

    def update(
        self, learned_activations: Float[Tensor, "batch *component learned"], **_unused: Any
    ) -> None:
        """Add items; other keywords are left to the other metrics of a collection."""
        kept = self.learned_activations
        assert isinstance(kept, list)
        kept.append(learned_activations.detach())

    @staticmethod
    def capacities(
        features: Float[Tensor, "batch *component learned"],
    ) -> Float[Tensor, "*component batch"]:
        """The capacity of each item among these.

        >>> import torch
        >>> CapacityMetric.capacities(torch.eye(3).reshape(3, 1, 3))
        tensor([[1., 1., 1.]])
        """
        by_component = widened(features).movedim(0, -2)  # [components], batch, learned
        others = by_component.mT
        own = by_component.square().sum(-1).square()
        among = [
            (items @ others).square().sum(-1) for items in by_component.split(ROWS_AT_ONCE, -2)
        ]
        return own / torch.cat(among, -1)

    def compute(self) -> Float[Tensor, "*component batch"]:
        """The capacity of each item among all that were added, in their order."""
        kept = self.learned_activations
        if isinstance(kept, list):
            kept = torch.cat(kept) if kept else torch.zeros(0, 0, device=self.device)
        return self.capacities(kept)
