"""TopK SAEs (Gao et al., "Scaling and evaluating sparse autoencoders", 2024, section 2.3)."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from saeflow.train.architecture import Objective
from saeflow.train.parameters import Parameters
from saeflow.train.sparse import decode, encode_topk


@dataclass(frozen=True)
class TopK:
    """`z = relu(topk((x - b_dec) W_enc + b_enc))`, loss `|x - x_hat|^2`.

    Attributes:
        k: latents kept of each row.
    """

    k: int
    name = "topk"

    def activate(
        self, pre_activations: Float[Tensor, "*batch d_sae"]
    ) -> Float[Tensor, "*batch d_sae"]:
        """All but the k largest to zero, and those below zero too."""
        values, latents = pre_activations.topk(self.k, dim=-1)
        return torch.zeros_like(pre_activations).scatter(-1, latents, values.relu())

    def objective(
        self,
        parameters: Parameters,
        x: Float[Tensor, "batch d_in"],
        weights: Float[Tensor, " batch"],
        progress: float,  # noqa: ARG002  # TopK has nothing to warm up
    ) -> Objective:
        """Mean over rows of the weighted squared error."""
        centred, bias = parameters.centred(x)
        codes = encode_topk(centred, parameters.encoder, bias, self.k)
        reconstruction = decode(codes, parameters.W_dec) + parameters.b_dec
        squared_error = (reconstruction - x).square().sum(1)
        return Objective((weights * squared_error).mean(), reconstruction.detach(), codes.fired())

    def to_cfg(self) -> dict[str, Any]:
        """SAELens's `topk`, without its scaling by decoder norms: ours are one."""
        return {"architecture": "topk", "k": self.k, "rescale_acts_by_decoder_norm": False}


def from_cfg(cfg: Mapping[str, Any]) -> TopK:
    """The inverse of `TopK.to_cfg`."""
    k = int(cfg["k"])
    if not 0 < k <= int(cfg.get("d_sae", k)):
        raise ValueError(f"k is {k}, but d_sae is {cfg['d_sae']}")
    return TopK(k)
