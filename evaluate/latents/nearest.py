"""Latents that write nearly the same: the nearest decoder rows, by cosine."""

import numpy as np
import torch
from jaxtyping import Float, UInt32
from torch import Tensor
from torch.nn import functional as F

from saeflow.evaluate.latents.result import Nearest

N_NEAREST = 5

_COSINES_AT_A_TIME = 2**24
"""64 MB of them."""


@torch.no_grad()
def nearest_latents(
    W_dec: Float[Tensor, "d_sae d_out"],
    numbers: UInt32[np.ndarray, " latents"],
    n_nearest: int = N_NEAREST,
) -> Nearest:
    """The other latents whose decoder rows have the largest cosines with some latents'.

    Beside the decoder it takes a unit-norm copy of it, and 64 MB.

    Args:
        W_dec: decoder rows of all latents.
        numbers: the latents to find neighbours of.
        n_nearest: how many for each; fewer if the SAE has no more.
    """
    n_nearest = min(n_nearest, len(W_dec) - 1)
    unit = F.normalize(W_dec.float(), dim=1)
    found, cosines = [], []
    chosen = torch.from_numpy(numbers.astype(np.int64)).to(W_dec.device)
    for some in chosen.split(max(1, _COSINES_AT_A_TIME // len(unit))):
        every = unit[some] @ unit.T
        every.scatter_(1, some[:, None], -torch.inf)  # itself
        best = every.topk(n_nearest, 1)
        found.append(best.indices)
        cosines.append(best.values)
    return Nearest(
        numbers=torch.cat(found).cpu().numpy().astype(np.uint32),
        cosines=torch.cat(cosines).cpu().numpy(),
    )
