"""p-annealed ReLU SAEs (Karvonen et al., "Measuring Progress in Dictionary Learning", 2024)."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from saeflow.train.architecture import Batch, Inference, Objective
from saeflow.train.config import TrainConfig
from saeflow.train.parameters import Parameters, Rule
from saeflow.train.relu import ReLU, default_l1
from saeflow.train.silent import Silent, revival

_L1_OF_RELU = 0.6
"""Its default penalty as a multiple of a ReLU SAE's: as p falls, small activations pay more."""
_SMOOTH = 0.01
"""Added to activations, so that their power has a bounded slope at zero."""
_MEMORY = 0.1
"""How much of a running mean the last batch is."""
_KEPT = Rule(axes=(), in_row_units=False, trained=False)


@dataclass(frozen=True)
class PAnneal:
    """`z = relu((x - b_dec) W_enc + b_enc)`, loss `|x - x_hat|^2 + l1 c |z|_p^p`, p falling.

    p is 1 at first, and falls to `p_end` in equal parts between two points of the
    run. Each time, c is multiplied by the ratio of the penalties under the old and
    the new p, as averaged over the last batches, so that the penalty's size stays.

    Attributes:
        l1: weight of the penalty, for rows normalised to a mean squared norm of
            d_in; it rises from zero over the warm-up.
        p_end: p in the end; more than 0.
        first, last: between which shares of the steps p falls.
        parts: in how many parts.
        aux: the loss that revives silent latents; None for none.
    """

    l1: float
    p_end: float = 0.2
    first: float = 0.2
    last: float = 0.8
    parts: int = 64
    aux: Silent | None = None
    name: ClassVar = "p-anneal"
    rules: ClassVar[Mapping[str, Rule]] = {"c": _KEPT, "under_p": _KEPT, "under_next_p": _KEPT}

    @property
    def revives(self) -> bool:
        """If there is a loss for silent latents."""
        return self.aux is not None

    def initial(self, d_sae: int) -> Mapping[str, Tensor]:  # noqa: ARG002  # none is of a latent
        """The factor is 1, and no batch was seen."""
        return {"c": torch.ones(()), "under_p": torch.ones(()), "under_next_p": torch.ones(())}

    def part(self, step: int, n_steps: int) -> int:
        """How many parts of its way p has gone."""
        share = (step / n_steps - self.first) / (self.last - self.first)
        return min(max(int(share * self.parts), 0), self.parts)

    def p(self, part: int) -> float:
        """The power after so many parts."""
        return 1 - (1 - self.p_end) * min(part, self.parts) / self.parts

    def objective(self, parameters: Parameters, batch: Batch) -> Objective:
        """Mean over rows of the weighted squared error and penalty, and the auxiliary loss."""
        codes = ReLU(self.l1).codes(parameters, batch)
        reconstruction = codes.decode(parameters.W_dec) + parameters.offset(batch.x)
        part = self.part(batch.step, batch.n_steps)
        fell = part != self.part(max(batch.step - 1, 0), batch.n_steps)
        state = parameters.state
        c = state["c"] * state["under_p"] / state["under_next_p"] if fell else state["c"]
        under_p = power(codes.values, self.p(part), batch.weights)
        under_next_p = power(codes.values.detach(), self.p(part + 1), batch.weights)
        loss = batch.error(reconstruction) + self.l1 * batch.warm_up * c * under_p
        if self.aux is not None:
            loss = loss + self.aux.loss(parameters, batch, reconstruction)
        memory = 1.0 if fell or batch.step == 0 else _MEMORY
        renewed = {
            "c": c,
            "under_p": state["under_p"].lerp(under_p.detach().to(c.dtype), memory),
            "under_next_p": state["under_next_p"].lerp(under_next_p.to(c.dtype), memory),
        }
        return Objective(loss, reconstruction.detach(), codes.fired(), renewed)

    def trained(self, parameters: Parameters) -> tuple[Inference, Parameters]:
        """A ReLU SAE."""
        return ReLU(0.0), parameters.with_more({}, {})


def power(
    latents: Float[Tensor, "batch d_sae"], p: float, weights: Float[Tensor, " batch"]
) -> Float[Tensor, ""]:
    """Mean over rows of the weighted `|z|_p^p`, a little smoothed below p = 1."""
    if p == 1:
        return (weights * latents.sum(1)).mean()
    return (weights * ((latents + _SMOOTH).pow(p) - math.pow(_SMOOTH, p)).sum(1)).mean()


def from_config(config: TrainConfig, d_in: int, d_sae: int) -> PAnneal:  # noqa: ARG001  # as every maker
    """From `--l1`, `--p-end` and `--revive`."""
    return PAnneal(
        _L1_OF_RELU * default_l1(d_in) if config.l1 is None else config.l1,
        PAnneal.p_end if config.p_end is None else config.p_end,
        aux=revival(config),
    )
