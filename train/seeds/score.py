"""The seeds' reconstruction score, in both the senses in which it was defined.

`saeflow.evaluate` has a score of its own, of one SAE and over scored tokens; this
one takes losses from anywhere, several components, and items of any kind.
"""

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from saeflow.errors import BadInputError
from saeflow.train.lean import Metric
from saeflow.train.seeds.axes import checked_components

DEFINITIONS = ("ratio_of_sums", "mean_of_ratios")


class ReconstructionScoreMetric(Metric):
    """`(zero - reconstruction) / (zero - source)`, where each is a loss of the source model.

    1: the model does not notice the SAE in its place; 0: it might as well get zeros;
    below 0 and above 1 are possible. Where zero ablation costs nothing the score is
    infinite or NaN, and a component that got no losses has NaN.

    Args:
        num_components: how many components have a score of their own.
        definition: "ratio_of_sums", each loss summed over all items since `reset`: a
            few items that ablation hurts much weigh more; or "mean_of_ratios", every
            item's own ratio counting the same, whose value hangs on the items where
            the denominator is near zero.
        kwargs: torchmetrics' own.

    Raises:
        BadInputError: `num_components` is not positive, or there is no such definition.

    >>> import torch
    >>> metric = ReconstructionScoreMetric(num_components=1)
    >>> metric.forward(
    ...     source_model_loss=torch.tensor([2.0, 2.0, 2.0]),
    ...     source_model_loss_with_reconstruction=torch.tensor([3.0, 3.0, 3.0]),
    ...     source_model_loss_with_zero_ablation=torch.tensor([5.0, 5.0, 5.0]),
    ... )
    tensor(0.6667)
    >>> losses = torch.tensor([1.0, 1.0]), torch.tensor([2.0, 1.0]), torch.tensor([3.0, 11.0])
    >>> ReconstructionScoreMetric().forward(*losses)
    tensor(0.9167)
    >>> ReconstructionScoreMetric(definition="mean_of_ratios").forward(*losses)
    tensor(0.7500)
    """

    full_state_update = False
    higher_is_better = True
    source_model_loss: Tensor
    source_model_loss_with_reconstruction: Tensor
    source_model_loss_with_zero_ablation: Tensor
    ratios: Tensor
    num_items: Tensor

    def __init__(
        self, num_components: int = 1, *, definition: str = "ratio_of_sums", **kwargs: Any
    ) -> None:
        super().__init__(**kwargs)
        if definition not in DEFINITIONS:
            raise BadInputError(f"definition is {definition}: give one of {', '.join(DEFINITIONS)}")
        self.num_components = num_components
        self.definition = definition
        # The states are the same for both definitions, which can so be one compute group.
        for name in (
            "source_model_loss",
            "source_model_loss_with_reconstruction",
            "source_model_loss_with_zero_ablation",
            "ratios",
            "num_items",
        ):
            sums = torch.zeros(checked_components(num_components), dtype=torch.float64)
            self.add_state(name, sums, dist_reduce_fx="sum")

    def update(
        self,
        source_model_loss: Float[Tensor, "*items"],
        source_model_loss_with_reconstruction: Float[Tensor, "*items"],
        source_model_loss_with_zero_ablation: Float[Tensor, "*items"],
        component_idx: int = 0,
    ) -> None:
        """Add the losses of the same items, of any shape, for one component.

        Raises:
            BadInputError: there is no such component, or the shapes differ.
        """
        if not 0 <= component_idx < self.num_components:
            raise BadInputError(
                f"component_idx is {component_idx}: give one from 0 to {self.num_components - 1}"
            )
        source, reconstruction, zero = losses = (
            source_model_loss.double(),
            source_model_loss_with_reconstruction.double(),
            source_model_loss_with_zero_ablation.double(),
        )
        if not source.shape == reconstruction.shape == zero.shape:
            shapes = ", ".join(str(tuple(loss.shape)) for loss in losses)
            raise BadInputError(
                f"the losses have shapes {shapes}: give all three of the same items"
            )
        self.source_model_loss[component_idx] += source.sum()
        self.source_model_loss_with_reconstruction[component_idx] += reconstruction.sum()
        self.source_model_loss_with_zero_ablation[component_idx] += zero.sum()
        self.ratios[component_idx] += ((zero - reconstruction) / (zero - source)).sum()
        self.num_items[component_idx] += source.numel()

    def compute(self) -> Float[Tensor, " component"]:
        """The score of each component, float32."""
        if self.definition == "mean_of_ratios":
            return (self.ratios / self.num_items).float()
        zero = self.source_model_loss_with_zero_ablation
        recovered = zero - self.source_model_loss_with_reconstruction
        return (recovered / (zero - self.source_model_loss)).float()
