"""The reconstruction score: how much of the loss that ablation costs, the SAE gives back."""

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torchmetrics import Metric

PASSES = ("clean", "spliced", "zero_ablated")
"""The forward passes of an evaluation, all over the same tokens and positions."""

_LEAST_DENOMINATOR = 1e-3


class ReconstructionScore(Metric):
    """`(L_zero - L_spliced) / (L_zero - L_clean)`, each L a mean over all scored tokens.

    A ratio of sums over the whole run, not a mean of the batches' ratios. 1 means
    that the model does not notice the splice, 0 that it might as well get zeros.
    """

    full_state_update = False
    higher_is_better = True
    clean: Tensor
    spliced: Tensor
    zero_ablated: Tensor
    tokens: Tensor

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        for name in PASSES:
            self.add_state(name, torch.zeros((), dtype=torch.float64), dist_reduce_fx="sum")
        self.add_state("tokens", torch.zeros((), dtype=torch.float64), dist_reduce_fx="sum")

    def update(
        self,
        clean: Float[Tensor, " tokens"],
        spliced: Float[Tensor, " tokens"],
        zero_ablated: Float[Tensor, " tokens"],
    ) -> None:
        """Add the losses of the same tokens in each pass."""
        self.clean += clean.double().sum()
        self.spliced += spliced.double().sum()
        self.zero_ablated += zero_ablated.double().sum()
        self.tokens += len(clean)

    def compute(self) -> Float[Tensor, ""]:
        """The score; NaN where ablation costs the model less than a thousandth of a nat."""
        denominator = self.zero_ablated - self.clean
        if not denominator / self.tokens > _LEAST_DENOMINATOR:
            return torch.full_like(denominator, torch.nan)
        return (self.zero_ablated - self.spliced) / denominator

    def losses(self) -> dict[str, float]:
        """Mean loss of each pass, in nats a token."""
        return {name: float(getattr(self, name) / self.tokens) for name in PASSES}
