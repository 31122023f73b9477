"""AuxK: dead latents are taught what the living ones miss (Gao et al., 2024, appendix A.2)."""

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor


@dataclass(frozen=True, slots=True)
class AuxK:
    """Settings of the auxiliary loss.

    Attributes:
        k_aux: dead latents used for each row, at most.
        alpha: weight of the loss.
    """

    k_aux: int = 512
    alpha: float = 1 / 32


def auxiliary_loss(
    error: Float[Tensor, "batch d"],
    h_x: Float[Tensor, "batch d_sae"],
    dead: Bool[Tensor, " d_sae"],
    W_dec: Float[Tensor, "d_sae d"],
    cfg: AuxK,
) -> Float[Tensor, ""]:
    """`alpha` times the mean squared error of a reconstruction of the error by dead latents.

    Each row takes its largest pre-activations among the dead, as they are: a negative
    one is used too, since a latent whose input is always negative would otherwise get
    no gradient. They are decoded without the bias, which the error does not have.

    Args:
        error: what the whole dictionary misses, `x - x_hat`; taken as a constant.
        h_x: pre-activations.
        dead: the dead latents; without any, the loss is zero.
        W_dec: decoder rows.
        cfg: its settings.

    >>> import torch
    >>> error, h_x = torch.ones(1, 2), torch.tensor([[5.0, 1.0]])
    >>> auxiliary_loss(error, h_x, torch.tensor([False, True]), torch.eye(2), AuxK(alpha=1.0))
    tensor(0.5000)
    """
    k = min(cfg.k_aux, int(dead.sum()))
    if k == 0:
        return h_x.new_zeros(())
    values, latents = h_x.masked_fill(~dead, -torch.inf).topk(k, dim=1)
    decoded = torch.zeros_like(h_x).scatter(1, latents, values) @ W_dec
    return cfg.alpha * (decoded - error.detach()).square().mean()
