"""How long encoder rows begin, so that the first reconstructions are no longer than the rows.

With the decoder's transpose for an encoder, each of the k latents of a row that are kept
gives back all that it sees of it, though they see much the same: in narrow rows and among
many latents the sum is several times as long as the row.
"""

from statistics import NormalDist
from typing import Any

from saeflow.train.penalised import decoder_norm
from saeflow.train.topk import DEFAULT_K


def encoder_scale(config: Any, d_in: int, d_sae: int) -> float:
    """`--encoder-scale`, or what suits: with k kept latents of unit rows, the best gain.

    Args:
        config: of one SAE.
        d_in: width of what it reads.
        d_sae: its latents.
    """
    given: float | None = config.encoder_scale
    if given is not None:
        return given
    keeps_k = config.arch in ("topk", "batchtopk") or (
        config.arch == "matryoshka" and config.base != "relu"
    )
    begins_as_transpose = config.init_from is None and config.target_hook is None
    if keeps_k and begins_as_transpose and decoder_norm(config) == "unit":
        return best_gain(config.k or DEFAULT_K, d_in, d_sae)
    return 1.0


def best_gain(k: int, d_in: int, d_sae: int) -> float:
    """What makes the sum of a row's k best random unit rows nearest to the row.

    For a Gaussian row x of unit length, and of d_sae random unit rows d_i the k whose
    products `c_i = x d_i` are largest: with `S = sum c_i^2` the sum `x_hat = sum c_i d_i`
    has `x x_hat = S` and about `|x_hat|^2 = S + S^2`, since two rows that both see x see
    `c_i c_j` of each other. Least squares give `x x_hat / |x_hat|^2 = 1 / (1 + S)`.
    S is k times the second moment of a normal variable beyond its (1 - k / d_sae)
    quantile q, `(1 + q phi(q) / (k / d_sae)) / d_in`.
    """
    normal = NormalDist()
    share = min(k / d_sae, 0.5)  # the others are below zero
    q = normal.inv_cdf(1 - share)
    return 1 / (1 + d_sae * (share + q * normal.pdf(q)) / d_in)
