"""Nested prefixes of the latents: which lengths to train, and what each gives back."""

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from saeflow.errors import BadInputError


def prefix_probabilities(
    d_sae: int, min_prefix_length: int = 1, pareto_power: float = 0.5
) -> Float[Tensor, " lengths"]:
    """How likely each length from `min_prefix_length` to `d_sae - 1` is drawn: shorter ones more.

    Differences of the Pareto distribution function `1 - (min_prefix_length / length) ** power`,
    scaled to a sum of 1; the shortest length has probability 0.
    """
    lengths = torch.arange(min_prefix_length, d_sae, dtype=torch.float32)
    cumulative = 1 - (min_prefix_length / lengths) ** pareto_power
    steps = torch.diff(cumulative, prepend=torch.zeros(1))
    return steps / steps.sum()


def sample_prefixes(
    d_sae: int,
    n_prefixes: int,
    min_prefix_length: int = 1,
    pareto_power: float = 0.5,
    generator: torch.Generator | None = None,
) -> Int64[Tensor, " n_prefixes"]:
    """Different prefix lengths in rising order; the last is the whole dictionary.

    Args:
        d_sae: latents.
        n_prefixes: how many lengths.
        min_prefix_length: below the shortest length to draw.
        pareto_power: how fast longer ones become rare.
        generator: on the CPU; None for torch's global one.

    Raises:
        BadInputError: there are not so many lengths.

    >>> import torch
    >>> sample_prefixes(8, 3, generator=torch.Generator().manual_seed(0))
    tensor([2, 3, 8])
    >>> sample_prefixes(3, 3)
    tensor([1, 2, 3])
    """
    lengths = d_sae - min_prefix_length
    if not 1 <= n_prefixes <= lengths + 1:
        raise BadInputError(
            f"n_prefixes is {n_prefixes} with {d_sae} latents: give from 1 to {lengths + 1}"
        )
    if n_prefixes == 1:
        return torch.tensor([d_sae])
    if n_prefixes == lengths + 1:  # all of them, among them the one of probability 0
        return torch.arange(min_prefix_length, d_sae + 1)
    probabilities = prefix_probabilities(d_sae, min_prefix_length, pareto_power)
    drawn = torch.multinomial(probabilities, n_prefixes - 1, generator=generator)
    return torch.cat([(drawn + min_prefix_length).sort().values, torch.tensor([d_sae])])


def decode_prefixes(
    f_x: Float[Tensor, "batch d_sae"],
    W_dec: Float[Tensor, "d_sae d"],
    b_dec: Float[Tensor, " d"],
    prefixes: Int64[Tensor, " n_prefixes"],
) -> Float[Tensor, "batch n_prefixes d"]:
    """The reconstruction from the first latents only, for each prefix length.

    Each latent is decoded once, whatever the number of prefixes; the bias is added
    once to each reconstruction.

    >>> import torch
    >>> f_x, W_dec = torch.ones(1, 3), torch.tensor([[1.0], [10.0], [100.0]])
    >>> decode_prefixes(f_x, W_dec, torch.tensor([0.5]), torch.tensor([1, 3])).squeeze()
    tensor([  1.5000, 111.5000])
    """
    lengths = prefixes.tolist()
    blocks = [
        f_x[:, first:stop] @ W_dec[first:stop]
        for first, stop in zip([0, *lengths], lengths, strict=False)
    ]
    return torch.stack(blocks, 1).cumsum(1) + b_dec
