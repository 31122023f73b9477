"""L0: how many entries of an item's learned activations are not zero."""

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from saeflow.train.lean import Metric
from saeflow.train.seeds.axes import at_the_edge, checked_components, with_component_axis


class L0NormMetric(Metric):
    """Number of non-zero learned activations, a mean over items.

    It is a norm, so an entry below zero counts too. Where activations are never
    negative, as after a ReLU, this is the number of latents that fire.

    Args:
        num_components: length of the component axis; None and 1 take activations
            with and without the axis.
        kwargs: torchmetrics' own.

    Raises:
        BadInputError: `num_components` is not positive.

    >>> import torch
    >>> metric = L0NormMetric()
    >>> metric.forward(torch.tensor([[1.0, 0.0, 1.0], [0.0, 1.0, 0.0]]))
    tensor(1.5000)
    >>> metric = L0NormMetric(num_components=2)
    >>> metric.forward(
    ...     torch.tensor(
    ...         [
    ...             [[1.0, 0.0, 1.0], [1.0, 0.0, 1.0]],  # 2 in the first component, 2 in the second
    ...             [[0.0, 1.0, 0.0], [1.0, 0.0, 1.0]],  # 1 and 2
    ...         ]
    ...     )
    ... )
    tensor([1.5000, 2.0000])
    """

    full_state_update = False
    active_neurons_count: Tensor
    num_activation_vectors: Tensor

    def __init__(self, num_components: int | None = None, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.num_components = num_components
        counts = torch.zeros(checked_components(num_components), dtype=torch.int64)
        self.add_state("active_neurons_count", counts, dist_reduce_fx="sum")
        self.add_state(
            "num_activation_vectors", torch.zeros((), dtype=torch.int64), dist_reduce_fx="sum"
        )

    def update(
        self, learned_activations: Float[Tensor, "batch *component learned"], **_unused: Any
    ) -> None:
        """Add items; other keywords are left to the other metrics of a collection."""
        by_component = with_component_axis(learned_activations, self.num_components)
        active = torch.count_nonzero(by_component, dim=(0, 2))
        self.active_neurons_count = self.active_neurons_count + active
        self.num_activation_vectors = self.num_activation_vectors + len(by_component)

    def compute(self) -> Float[Tensor, "*component"]:
        """The mean, float32; NaN before any update."""
        means = self.active_neurons_count.double() / self.num_activation_vectors
        return at_the_edge(means.float(), self.num_components)
