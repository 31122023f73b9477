"""What SAELens 6's format allows beside what saeflow itself writes, made the same for all.

An SAE that came from elsewhere then is one as ours are, but for two things that no
change of its weights expresses: whether it takes `b_dec` off the rows that it reads,
and a normalisation of each row. Whatever would be computed wrongly is refused.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from saeflow.errors import BadInputError
from saeflow.train.kinds import Form
from saeflow.train.row_scaling import ROW_SCALINGS, RowScaling

_UNFOLDED = "activation_scaler.json"
"""What SAELens's training checkpoints have beside the other two files."""
_OLDEST = 6
_NOTHING_AT_RUN_TIME = ("none", "expected_average_only_in")
"""Values of `normalize_activations` by which SAELens does nothing to rows.

The second one names a scaling in training that is folded into the weights at its end.
"""
_RESHAPED = ("none", "hook_z")
"""Values of `reshape_activations`; rows are flat here, whatever axes they had."""


def check_version(cfg: Mapping[str, Any], folder: Path) -> None:
    """Refuse folders that a SAELens before 6 wrote: the same keys meant other things.

    Raises:
        BadInputError: `metadata.sae_lens_version` is missing, or less than 6.
    """
    version = cfg.get("metadata", {}).get("sae_lens_version") or cfg.get("sae_lens_version")
    major = str(version).partition(".")[0]
    if not (major.isdecimal() and int(major) >= _OLDEST):
        raise BadInputError(
            f"SAE folder {folder} is not of SAELens {_OLDEST} or later (its "
            f"metadata.sae_lens_version is {version}): load it with SAELens {_OLDEST}, "
            "and save it again with save_model"
        )


def check_settings(cfg: Mapping[str, Any], form: Form, folder: Path) -> None:
    """Refuse what this saeflow would compute wrongly.

    Raises:
        BadInputError: a setting has a value that is not supported.
    """
    supported: dict[str, tuple[object, ...]] = {
        "apply_b_dec_to_input": (False, True),
        "normalize_activations": (*_NOTHING_AT_RUN_TIME, *ROW_SCALINGS),
        "reshape_activations": _RESHAPED,
    }
    for name, values in supported.items():
        if cfg.get(name, values[0]) not in values:
            raise BadInputError(
                f"SAE folder {folder}: {name} is {cfg[name]!r}, saeflow can use only "
                f"{', '.join(map(repr, values))}"
            )
    if form.kind == "crosscoder" and row_scaling_of(cfg) is not None:
        raise BadInputError(
            f"SAE folder {folder}: normalize_activations is {cfg['normalize_activations']!r}, "
            "which no crosscoder has: its cfg.json was changed"
        )
    if (folder / _UNFOLDED).is_file() and _unfolded_scale(folder) is not None:
        raise BadInputError(
            f"SAE folder {folder} is a checkpoint of training whose scale ({_UNFOLDED}) is not "
            "in its weights: give the SAE that SAELens saved at the end"
        )


def row_scaling_of(cfg: Mapping[str, Any]) -> RowScaling | None:
    """How each row is normalised at run time."""
    return ROW_SCALINGS.get(str(cfg.get("normalize_activations")))


def takes_b_dec_off(cfg: Mapping[str, Any], form: Form) -> bool:
    """Whether `b_dec` is taken off the rows that are read.

    SAELens's transcoders never do: `b_dec` is of the rows that they give back. Its
    first versions wrote `apply_b_dec_to_input: true` for them all the same.
    """
    return form.kind != "transcoder" and bool(cfg.get("apply_b_dec_to_input", True))


def canonical(cfg: dict[str, Any], form: Form) -> dict[str, Any]:
    """A cfg.json that says the same of the SAE as it is here, in float32 and folded."""
    changed = {**cfg, "dtype": "float32", "apply_b_dec_to_input": takes_b_dec_off(cfg, form)}
    if row_scaling_of(cfg) is None:
        changed["normalize_activations"] = "none"
    if cfg.get("rescale_acts_by_decoder_norm"):
        changed["rescale_acts_by_decoder_norm"] = False
    if "hook_name_out" in cfg:  # where SAELens's first transcoders had it
        changed["metadata"] = {"hook_name_out": cfg["hook_name_out"], **cfg["metadata"]}
    return changed


def in_float32(weights: Mapping[str, Tensor], folder: Path) -> dict[str, Tensor]:
    """Tensors of whatever precision, ready to be computed with.

    Raises:
        BadInputError: one holds no floating-point numbers.
    """
    for name, tensor in weights.items():
        if not tensor.is_floating_point():
            told = str(tensor.dtype).removeprefix("torch.")
            raise BadInputError(f"SAE folder {folder}: {name} holds numbers of type {told}")
    return {name: tensor.float() for name, tensor in weights.items()}


def fold_decoder_norms(weights: dict[str, Tensor]) -> None:
    """Pre-activations times decoder norms, and decoder rows without them, as weights of TopK."""
    norms = weights["W_dec"].norm(dim=1)
    weights["W_enc"] = weights["W_enc"] * norms
    weights["b_enc"] = weights["b_enc"] * norms
    weights["W_dec"] = weights["W_dec"] / norms.clamp_min(torch.finfo(norms.dtype).tiny)[:, None]


def _unfolded_scale(folder: Path) -> Any:
    try:
        return json.loads((folder / _UNFOLDED).read_text(encoding="utf-8"))["scaling_factor"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise BadInputError(f"SAE folder {folder}: {_UNFOLDED} can't be read: {error}") from error
