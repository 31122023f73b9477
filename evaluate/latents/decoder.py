"""What a latent's decoder row tells: its output tokens and its nearest latents."""

from dataclasses import replace

import torch

from saeflow.evaluate.latents.logit_lens import output_tokens
from saeflow.evaluate.latents.nearest import nearest_latents
from saeflow.evaluate.latents.result import Latents
from saeflow.harvest.models import SourceModel
from saeflow.train.sae import SAE

_COSINES = 16_384**2
"""Nearest latents are found without being asked for if it takes no more cosines than this."""


def with_decoder(
    latents: Latents, sae: SAE, model: SourceModel, *, nearest: bool | None = None
) -> Latents:
    """The same with output tokens and nearest latents.

    Args:
        latents: as `LatentCollector` gives them.
        sae: whose they are.
        model: that it was trained on.
        nearest: whether to find nearest latents; if not given, where the latents times
            d_sae are no more than 16,384 squared.
    """
    if len(latents.numbers) == 0:
        return latents
    W_dec = sae.parameters.W_dec.detach()
    rows = W_dec[torch.from_numpy(latents.numbers.astype("int64")).to(W_dec.device)]
    widths = sae.d_ins if sae.kind == "crosscoder" else (sae.d_out,)
    if nearest is None:
        nearest = len(latents.numbers) * sae.d_sae <= _COSINES
    return replace(
        latents,
        output_tokens=output_tokens(model, sae.target_hook_points, widths, rows),
        nearest=nearest_latents(W_dec, latents.numbers) if nearest else None,
    )
