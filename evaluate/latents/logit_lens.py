"""What a latent writes: its decoder row, by way of the final norm and the unembedding.

A model's logits are `W_U` times its final residual stream, normalised. The norm divides
by one number that depends on the whole stream; the rest of it is a linear map: RMSNorm
multiplies by its weight, LayerNorm takes the mean off first. So a latent that adds
`a * row` to the stream adds `a / scale * (row * weight) W_U` to the logits directly, and
without the scale this is what is computed here. Biases are the same whether or not the
latent is active, and are left out; so is a cap on the logits, which changes no order of
them. What later layers make of the row is not in it. (nostalgebraist 2020, "Interpreting
GPT: the logit lens".)
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from saeflow.evaluate.latents.result import OutputTokens
from saeflow.harvest.models import SourceModel

N_TOKENS = 10

_CHUNK_OF_LATENTS, _CHUNK_OF_TOKENS = 1024, 16_384
"""Logits of so many at a time, 64 MB."""

_RELATIVE_TOLERANCE = 0.02
"""How far the norm may be from what is made of its weight; the model may be in bfloat16."""

_RESIDUAL = (
    *("hook_resid_pre", "hook_resid_mid", "hook_resid_post"),
    *("hook_attn_out", "hook_mlp_out"),
)
"""Hook points of a block that are, or are added to, the residual stream."""

Linear = Callable[[Tensor], Tensor]


def output_tokens(
    model: SourceModel,
    hook_points: Sequence[str],
    widths: Sequence[int],
    rows: Float[Tensor, "latents d_out"],
    n_tokens: int = N_TOKENS,
) -> OutputTokens | None:
    """The tokens whose logits rise and fall most with each latent.

    Known are the residual stream, what attention and the MLP add to it, and heads
    (`hook_z`), by way of their layer's W_O.

    Args:
        model: the source model.
        hook_points: where the rows are written; of a crosscoder's several the last is looked at.
        widths: of the rows at each of them.
        rows: decoder rows of the latents.
        n_tokens: how many tokens each way.

    Returns:
        None where the way from the hook point, or from the residual stream, to the logits
        is not as above.
    """
    to_stream = _to_stream(model.bridge, hook_points[-1])
    normalise = _final_norm(model.bridge)
    if to_stream is None or normalise is None:
        return None
    last = rows[:, -widths[-1] :].float().to(model.bridge.W_U.device)
    return _extremes(normalise(to_stream(last)), model.bridge.W_U, n_tokens)


def _to_stream(bridge: Any, hook_point: str) -> Linear | None:
    """From rows at a hook point to what they add to the residual stream."""
    hooks = bridge.hook_dict
    where = hooks.get(hook_point)  # one hook point may have several names
    if where is None:
        return None
    for layer, block in enumerate(bridge.blocks):
        here = {
            name: hooks.get(f"blocks.{layer}.{name}")
            for name in (*_RESIDUAL, "attn.hook_out", "attn.hook_z")
        }
        if any(where is here[name] for name in _RESIDUAL):
            return lambda rows: rows
        W_O = getattr(block.attn, "W_O", None) if where is here["attn.hook_z"] else None
        # In some models a norm or a factor is between attention and the residual stream.
        if W_O is not None and here["hook_attn_out"] is here["attn.hook_out"]:
            return partial(torch.matmul, other=W_O.float().flatten(0, 1))
    return None


@torch.no_grad()
def _final_norm(bridge: Any) -> Linear | None:
    """The final norm less its scale and its bias; None if that is not all that it is."""
    norm = getattr(bridge, "ln_final", None)
    weight = getattr(norm, "weight", None)
    if norm is None or not isinstance(weight, Tensor) or len(weight) != len(bridge.W_U):
        return None
    factors = weight.float() + float(getattr(norm, "uses_weight_offset", False))
    centred = not getattr(norm, "uses_rms_norm", True)

    def centre(rows: Tensor) -> Tensor:
        return rows - rows.mean(-1, keepdim=True) if centred else rows

    x = torch.randn(1, 2, len(weight), generator=torch.Generator().manual_seed(0)).to(weight)
    found = (norm(x) - norm(torch.zeros_like(x))).float()
    scale = centre(x.float()).square().mean(-1, keepdim=True).sqrt()
    difference = (found - centre(x.float()) * factors / scale).abs().max()
    if difference > _RELATIVE_TOLERANCE * found.abs().max():
        return None
    return lambda rows: centre(rows) * factors


@torch.no_grad()
def _extremes(
    rows: Float[Tensor, "latents d_model"], W_U: Float[Tensor, "d_model vocabulary"], n: int
) -> OutputTokens:
    """The n largest and the n smallest of each row's products with W_U."""
    parts = [
        (*_largest(some, W_U, n), *_largest(-some, W_U, n))
        for some in rows.split(_CHUNK_OF_LATENTS)
    ]
    top_logits, top, bottom_logits, bottom = (
        torch.cat(part).cpu().numpy() for part in zip(*parts, strict=True)
    )
    return OutputTokens(
        top=top.astype(np.uint32),
        top_logits=top_logits,
        bottom=bottom.astype(np.uint32),
        bottom_logits=-bottom_logits,
    )


def _largest(
    rows: Float[Tensor, "some d_model"], W_U: Float[Tensor, "d_model vocabulary"], n: int
) -> tuple[Float[Tensor, "some n"], Int[Tensor, "some n"]]:
    """Each row's n largest products with columns of W_U, and of which columns."""
    values, tokens = [], []
    for first in range(0, W_U.shape[1], _CHUNK_OF_TOKENS):
        logits = rows @ W_U[:, first : first + _CHUNK_OF_TOKENS].float()
        best = logits.topk(min(n, logits.shape[1]), 1)
        values.append(best.values)
        tokens.append(best.indices + first)
    best = torch.cat(values, 1).topk(min(n, W_U.shape[1]), 1)
    return best.values, torch.cat(tokens, 1).gather(1, best.indices)
