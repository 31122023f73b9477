"""How long encoder rows begin, so that the first reconstructions don't overshoot.

With the decoder's transpose for an encoder, each of a row's active latents gives back all
that it sees of the row, though they see much the same: in narrow rows and among many
latents the sum is several times as long as the row.
"""

import math
from statistics import NormalDist
from typing import Any

from saeflow.train.penalised import decoder_norm, is_penalised
from saeflow.train.topk import DEFAULT_K

_SHARE = 0.8
"""Of what the best gain would explain, what the first reconstructions do.

Longer rows are better than shorter ones: latents that overshoot are pushed down, and others
have their turn, so that fewer die.
"""


def encoder_scale(config: Any, d_in: int, d_sae: int) -> float:
    """`--encoder-scale`, or what suits: 1, or less where unit rows would overshoot.

    Args:
        config: of one SAE.
        d_in: width of what it reads.
        d_sae: its latents.
    """
    given: float | None = config.encoder_scale
    if given is not None:
        return given
    keeps_k = config.arch in ("topk", "batchtopk", "matryoshka") and not is_penalised(config)
    begins_as_transpose = config.init_from is None and config.target_hook is None
    if not keeps_k or not begins_as_transpose or decoder_norm(config) == "free":
        return 1.0
    longest = 1 + math.sqrt(1 - _SHARE)  # times the best: explains 1 - (longest - 1)^2 of it
    return min(1.0, longest * best_gain(config.k or DEFAULT_K, d_in, d_sae))


def best_gain(k: int, d_in: int, d_sae: int) -> float:
    """What makes the sum of a row's k best random unit rows nearest to the row.

    For a Gaussian row x of unit length, and of d_sae random unit rows d_i the k whose
    products `c_i = x d_i` are largest: with `S = sum c_i^2` the sum `x_hat = sum c_i d_i`
    has `x x_hat = S` and about `|x_hat|^2 = S + S^2`, since two rows that both see x see
    `c_i c_j` of each other. Least squares give `x x_hat / |x_hat|^2 = 1 / (1 + S)`.
    S is `d_sae / d_in` times `p + q phi(q)`, the second moment of a normal variable
    beyond its (1 - p) quantile q, with `p = k / d_sae`.
    """
    normal = NormalDist()
    active = min(k / d_sae, 0.5)  # the others are below zero
    q = normal.inv_cdf(1 - active)
    return 1 / (1 + d_sae * (active + q * normal.pdf(q)) / d_in)
