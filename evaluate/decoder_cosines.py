"""How alike a decoder's rows are: a latent that has a near double is split or copied."""

from collections.abc import Mapping

import torch
from jaxtyping import Float
from torch import Tensor

_MOST_LATENTS = 4096
_AT_ONCE = 2**24
_QUANTILES = (0.05, 0.5, 0.95, 1)


@torch.no_grad()
def largest_cosines(
    W_dec: Float[Tensor, "d_sae d_out"], latents: int = _MOST_LATENTS
) -> Float[Tensor, " latents"]:
    """The largest cosine of a latent's decoder row with any other latent's.

    The decoder is neither copied nor normalised: beside it this takes about 64 MiB for
    float32. A row of zeros has a cosine of zero with every other.

    Args:
        W_dec: the decoder.
        latents: of how many, at most, spread evenly over all.

    Returns:
        One for each of them; none where there is one latent alone.
    """
    d_sae, device = len(W_dec), W_dec.device
    if d_sae < 2:
        return W_dec.new_empty(0)
    of = torch.linspace(0, d_sae - 1, min(latents, d_sae), dtype=torch.float64).round().long()
    norms = torch.linalg.vector_norm(W_dec, dim=1).clamp_min(torch.finfo(W_dec.dtype).tiny)
    found = []
    for chosen in of.to(device).split(max(_AT_ONCE // d_sae, 1)):
        cosines = (W_dec[chosen] / norms[chosen, None]) @ W_dec.T
        cosines /= norms
        cosines.scatter_(1, chosen[:, None], -torch.inf)  # a latent is no double of itself
        found.append(cosines.amax(1))
    return torch.cat(found).clamp(-1, 1)


def cosine_quantiles(cosines: Float[Tensor, " latents"]) -> Mapping[str, float]:
    """Quantiles at 0.05, 0.5, 0.95 and 1, by that name; none of nothing."""
    if not len(cosines):
        return {}
    points = torch.tensor(_QUANTILES, dtype=torch.float64)
    values = torch.quantile(cosines.double().cpu(), points)
    return {f"{q:g}": value for q, value in zip(_QUANTILES, values.tolist(), strict=True)}
