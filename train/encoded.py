"""Dense pre-activations, computed here, or together with those of other SAEs before."""

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F


def encoded(
    x: Float[Tensor, "batch d_in"],
    encoder: Float[Tensor, "d_sae d_in"],
    bias: Float[Tensor, " d_sae"],
    known: Float[Tensor, "batch d_sae"] | None = None,
) -> Float[Tensor, "batch d_sae"]:
    """`x encoder' + bias`, with its gradients; none goes to x.

    Args:
        x: rows.
        encoder: one row a latent.
        bias: of the pre-activations.
        known: their values, where someone has computed them.
    """
    if known is None:
        return F.linear(x, encoder, bias)
    result: Tensor = _Known.apply(x, encoder, bias, known)  # type: ignore[no-untyped-call]  # torch's own
    return result


class _Known(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, encoder: Tensor, bias: Tensor, known: Tensor) -> Tensor:  # noqa: ARG004  # they take gradients
        ctx.save_for_backward(x)
        return known.view_as(known)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        (x,) = ctx.saved_tensors
        return None, grad.t() @ x.to(grad.dtype), grad.sum(0), None
