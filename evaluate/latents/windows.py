"""One sequence of text, and the windows around its positions."""

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Float16, Int
from torch import Tensor
from torch.nn import functional as F

from saeflow.evaluate.latents.firing import Active

BEFORE, AFTER = 24, 8
"""Tokens of a window before and after the position that it is of."""

WIDTH = BEFORE + 1 + AFTER

_NOTHING = -1
"""Stands for a token or a row that is not there."""

SAME_TOKENS = 8
"""Two positions are of the same words if so many tokens, the position's the last, are equal."""


@dataclass(frozen=True)
class Sequence:
    """One sequence, and where an SAE was applied in it.

    Attributes:
        number: of the sequence.
        tokens: int64 ids.
        own: False at padding.
        chosen: where the SAE was applied.
        documents: int64 numbers of the documents that the tokens are of.
    """

    number: int
    tokens: Int[Tensor, " context"]
    own: Bool[Tensor, " context"]
    chosen: Bool[Tensor, " context"]
    documents: Int[Tensor, " context"]


@dataclass(frozen=True)
class Windows:
    """Some latents' windows in a sequence.

    Attributes:
        tokens: int32 ids, -1 where there is no token.
        activations: as shares of that at the window's own position.
    """

    tokens: Int[Tensor, "windows window"]
    activations: Float16[Tensor, "windows window"]


def peaks(
    active: Active, *, n: int, rows: int
) -> tuple[Float[Tensor, " latents"], Int[Tensor, " latents"]]:
    """Of each of n latents the largest activation, and in which row first; else 0 and `rows`."""
    values = active.values.new_zeros(n)
    values.scatter_reduce_(0, active.latents, active.values, "amax")
    at_peak = torch.where(active.values == values[active.latents], active.rows, rows)
    first = torch.full_like(values, rows, dtype=torch.int64)
    return values, first.scatter_reduce_(0, active.latents, at_peak, "amin")


def keys(sequence: Sequence) -> Int[Tensor, " context"]:
    """For each position, 64 bits that are equal where the last `SAME_TOKENS` tokens are.

    A sum of ids times fixed random odd numbers, modulo 2^64; padding and what is before
    the start count as an id of their own.
    """
    draw = torch.Generator().manual_seed(0)
    factors = torch.randint(-(2**62), 2**62, (SAME_TOKENS,), generator=draw) | 1
    ids = torch.where(sequence.own, sequence.tokens + 1, 0)
    padded = F.pad(ids, (SAME_TOKENS - 1, 0))
    return (padded.unfold(0, SAME_TOKENS, 1) * factors.to(ids.device)).sum(1)


def cut(
    sequence: Sequence,
    latents: Float[Tensor, "rows latents"],
    numbers: Int[Tensor, " windows"],
    positions: Int[Tensor, " windows"],
) -> Windows:
    """The windows of latents `numbers`, each around one of `positions`."""
    rows = torch.where(sequence.chosen, sequence.chosen.cumsum(0) - 1, _NOTHING)
    rows = _around(rows)[positions]
    found = latents[rows.clamp(min=0), numbers[:, None]].float()
    found = torch.where(rows == _NOTHING, 0, found).clamp(min=0)
    tokens = torch.where(sequence.own, sequence.tokens, _NOTHING)
    return Windows(_around(tokens)[positions].int(), (found / found[:, BEFORE, None]).half())


def _around(of_positions: Int[Tensor, " context"]) -> Int[Tensor, "context window"]:
    """Each position's window, a view; `_NOTHING` beyond the ends."""
    return F.pad(of_positions, (BEFORE, AFTER), value=_NOTHING).unfold(0, WIDTH, 1)
