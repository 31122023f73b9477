"""How often each latent fires: the count, its share of the items, and who is dead.

A latent fires on an item where it is above zero: that is defined here and nowhere
else. The three metrics have the same states, so a `MetricCollection` finds by
itself that they are one compute group.
"""

from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from saeflow.errors import BadInputError
from saeflow.train.lean import Metric
from saeflow.train.seeds.axes import at_the_edge, checked_components, with_component_axis


def fired(latents: Float[Tensor, "*shape"]) -> Bool[Tensor, "*shape"]:
    """Whether each latent is above zero."""
    return latents > 0


class FiringCounts(Metric):
    """What the three share: for each latent, on how many of the items it fired.

    Args:
        num_learned_features: latents of one component.
        num_components: length of the component axis; None for results without it.
        kwargs: torchmetrics' own.

    Raises:
        BadInputError: a number is not positive.
    """

    full_state_update = False
    neuron_fired_count: Tensor
    num_activation_vectors: Tensor

    def __init__(
        self, num_learned_features: int, num_components: int | None = None, **kwargs: Any
    ) -> None:
        super().__init__(**kwargs)
        if num_learned_features < 1:
            raise BadInputError(f"num_learned_features is {num_learned_features}: give at least 1")
        self.num_learned_features = num_learned_features
        self.num_components = num_components
        counts = torch.zeros(
            checked_components(num_components), num_learned_features, dtype=torch.int64
        )
        self.add_state("neuron_fired_count", counts, dist_reduce_fx="sum")
        self.add_state(
            "num_activation_vectors", torch.zeros((), dtype=torch.int64), dist_reduce_fx="sum"
        )

    def update(
        self, learned_activations: Float[Tensor, "batch *component learned"], **_unused: Any
    ) -> None:
        """Add items; other keywords are left to the other metrics of a collection.

        Raises:
            BadInputError: the activations have other latents or components.
        """
        if learned_activations.shape[-1] != self.num_learned_features:
            raise BadInputError(
                f"learned_activations have {learned_activations.shape[-1]} latents, but "
                f"num_learned_features is {self.num_learned_features}: give the SAE's d_sae"
            )
        by_component = with_component_axis(learned_activations, self.num_components)
        self.neuron_fired_count = self.neuron_fired_count + fired(by_component).sum(0)
        self.num_activation_vectors = self.num_activation_vectors + len(by_component)


class NeuronFiredCountMetric(FiringCounts):
    """For each latent, on how many items it fired. Arguments are those of `FiringCounts`.

    >>> import torch
    >>> metric = NeuronFiredCountMetric(num_learned_features=3)
    >>> metric.forward(torch.tensor([[1.0, 0.0, 1.0], [0.0, 0.0, 0.0]]))
    tensor([1, 0, 1])
    """

    def compute(self) -> Int[Tensor, "*component learned"]:
        """The counts, exact at any size."""
        return at_the_edge(self.neuron_fired_count, self.num_components)


class FeatureDensityMetric(FiringCounts):
    """For each latent, on which share of the items it fired: a fraction from 0 to 1.

    Arguments are those of `FiringCounts`.

    >>> import torch
    >>> metric = FeatureDensityMetric(num_learned_features=3, num_components=1)
    >>> metric.forward(torch.tensor([[[1.0, 0.0, 1.0]], [[0.0, 0.0, 0.0]]]))
    tensor([[0.5000, 0.0000, 0.5000]])
    """

    def compute(self) -> Float[Tensor, "*component learned"]:
        """The fractions, float32; NaN before any update."""
        shares = self.neuron_fired_count.double() / self.num_activation_vectors
        return at_the_edge(shares.float(), self.num_components)


class NeuronActivityMetric(FiringCounts):
    """How many latents are dead: fired on no more than a share of the items since `reset`.

    Args:
        num_learned_features: latents of one component.
        num_components: length of the component axis; None for results without it.
        threshold_is_dead_portion_fires: that share, from 0 (never fired) to 1.
        kwargs: torchmetrics' own.

    Raises:
        BadInputError: the share is not one.

    >>> import torch
    >>> metric = NeuronActivityMetric(num_learned_features=3)
    >>> metric.forward(torch.tensor([[1.0, 0.0, 1.0], [0.0, 0.0, 0.0]]))
    tensor(1)
    """

    higher_is_better = False

    def __init__(
        self,
        num_learned_features: int,
        num_components: int | None = None,
        threshold_is_dead_portion_fires: float = 0.0,
        **kwargs: Any,
    ) -> None:
        super().__init__(num_learned_features, num_components, **kwargs)
        if not 0 <= threshold_is_dead_portion_fires <= 1:
            raise BadInputError(
                f"threshold_is_dead_portion_fires is {threshold_is_dead_portion_fires}: "
                "give a share from 0 to 1"
            )
        self.threshold_is_dead_portion_fires = threshold_is_dead_portion_fires

    def compute(self) -> Int[Tensor, "*component"]:
        """The count; before any update, all of them."""
        most = self.num_activation_vectors * self.threshold_is_dead_portion_fires
        dead = (self.neuron_fired_count <= most).sum(-1)
        return at_the_edge(dead, self.num_components)
