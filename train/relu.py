"""ReLU SAEs with an L1 penalty (Bricken et al., "Towards Monosemanticity", 2023).

The objective is the one of "Update on how we train SAEs" (Anthropic, April 2024)
with unit decoder rows.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from saeflow.train.architecture import Objective
from saeflow.train.parameters import Parameters


@dataclass(frozen=True)
class ReLU:
    """`z = relu((x - b_dec) W_enc + b_enc)`, loss `|x - x_hat|^2 + l1 |z|_1`.

    Attributes:
        l1: weight of the penalty, for rows normalised to a mean squared norm of
            d_in; it rises from zero over the warm-up.
    """

    l1: float
    name = "relu"

    def activate(
        self, pre_activations: Float[Tensor, "*batch d_sae"]
    ) -> Float[Tensor, "*batch d_sae"]:
        """Those below zero to zero."""
        return pre_activations.relu()

    def objective(
        self,
        parameters: Parameters,
        x: Float[Tensor, "batch d_in"],
        weights: Float[Tensor, " batch"],
        progress: float,
    ) -> Objective:
        """Mean over rows of the weighted squared error and penalty."""
        centred, bias = parameters.centred(x)
        latents = F.linear(centred, parameters.encoder, bias).relu()
        reconstruction = latents @ parameters.W_dec + parameters.b_dec
        squared_error = (reconstruction - x).square().sum(1)
        penalty = self.l1 * progress * latents.sum(1)
        return Objective(
            (weights * (squared_error + penalty)).mean(),
            reconstruction.detach(),
            (latents.detach() > 0).float().sum(0),
        )

    def to_cfg(self) -> dict[str, Any]:
        """SAELens's `standard`."""
        return {"architecture": "standard"}


def from_cfg(cfg: Mapping[str, Any]) -> ReLU:  # noqa: ARG001  # an inference folder holds no penalty
    """A ReLU SAE for inference; the penalty is not part of an SAE folder."""
    return ReLU(0.0)
