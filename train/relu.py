"""ReLU SAEs with an L1 penalty (Bricken et al., "Towards Monosemanticity", 2023).

The objective is the one of "Update on how we train SAEs" (Anthropic, April 2024)
with unit decoder rows.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from jaxtyping import Float
from torch import Tensor

from saeflow.train.architecture import Batch, Inference, Objective, pre_activations
from saeflow.train.config import TrainConfig
from saeflow.train.dense import Dense
from saeflow.train.encoded import encoded
from saeflow.train.parameters import Parameters, Rule
from saeflow.train.silent import Silent, revival

L1_PER_ROOT_WIDTH = 0.1


def default_l1(d_in: int) -> float:
    """The weight for a width: rising with its root.

    A normalised row's squared norm is d_in; if n latents share it, the sum of their
    activations is the root of `n d_in`. So the same n is best under this weight at
    every width.
    """
    return L1_PER_ROOT_WIDTH * math.sqrt(d_in)


@dataclass(frozen=True)
class ReLU:
    """`z = relu((x - b_dec) W_enc + b_enc)`, loss `|x - x_hat|^2 + l1 |z|_1` and silent latents'.

    In a crosscoder each `z_i` is penalised in proportion to `sum_h |W_dec[i, h]|`, over
    hook points h (Lindsey et al., "Sparse Crosscoders for Cross-Layer Features and
    Model Diffing", 2024): the row of all hook points together has unit norm, and a
    latent pays less that is of one hook point only.

    Attributes:
        l1: weight of the penalty, for rows normalised to a mean squared norm of
            d_in; it rises from zero over the warm-up.
        aux: the loss that revives silent latents; None for none.
    """

    l1: float
    aux: Silent | None = None
    name: ClassVar = "relu"
    rules: ClassVar[Mapping[str, Rule]] = {}
    renamed: ClassVar[Mapping[str, str]] = {}

    @property
    def revives(self) -> bool:
        """If there is a loss for silent latents."""
        return self.aux is not None

    def initial(self, d_sae: int) -> Mapping[str, Tensor]:  # noqa: ARG002  # it has none
        """Nothing beside the four."""
        return {}

    def activate(
        self, pre_activations: Float[Tensor, "*batch d_sae"]
    ) -> Float[Tensor, "*batch d_sae"]:
        """Those below zero to zero."""
        return pre_activations.relu()

    def encode(
        self, parameters: Parameters, x: Float[Tensor, "*batch d_in"]
    ) -> Float[Tensor, "*batch d_sae"]:
        """Latents of rows."""
        return self.activate(pre_activations(parameters, x))

    def codes(self, parameters: Parameters, batch: Batch) -> Dense:
        """The latents of a training batch."""
        centred, bias = parameters.centred(batch.x)
        return Dense(encoded(centred, parameters.encoder, bias, batch.known).relu())

    def penalty(self, codes: Dense, parameters: Parameters, batch: Batch) -> Float[Tensor, ""]:
        """Mean over rows of the weighted penalty."""
        norms = parameters.summed_norms()
        summed = codes.values.sum(1) if norms is None else codes.values @ norms
        return (batch.weights * (self.l1 * batch.warm_up * summed)).mean()

    def renewed(
        self,
        codes: Dense,  # noqa: ARG002  # it keeps no state
        parameters: Parameters,  # noqa: ARG002
        batch: Batch,  # noqa: ARG002
    ) -> Mapping[str, Tensor]:
        """No state."""
        return {}

    def objective(self, parameters: Parameters, batch: Batch) -> Objective:
        """Mean over rows of the weighted squared error and penalty, and the auxiliary loss."""
        codes = self.codes(parameters, batch)
        reconstruction = codes.decode(parameters.W_dec) + parameters.offset(batch.x)
        loss = batch.error(reconstruction) + self.penalty(codes, parameters, batch)
        if self.aux is not None:
            loss = loss + self.aux.loss(parameters, batch, reconstruction)
        return Objective(loss, reconstruction.detach(), codes.fired())

    def trained(self, parameters: Parameters) -> tuple[Inference, Parameters]:
        """A ReLU SAE."""
        return self, parameters

    def to_cfg(self) -> dict[str, Any]:
        """SAELens's `standard`."""
        return {"architecture": "standard"}


def from_cfg(cfg: Mapping[str, Any]) -> ReLU:  # noqa: ARG001  # an inference folder holds no penalty
    """A ReLU SAE for inference; the penalty is not part of an SAE folder."""
    return ReLU(0.0)


def from_config(config: TrainConfig, d_in: int, d_sae: int) -> ReLU:  # noqa: ARG001  # as every maker
    """From `--l1` and `--revive`."""
    return ReLU(default_l1(d_in) if config.l1 is None else config.l1, revival(config))
