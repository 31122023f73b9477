"""What every evaluation tries on its own splice: the same rows, and no rows at all."""

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float32
from torch import Tensor

from saeflow.errors import SaeflowError
from saeflow.evaluate.predictions import prediction_losses
from saeflow.evaluate.replay import CleanPass, Replay

_TOLERANCE = 1e-4


@dataclass(frozen=True)
class SelfCheck:
    """The scores of two SAEs whose scores are known, on the first batch.

    Attributes:
        identity_score: of one that gives rows back as they are, which is 1.
        identity_exact: whether its losses are the clean ones to the bit.
        zero_score: of one that gives back nothing, which is 0.
    """

    identity_score: float
    identity_exact: bool
    zero_score: float


def check_splice(
    replay: Replay,
    clean: CleanPass,
    replaced: Bool[Tensor, "batch position"],
    scored: Bool[Tensor, "batch predictions"],
    targets: tuple[str, ...],
    zero_ablated: Float32[Tensor, " scored"],
) -> SelfCheck:
    """Splice the clean rows into the model, and zeros.

    Args:
        replay: of the model.
        clean: a batch's clean pass.
        replaced: where rows are replaced in the evaluation.
        scored: which predictions it scores.
        targets: where.
        zero_ablated: losses of the batch's ablated pass.

    Raises:
        SaeflowError: the losses are not those of the clean and of the ablated pass.
    """
    rows = {name: clean.rows(name, replaced) for name in targets}
    given_back = {
        "identity": rows,
        "zero": {name: torch.zeros_like(found) for name, found in rows.items()},
    }
    losses = {
        name: prediction_losses(replay.spliced(clean, replaced, put), clean.tokens, scored)
        for name, put in given_back.items()
    }
    expected = {
        "identity": prediction_losses(clean.logits, clean.tokens, scored),
        "zero": zero_ablated,
    }
    for name, found in losses.items():
        off = float((found - expected[name]).abs().max()) if len(found) else 0.0
        if not off <= _TOLERANCE:
            raise SaeflowError(
                f"the splice at {', '.join(targets)} can't be trusted: an SAE that gives "
                f"{'rows back as they are' if name == 'identity' else 'zeros'} changes a loss by "
                f"{off:.2g} nats; this model does something between blocks that saeflow "
                "does not know"
            )
    cost = float((expected["zero"] - expected["identity"]).double().sum())
    score = {
        name: float((expected["zero"] - found).double().sum()) / cost + 0.0  # never -0.0
        if cost
        else float("nan")
        for name, found in losses.items()
    }
    exact = torch.equal(losses["identity"], expected["identity"])
    return SelfCheck(score["identity"], exact, score["zero"])
