"""Gated SAEs (Rajamanoharan et al., "Improving Dictionary Learning with Gated SAEs", 2024)."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from saeflow.train.architecture import Batch, Inference, Objective
from saeflow.train.config import TrainConfig
from saeflow.train.dense import Dense
from saeflow.train.encoded import encoded
from saeflow.train.parameters import Parameters, Rule
from saeflow.train.relu import default_l1
from saeflow.train.silent import Silent, revival

_L1_OF_RELU = 1.5
"""Its default penalty as a multiple of a ReLU SAE's: it pays for the gate only."""


@dataclass(frozen=True)
class Gated:
    """One bias says whether a latent is active, another one how much.

    With `h = (x - b_dec) W_enc`:

        gate = h + b_gate
        z    = (gate > 0) relu(h exp(r_mag) + b_mag)
        loss = |x - z W_dec - b_dec|^2 + l1 |relu(gate)|_1
               + |x - relu(gate) W_dec' - b_dec'|^2

    and the loss of latents whose gates are silent (`saeflow.train.silent`). The decoder
    of the last term above, which trains the gate, is taken as a constant.
    `b_gate` is `b_enc` in the parameters.

    Attributes:
        l1: weight of the penalty, for rows normalised to a mean squared norm of
            d_in; it rises from zero over the warm-up.
        aux: the loss that revives silent latents; None for none.
    """

    l1: float
    aux: Silent | None = None
    name: ClassVar = "gated"
    rules: ClassVar[Mapping[str, Rule]] = {
        "b_mag": Rule(gain="r_mag"),
        "r_mag": Rule(in_row_units=False),
    }
    renamed: ClassVar[Mapping[str, str]] = {"b_enc": "b_gate"}

    @property
    def revives(self) -> bool:
        """If there is a loss for silent latents."""
        return self.aux is not None

    def initial(self, d_sae: int) -> Mapping[str, Tensor]:
        """A magnitude that is the gate's."""
        return {"b_mag": torch.zeros(d_sae), "r_mag": torch.zeros(d_sae)}

    def encode(
        self, parameters: Parameters, x: Float[Tensor, "*batch d_in"]
    ) -> Float[Tensor, "*batch d_sae"]:
        """Latents of rows."""
        h = (x - parameters.input_centre) @ parameters.W_enc
        return _latents(h, h + parameters.b_enc, parameters)

    def objective(self, parameters: Parameters, batch: Batch) -> Objective:
        """Mean over rows of the weighted errors and penalty, and the auxiliary loss."""
        centred, bias = parameters.centred(batch.x)
        gate = encoded(centred, parameters.encoder, bias, batch.known)
        codes = Dense(_latents(gate - parameters.b_enc, gate, parameters))
        offset = parameters.offset(batch.x)
        reconstruction = codes.decode(parameters.W_dec) + offset
        opened = gate.relu()
        by_gate = opened @ parameters.W_dec.detach() + offset.detach()
        penalty = (batch.weights * (self.l1 * batch.warm_up * opened.sum(1))).mean()
        loss = batch.error(reconstruction) + batch.error(by_gate) + penalty
        if self.aux is not None:
            loss = loss + self.aux.loss(parameters, batch, reconstruction)
        return Objective(loss, reconstruction.detach(), codes.fired())

    def trained(self, parameters: Parameters) -> tuple[Inference, Parameters]:
        """A gated SAE."""
        return self, parameters

    def to_cfg(self) -> dict[str, Any]:
        """SAELens's `gated`."""
        return {"architecture": "gated"}


def _latents(h: Tensor, gate: Tensor, parameters: Parameters) -> Tensor:
    b_mag, r_mag = parameters.more("b_mag"), parameters.more("r_mag")
    return (h * r_mag.exp() + b_mag).relu() * (gate > 0)


def from_cfg(cfg: Mapping[str, Any]) -> Gated:  # noqa: ARG001  # an inference folder holds no penalty
    """A gated SAE for inference; the penalty is not part of an SAE folder."""
    return Gated(0.0)


def from_config(config: TrainConfig, d_in: int, d_sae: int) -> Gated:  # noqa: ARG001  # as every maker
    """From `--l1` and `--revive`."""
    l1 = _L1_OF_RELU * default_l1(d_in) if config.l1 is None else config.l1
    return Gated(l1, revival(config))
