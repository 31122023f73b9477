"""What goes with a sparsity penalty: decoder rows that are short at first, and higher rates.

Norms are free, and what is penalised is activations times norms ("Update on how we
train SAEs", Anthropic, April 2024). Adam's steps are of one size, so short rows turn
fast. docs/peers-training.md has what comes of it.
"""

import math
from typing import Any, Literal

DecoderNorm = Literal["unit", "free"]

_PENALISED = ("relu", "gated", "p-anneal")
_SHORT = 0.1
"""Length of free rows in the beginning, as in that update."""


def is_penalised(config: Any) -> bool:
    """What is active is penalised by an L1 norm or by its number: `config` is of one SAE.

    Under the tanh penalty, and with a target, unit rows do better.
    """
    return (
        config.arch in _PENALISED
        or (config.arch == "matryoshka" and config.base == "relu")
        or _counts(config)
    )


def _counts(config: Any) -> bool:
    """A JumpReLU SAE whose every active latent costs the same."""
    return bool(
        config.arch == "jumprelu" and config.sparsity == "step" and config.target_l0 is None
    )


def decoder_norm(config: Any) -> DecoderNorm:
    """`--decoder-norm`, or what suits the architecture."""
    given: DecoderNorm | None = config.decoder_norm
    return given or ("free" if is_penalised(config) else "unit")


def decoder_scale(config: Any) -> float:
    """`--decoder-scale`, or what suits the norms; one if they stay, or come from a folder."""
    if decoder_norm(config) == "unit" or config.init_from is not None:
        return 1.0
    given: float | None = config.decoder_scale
    return _SHORT if given is None else given


def rate_factor(config: Any) -> float:
    """The usual learning rate as a multiple of other SAEs': twice, with free norms.

    The sooner latents turn, the fewer of them share a direction, and pay for it each.
    What dies of it comes back (`saeflow.train.silent`), but not under p-anneal's penalty,
    which is steep where activations are small.
    """
    fast = is_penalised(config) and config.arch != "p-anneal" and decoder_norm(config) == "free"
    return 2.0 if fast else 1.0


def bias_rate(config: Any, d_in: int) -> float:
    """`--bias-rate`, or what suits: under an L1 penalty on free norms, the root of d_in.

    A step of Adam changes each of the d_in weights of an encoder row as much as its bias,
    and rows have d_in channels of unit size: at one rate, a bias hardly moves in a short
    run, and a latent gets sparse by its weights alone. A JumpReLU SAE's thresholds have
    a rate of their own; under nested prefixes more latents would die of it than it is worth.

    Args:
        config: of one SAE.
        d_in: width of what it reads.
    """
    given: float | None = config.bias_rate
    if given is not None:
        return given
    rooted = config.arch in _PENALISED and decoder_norm(config) == "free"
    return math.sqrt(d_in) if rooted else 1.0


def sparsity_warm_up(config: Any) -> float:
    """`--sparsity-warm-up`, or what suits the architecture, as a share of the steps.

    A JumpReLU SAE's penalty rises until the end, as in "Dictionary Learning Optimization
    Techniques" (Anthropic, January 2025). An L1 penalty that rises slowly is no better.
    """
    given: float | None = config.sparsity_warm_up
    usual: float = 1.0 if _counts(config) else config.warm_up
    return usual if given is None else given
