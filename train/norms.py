"""How long decoder rows are: always one, or free, and then short in the beginning.

An L1 penalty pays for latents to shrink, and with unit rows nothing but the encoder can
give way. With free norms and activations that are penalised times them ("Update on how
we train SAEs", Anthropic, April 2024) rows turn as fast as they are short: Adam's steps
are of one size.
"""

from typing import Any, Literal

DecoderNorm = Literal["unit", "free"]

_WITH_L1 = ("relu", "gated", "p-anneal")
_SHORT = 0.1
"""Length of free rows in the beginning, as in that update."""


def has_l1(config: Any) -> bool:
    """An L1 penalty or what comes from it: `config` is a TrainConfig of one SAE."""
    return config.arch in _WITH_L1 or (config.arch == "matryoshka" and config.base == "relu")


def decoder_norm(config: Any) -> DecoderNorm:
    """`--decoder-norm`, or what suits the architecture."""
    given: DecoderNorm | None = config.decoder_norm
    return given or ("free" if has_l1(config) else "unit")


def decoder_scale(config: Any) -> float:
    """`--decoder-scale`, or what suits the norms; one if they stay, or come from a folder."""
    if decoder_norm(config) == "unit" or config.init_from is not None:
        return 1.0
    given: float | None = config.decoder_scale
    return _SHORT if given is None else given


def rate_factor(config: Any) -> float:
    """The usual learning rate as a multiple of other SAEs': twice, with an L1 penalty.

    Under it latents are weaned from each other the sooner the faster they move. With
    125 steps of 2,048 rows of a language model, at equal L0, three quarters of the FVU
    per row; what dies of it comes back (`saeflow.train.silent`).
    """
    return 2.0 if has_l1(config) and decoder_norm(config) == "free" else 1.0
