"""What logits say of the next token, prediction by prediction.

Logits are as large as the vocabulary and in the model's dtype. They are taken to
float32 a thousand predictions at a time, and those that aren't scored never are.
"""

from collections.abc import Iterator

import torch
from jaxtyping import Bool, Float, Float32, Int
from torch import Tensor
from torch.nn import functional as F

_CHUNK = 1024


@torch.inference_mode()
def prediction_losses(
    logits: Float[Tensor, "batch position vocabulary"],
    tokens: Int[Tensor, "batch position"],
    scored: Bool[Tensor, "batch predictions"],
) -> Float32[Tensor, " scored"]:
    """Cross-entropy of the scored predictions, in nats.

    Args:
        logits: of all positions, in any float dtype.
        tokens: int64 token ids; the prediction at i is of token i + 1.
        scored: which predictions, as `scored_predictions` says; one fewer than positions.
            The result is in the order of `torch.nonzero(scored)`.
    """
    targets = tokens[:, 1:][scored].split(_CHUNK)
    losses = [
        F.cross_entropy(chunk, target, reduction="none")
        for (chunk,), target in zip(_chunks(scored, logits), targets, strict=True)
    ]
    return _joined(losses, logits)


@torch.inference_mode()
def kl_divergence(
    clean_logits: Float[Tensor, "batch position vocabulary"],
    logits: Float[Tensor, "batch position vocabulary"],
    scored: Bool[Tensor, "batch predictions"],
) -> Float32[Tensor, " scored"]:
    """KL divergence of the spliced model's predictions from the clean one's, in nats.

    `sum p_clean (log p_clean - log p_spliced)`; a token of no clean probability adds nothing.
    """
    found = []
    for clean_chunk, chunk in _chunks(scored, clean_logits, logits):
        clean, other = clean_chunk.log_softmax(-1), chunk.log_softmax(-1)
        terms = torch.where(clean > -torch.inf, clean.exp() * (clean - other), 0.0)
        found.append(terms.sum(-1))
    return _joined(found, logits)


@torch.inference_mode()
def agreement(
    clean_logits: Float[Tensor, "batch position vocabulary"],
    logits: Float[Tensor, "batch position vocabulary"],
    scored: Bool[Tensor, "batch predictions"],
) -> Bool[Tensor, " scored"]:
    """Whether the likeliest next token is the same in both, prediction by prediction."""
    clean, other = clean_logits[:, :-1].argmax(-1), logits[:, :-1].argmax(-1)
    return (clean == other)[scored]


def _chunks(scored: Tensor, *logits: Tensor) -> Iterator[tuple[Tensor, ...]]:
    """Scored logits of each, in float32, a chunk of predictions at a time."""
    for index in scored.nonzero().split(_CHUNK):
        batch, position = index.unbind(1)
        yield tuple(one[batch, position].float() for one in logits)


def _joined(chunks: list[Tensor], like: Tensor) -> Tensor:
    return torch.cat(chunks) if chunks else like.new_empty(0, dtype=torch.float32)
