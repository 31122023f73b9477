"""Latents of a batch as a full matrix, for architectures that don't say how many are active."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor


@dataclass(frozen=True)
class Dense:
    """The latents of a batch; decodes as `saeflow.train.sparse.Codes` does.

    Attributes:
        values: their activations, at least 0.
    """

    values: Float[Tensor, "batch d_sae"]

    def fired(self) -> Float[Tensor, " d_sae"]:
        """How often each latent was above zero, as float32."""
        return (self.values.detach() > 0).float().sum(0)

    def decode(self, decoder: Float[Tensor, "d_sae d_out"]) -> Float[Tensor, "batch d_out"]:
        """Sum the decoder rows, weighted by the activations."""
        return self.values @ decoder

    def decode_prefixes(
        self, decoder: Float[Tensor, "d_sae d_out"], widths: Sequence[int]
    ) -> Float[Tensor, "batch prefixes d_out"]:
        """For each width, decode the first so many latents only; each is decoded once.

        Args:
            decoder: one row a latent.
            widths: rising; the last is d_sae.
        """
        blocks = [
            self.values[:, first:stop] @ decoder[first:stop]
            for first, stop in zip([0, *widths], widths, strict=False)
        ]
        return torch.stack(blocks, 1).cumsum(1)
