"""Matryoshka SAEs (Bussmann et al., "Learning Multi-Level Features with Matryoshka SAEs", 2025)."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from saeflow.config import require
from saeflow.train import batchtopk, relu, topk
from saeflow.train.architecture import Batch, Inference, Maker, Objective
from saeflow.train.batchtopk import BatchTopK
from saeflow.train.config import TrainConfig
from saeflow.train.parameters import Parameters, Rule
from saeflow.train.relu import ReLU
from saeflow.train.seeds.prefixes import sample_prefixes
from saeflow.train.topk import TopK

_BASES: Mapping[str, Maker] = {
    "topk": topk.from_config,
    "batchtopk": batchtopk.from_config,
    "relu": relu.from_config,
}
_PARTS = (16, 8, 4, 2)
_STEP_STRIDE = 1_000_003
"""Keeps the draws of neighbouring seeds apart: no run has so many steps."""


@dataclass(frozen=True)
class Matryoshka:
    """Every prefix of the latents reconstructs the rows on its own.

    `z` are the latents of another architecture, and for prefixes of widths
    `m_1 < ... < m_n = d_sae`

        loss = mean_i |x - z[:m_i] W_dec[:m_i] - b_dec|^2

    and what else the other architecture's loss has. The widths are fixed, or drawn
    anew in each step, short ones more often (as saev does, by a Pareto law); which
    ones depends on seed and step alone.

    Attributes:
        base: the other architecture; after training, the SAE is one of its kind.
        widths: of the fixed prefixes, rising, the last d_sae; None to draw.
        n_drawn: how many are drawn, d_sae among them.
        seed: of the draws.
    """

    base: TopK | BatchTopK | ReLU
    widths: tuple[int, ...] | None
    n_drawn: int = 0
    seed: int = 0
    name: ClassVar = "matryoshka"

    @property
    def rules(self) -> Mapping[str, Rule]:
        """Its base's."""
        return self.base.rules

    @property
    def revives(self) -> bool:
        """If its base does."""
        return self.base.revives

    def initial(self, d_sae: int) -> Mapping[str, Tensor]:
        """Its base's."""
        return self.base.initial(d_sae)

    def prefixes(self, d_sae: int, step: int) -> Sequence[int]:
        """Their widths in a step."""
        if self.widths is not None:
            return self.widths
        generator = torch.Generator().manual_seed(self.seed * _STEP_STRIDE + step)
        widths: list[int] = sample_prefixes(d_sae, self.n_drawn, generator=generator).tolist()
        return widths

    def objective(self, parameters: Parameters, batch: Batch) -> Objective:
        """Mean over prefixes and rows of the weighted squared error, and the base's terms."""
        codes: Any = self.base.codes(parameters, batch)
        widths = self.prefixes(parameters.d_sae, batch.step)
        offset = parameters.offset(batch.x).unsqueeze(-2)
        nested = codes.decode_prefixes(parameters.W_dec, widths) + offset
        squared_error = (nested - batch.target[:, None]).square().sum(2).mean(1)
        penalty = self.base.penalty(codes, parameters, batch)
        loss = (batch.weights * squared_error).mean() + penalty
        whole = nested[:, -1]
        if self.base.aux is not None:
            loss = loss + self.base.aux.loss(parameters, batch, whole)
        state = self.base.renewed(codes, parameters, batch)
        return Objective(loss, whole.detach(), codes.fired(), state)

    def trained(self, parameters: Parameters) -> tuple[Inference, Parameters]:
        """What its base becomes."""
        return self.base.trained(parameters)


def from_config(config: TrainConfig, d_in: int, d_sae: int) -> Matryoshka:
    """From `--base` and its options, `--prefixes` and `--drawn-prefixes`."""
    base: Any = _BASES[config.base](config, d_in, d_sae)
    drawn = config.drawn_prefixes
    if drawn is not None:
        require(
            1 < drawn < d_sae,
            f"--drawn-prefixes {drawn} of {d_sae} latents: give from 2 to {d_sae - 1}",
        )
        return Matryoshka(base, None, drawn, config.seed)
    given = config.prefix_widths or tuple(d_sae // part for part in _PARTS if d_sae >= part)
    require(
        max(given, default=0) <= d_sae,
        f"--prefixes {config.prefixes} has a width over the {d_sae} latents: leave it out",
    )
    return Matryoshka(base, tuple(sorted({*given, d_sae})))
