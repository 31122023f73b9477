"""SAE folders of tensors that a test makes up; where they are from, they say as a trained one."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

Weights = Mapping[str, Tensor]


def identity(width: int) -> Weights:
    """Gives every row back as it is, to the bit: each sum has one product that is not zero."""
    both = torch.cat([torch.eye(width), -torch.eye(width)], 1)
    return {
        "W_enc": both,
        "b_enc": torch.zeros(2 * width),
        "W_dec": both.T.contiguous(),
        "b_dec": torch.zeros(width),
    }


def nothing(width: int) -> Weights:
    """Reconstructs zeros, of latents that are never active."""
    return {
        "W_enc": torch.ones(width, 3),
        "b_enc": torch.full((3,), -1e6),
        "W_dec": torch.ones(3, width),
        "b_dec": torch.zeros(width),
    }


def random(d_in: int, d_out: int, d_sae: int = 24, *, skip: bool = False) -> Weights:
    """Reconstructs badly."""
    draw = torch.Generator().manual_seed(5)
    shapes = {"W_enc": (d_in, d_sae), "b_enc": (d_sae,), "W_dec": (d_sae, d_out), "b_dec": (d_out,)}
    if skip:
        shapes["W_skip"] = (d_out, d_in)
    return {name: torch.randn(shape, generator=draw) / 4 for name, shape in shapes.items()}


def save_made(
    folder: Path,
    weights: Weights,
    like: Path,
    reads: Sequence[str],
    replaces: str | None = None,
    architecture: str = "standard",
) -> Path:
    """Write an SAE folder as SAELens 6 does.

    Args:
        folder: of the SAE.
        weights: by SAELens's names.
        like: an SAE folder, whose store and model it says it is from.
        reads: hook points; several for a crosscoder.
        replaces: a transcoder's target.
        architecture: as SAELens names it.
    """
    provenance = json.loads((like / "cfg.json").read_text())["metadata"]
    store = provenance["saeflow"]["store"]
    store["provenance"]["hook"] = [*reads, *([replaces] if replaces else [])]
    d_in, d_sae = weights["W_enc"].shape
    cfg: dict[str, Any] = {
        "architecture": architecture,
        "d_in": d_in,
        "d_sae": d_sae,
        "dtype": "float32",
        "apply_b_dec_to_input": False,
        "normalize_activations": "none",
    }
    metadata = {key: provenance[key] for key in ("sae_lens_version", "model_name", "saeflow")}
    if len(reads) > 1:
        cfg |= {"hook_names": list(reads), "d_ins": [d_in // len(reads)] * len(reads)}
    else:
        metadata["hook_name"] = reads[0]
    if replaces:
        cfg["d_out"], metadata["hook_name_out"] = weights["W_dec"].shape[1], replaces
    folder.mkdir(parents=True)
    (folder / "cfg.json").write_text(json.dumps({**cfg, "metadata": metadata}))
    save_file(dict(weights), folder / "sae_weights.safetensors")
    return folder
