"""Put something in the place of an activation while the source model runs.

Position 0 and special tokens are left alone in every pass: their activations are
of another kind (the first one's norm is a hundred times the others'), they are
not stored, and an ablation that removes them costs the model far more than the
ablation of text does, which would flatter any score.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn import functional as F

from saeflow.errors import BadInputError
from saeflow.harvest.models import SourceModel

Replacement = Callable[[Float[Tensor, "rows d_in"]], Float[Tensor, "rows d_in"]]
"""From activations, in float32, to what takes their place."""


def replaced_positions(
    tokens: Int[Tensor, "batch position"], special: Sequence[int]
) -> Bool[Tensor, "batch position"]:
    """Which positions a splice replaces: all but position 0 and special tokens."""
    mask = ~torch.isin(tokens, torch.tensor(list(special), device=tokens.device))
    mask[:, 0] = False
    return mask


def scored_predictions(
    replaced: Bool[Tensor, "batch position"],
) -> Bool[Tensor, "batch predictions"]:
    """Which next-token predictions count: from a replaced position, of a replaced position."""
    return replaced[:, :-1] & replaced[:, 1:]


def check_spliceable(hook_point: str) -> None:
    """Refuse hook points whose replacement does not reach the model's output as it should.

    Raises:
        BadInputError: TransformerLens 4 passes a changed `hook_resid_mid` to the
            MLP only, not on to the residual stream.
    """
    if hook_point.endswith("hook_resid_mid"):
        raise BadInputError(
            f"{hook_point} can't be spliced: TransformerLens does not pass a changed value on to "
            "the residual stream; train on hook_resid_post or hook_resid_pre instead"
        )


@torch.inference_mode()
def token_losses(
    model: SourceModel,
    tokens: Int[Tensor, "batch position"],
    hook_point: str,
    replaced: Bool[Tensor, "batch position"],
    replacement: Replacement | None,
    seen: list[Tensor] | None = None,
) -> Float[Tensor, "batch predictions"]:
    """Next-token losses in nats, in float32 whatever the model computes in.

    Args:
        model: the source model.
        tokens: int64, on the model's device.
        hook_point: where the replacement goes.
        replaced: at which positions.
        replacement: None for the clean pass.
        seen: given a list, the activations at the replaced positions, before they
            are replaced, are appended to it, (rows, d_in) in float32.
    """

    def hook_function(activation: Tensor, hook: Any) -> Tensor | None:  # noqa: ARG001  # TransformerLens's signature
        flat = activation.flatten(2)
        rows = flat[replaced].float()
        if seen is not None:
            seen.append(rows)
        if replacement is None:
            return None
        changed = flat.clone()
        changed[replaced] = replacement(rows).to(flat.dtype)
        return changed.view_as(activation)

    logits = model.bridge.run_with_hooks(
        tokens, fwd_hooks=[(hook_point, hook_function)], return_type="logits", use_cache=False
    )
    losses = [
        F.cross_entropy(one[:-1].float(), target[1:], reduction="none")
        for one, target in zip(logits, tokens, strict=True)
    ]
    return torch.stack(losses)
