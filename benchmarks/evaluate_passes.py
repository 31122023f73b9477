"""The forward passes that `evaluate_beside_saelens.py` chooses from, at all positions."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from saeflow.evaluate.positions import chosen_positions
from saeflow.evaluate.predictions import kl_divergence, prediction_losses
from saeflow.evaluate.replay import Replay
from saeflow.harvest.models import SourceModel
from saeflow.train.sae import SAE

BATCH_SIZE = 8


@dataclass(frozen=True)
class Seen:
    """What the forward passes gave, at all positions.

    Attributes:
        tokens: (sequences, positions).
        x, x_hat: clean activations and reconstructions, (sequences, positions, d_in).
        losses: of each pass, (sequences, predictions).
        kl: from the clean to a spliced pass, (sequences, positions).
    """

    tokens: Tensor
    x: Tensor
    x_hat: Tensor
    losses: dict[str, Tensor]
    kl: dict[str, Tensor]


def see(model: SourceModel, sae: SAE, tokens: Tensor, special: list[int]) -> Seen:
    """Run all passes: clean, and spliced and ablated at text and at all positions."""
    replay = Replay(model, [sae.hook_point])
    batches = [_see(replay, sae, batch, special) for batch in tokens.split(BATCH_SIZE)]
    return _joined(batches)


def _see(replay: Replay, sae: SAE, tokens: Tensor, special: list[int]) -> Seen:
    clean = replay.clean(tokens)
    x = clean.activations[sae.hook_point].float()
    x_hat = sae(x.flatten(0, 1)).view_as(x)
    every = torch.ones_like(tokens, dtype=torch.bool)

    def losses_of(logits: Tensor) -> Tensor:
        return prediction_losses(logits, tokens, every[:, 1:]).view(len(tokens), -1)

    losses, kl = {"clean": losses_of(clean.logits)}, {}
    for where, mask in (("text", chosen_positions(tokens, every, special)), ("all", every)):
        logits = replay.spliced(clean, mask, {sae.hook_point: x_hat[mask]})
        losses[f"spliced {where}"] = losses_of(logits)
        kl[where] = kl_divergence(clean.logits, logits, every).view_as(tokens)
        zeros = torch.zeros_like(x[mask])
        losses[f"ablated {where}"] = losses_of(replay.spliced(clean, mask, {sae.hook_point: zeros}))
    return Seen(tokens, x, x_hat, losses, kl)


def _joined(parts: list[Seen]) -> Seen:
    def together(name: str) -> Any:
        values = [getattr(part, name) for part in parts]
        if isinstance(values[0], dict):
            return {key: torch.cat([value[key] for value in values]) for key in values[0]}
        return torch.cat(values)

    return Seen(*map(together, ("tokens", "x", "x_hat", "losses", "kl")))
