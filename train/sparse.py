"""Encoding to k latents and decoding from them at the cost of k, not of d_sae.

The backward passes touch only active latents. For the weights' gradients the
(row, latent) pairs are grouped by latent once, and both gradients are sums over
bags of rows: no atomics, so they are the same in every run. Weights are row-major
per latent, `(d_sae, d_in)`, so that every gather is of whole rows.
"""

from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional as F


@dataclass(frozen=True)
class Codes:
    """The active latents of a batch.

    Attributes:
        values: their activations, at least 0.
        latents: int64, which latents they are.
        order: int64, the flattened pairs sorted by latent.
        bags: int64, where each latent's pairs begin in `order`.
    """

    values: Float[Tensor, "batch k"]
    latents: Int[Tensor, "batch k"]
    order: Int[Tensor, " pairs"]
    bags: Int[Tensor, " d_sae"]

    def fired(self) -> Float[Tensor, " d_sae"]:
        """How often each latent was above zero, as float32."""
        counts = torch.zeros_like(self.bags, dtype=torch.float32)
        positive = (self.values.detach() > 0).float()
        return counts.index_add_(0, self.latents.flatten(), positive.flatten())


def encode_topk(
    x: Float[Tensor, "batch d_in"],
    encoder: Float[Tensor, "d_sae d_in"],
    bias: Float[Tensor, " d_sae"],
    k: int,
) -> Codes:
    """The k largest pre-activations of each row, those below zero set to zero.

    Args:
        x: rows; no gradient goes back to them.
        encoder: one row a latent.
        bias: of the pre-activations.
        k: latents kept.
    """
    values, latents, order, bags = _EncodeTopK.apply(x, encoder, bias, k)  # type: ignore[no-untyped-call]  # torch's own
    return Codes(values, latents, order, bags)


def decode(codes: Codes, decoder: Float[Tensor, "d_sae d_in"]) -> Float[Tensor, "batch d_in"]:
    """Sum the active latents' decoder rows, weighted by their activations."""
    pairs = codes.latents, codes.order, codes.bags
    result: Tensor = _Decode.apply(codes.values, decoder, *pairs)  # type: ignore[no-untyped-call]  # torch's own
    return result


class _EncodeTopK(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, encoder: Tensor, bias: Tensor, k: int) -> tuple[Tensor, ...]:
        values, latents = F.linear(x, encoder, bias).topk(k, dim=1, sorted=False)
        values = values.relu()
        flat = latents.flatten()
        order = flat.argsort(stable=True)
        counts = torch.bincount(flat, minlength=len(encoder))
        bags = counts.cumsum(0) - counts
        ctx.save_for_backward(x, values, order, bags)
        ctx.mark_non_differentiable(latents, order, bags)
        return values, latents, order, bags

    @staticmethod
    def backward(ctx: Any, grad_values: Tensor, *_: Any) -> tuple[Tensor | None, ...]:
        x, values, order, bags = ctx.saved_tensors
        grad = (grad_values * (values > 0)).flatten()[order]
        grad_encoder = _sum_of_bags(x, grad, order, bags, values.shape[1])
        padded = torch.cat([grad.new_zeros(1), grad.double().cumsum(0)])
        ends = torch.cat([bags[1:], bags.new_tensor([len(grad)])])
        grad_bias = (padded[ends] - padded[bags]).to(values.dtype)
        return None, grad_encoder, grad_bias, None


class _Decode(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, values: Tensor, decoder: Tensor, latents: Tensor, order: Tensor, bags: Tensor
    ) -> Tensor:
        ctx.save_for_backward(values, decoder, latents, order, bags)
        return F.embedding_bag(latents, decoder, mode="sum", per_sample_weights=values)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        values, decoder, latents, order, bags = ctx.saved_tensors
        grad = grad.contiguous()
        batch, k = values.shape
        rows = torch.arange(batch, device=grad.device)
        grad_values = torch.ops.aten._embedding_bag_per_sample_weights_backward(
            grad, decoder, latents.flatten(), rows * k, rows.repeat_interleave(k), 0
        )
        grad_decoder = _sum_of_bags(grad, values.flatten()[order], order, bags, k)
        return grad_values.view(batch, k), grad_decoder, None, None, None


def _sum_of_bags(rows: Tensor, weights: Tensor, order: Tensor, bags: Tensor, k: int) -> Tensor:
    """For each latent, the weighted sum of the rows in which it is active."""
    return F.embedding_bag(
        order // k, rows, offsets=bags, mode="sum", per_sample_weights=weights.contiguous()
    )
