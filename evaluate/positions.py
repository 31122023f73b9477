"""Which positions are replaced, and which predictions are scored.

The first position and special tokens are left alone unless asked for: their
activations are of another kind (the first one's norm is a hundred times the
others'), they are not stored, and an ablation that removes them is another yardstick,
far from that of text: docs/evaluation.md has an example.
"""

from collections.abc import Sequence
from typing import get_args

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from saeflow.errors import BadInputError
from saeflow.evaluate.config import PositionChoice


def chosen_positions(
    tokens: Int[Tensor, "batch position"],
    own: Bool[Tensor, "batch position"],
    special: Sequence[int],
    which: PositionChoice = "text",
) -> Bool[Tensor, "batch position"]:
    """The positions of a batch that a choice names.

    Args:
        tokens: token ids.
        own: False at padding, which is never chosen.
        special: ids of the tokenizer's special tokens; only `text` needs them.
        which: the choice.

    Raises:
        BadInputError: there is no such choice.
    """
    if which not in get_args(PositionChoice):
        raise BadInputError(
            f"positions {which!r} is no choice: it must be one of "
            f"{', '.join(get_args(PositionChoice))}"
        )
    if which == "all":
        return own.clone()
    first = own & (own.cumsum(1) == 1)  # behind the padding of a sequence padded on the left
    chosen = own & ~first
    if which == "text":
        chosen &= ~torch.isin(tokens, torch.tensor(list(special), device=tokens.device))
    return chosen


def scored_predictions(
    chosen: Bool[Tensor, "batch position"],
) -> Bool[Tensor, "batch predictions"]:
    """Which next-token predictions count: from a chosen position, of a chosen position."""
    return chosen[:, :-1] & chosen[:, 1:]
