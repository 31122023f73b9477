"""What an SAE makes of clean rows: its latents, and what takes the rows' places."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import torch
from jaxtyping import Float, Float32
from torch import Tensor

from saeflow.train.sae import SAE


@dataclass(frozen=True)
class Made:
    """What was made of some rows.

    Attributes:
        latents: of the rows.
        rows: for each replaced hook point, what takes the clean rows' places.
    """

    latents: Float[Tensor, "rows d_sae"]
    rows: Mapping[str, Float32[Tensor, "rows _"]]


def make(sae: SAE, clean: Mapping[str, Float32[Tensor, "rows _"]]) -> Made:
    """Encode and decode rows.

    Args:
        sae: an SAE, a transcoder or a crosscoder.
        clean: the rows of at least each hook point that it reads.
    """
    x = torch.cat([clean[name] for name in sae.hook_points], -1)
    latents = sae.encode(x)
    parts = sae.decode(latents, x).float().split(list(sae.d_outs), -1)
    return Made(latents, dict(zip(sae.target_hook_points, parts, strict=True)))


def make_in_parts(
    sae: SAE, clean: Mapping[str, Float32[Tensor, "rows _"]], sizes: list[int]
) -> Iterator[Made]:
    """The same, part by part: the latents of all rows at once may be too many.

    Args:
        sae: as in `make`.
        clean: as in `make`.
        sizes: rows in each part.
    """
    parts = {name: rows.split(sizes) for name, rows in clean.items() if name in sae.hook_points}
    for number in range(len(sizes)):
        yield make(sae, {name: split[number] for name, split in parts.items()})
