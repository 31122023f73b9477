"""The SAE folder: cfg.json and sae_weights.safetensors as SAELens 6 reads them, and a self-test.

`self_test.safetensors` holds a few rows with their latents and reconstructions
and the mean of the training rows. Loading repeats the test, so a folder that was
damaged, or is read by code that computes something else, is refused.
"""

import hashlib
import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jaxtyping import Float
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from saeflow.errors import BadInputError, SaeflowError
from saeflow.files import PARTIAL, sync_directory, write_json
from saeflow.train.architecture import Inference
from saeflow.train.parameters import Parameters
from saeflow.train.sae import SAE, architecture_of

CFG, WEIGHTS, SELF_TEST = "cfg.json", "sae_weights.safetensors", "self_test.safetensors"
_TOLERANCE = 1e-3
_SHAPES = {
    "W_enc": ("d_in", "d_sae"),
    "b_enc": ("d_sae",),
    "W_dec": ("d_sae", "d_in"),
    "b_dec": ("d_in",),
}
_SETTINGS = {
    "apply_b_dec_to_input": True,
    "normalize_activations": "none",
}


def save_sae(sae: SAE, folder: Path, rows: Float[Tensor, "rows d_in"]) -> None:
    """Write an SAE folder, whole or not at all.

    Args:
        sae: on any device.
        folder: must not exist.
        rows: a few rows for the self-test, in the source model's units.
    """
    partial = folder.with_name(folder.name + PARTIAL)
    if partial.exists():
        shutil.rmtree(partial)
    partial.mkdir(parents=True)
    x = rows.to(sae.parameters.b_dec.device).float()
    latents = sae.encode(x)
    test = {"x": x, "latents": latents, "reconstruction": sae.decode(latents)}
    if sae.mean is not None:
        test["mean"] = sae.mean
    _save(_weights_of(sae), partial / WEIGHTS)
    _save(test, partial / SELF_TEST, {"weights_sha256": weights_sha256(partial)})
    write_json(partial / CFG, dict(sae.cfg))
    partial.rename(folder)
    sync_directory(folder.parent)


def load_sae(folder: Path | str) -> SAE:
    """Open an SAE folder: ours, or one that SAELens 6 wrote.

    Raises:
        BadInputError: it is no SAE folder, or of an architecture that saeflow doesn't know.
        SaeflowError: it fails its own self-test.
    """
    folder = Path(folder)
    if not (folder / CFG).is_file():
        raise BadInputError(f"{folder} is no SAE folder: it has no {CFG}")
    try:
        cfg = json.loads((folder / CFG).read_text(encoding="utf-8"))
        if not isinstance(cfg, dict) or not isinstance(cfg.get("metadata", {}), dict):
            raise TypeError(f"{CFG} is not of the form that SAELens 6 writes")
        weights = load_file(folder / WEIGHTS)
        test = load_file(folder / SELF_TEST) if (folder / SELF_TEST).is_file() else {}
    except (OSError, ValueError, TypeError, SafetensorError) as error:
        raise BadInputError(f"SAE folder {folder} can't be read: {error}") from error
    architecture = architecture_of(cfg, str(folder))
    named = _shapes_of(architecture)
    _check_shapes(weights, named, architecture.renamed, cfg, folder)
    _check_settings(cfg, folder)
    if cfg.get("rescale_acts_by_decoder_norm"):
        _fold_decoder_norms(weights)
        cfg["rescale_acts_by_decoder_norm"] = False
    ours = {name: weights[architecture.renamed.get(name, name)] for name in named}
    extra = {name: ours[name] for name in architecture.rules}
    four = ours["W_enc"].t(), ours["b_enc"], ours["W_dec"], ours["b_dec"]
    parameters = Parameters(*four, extra, architecture.rules).requires_grad_(False)
    sae = SAE(architecture, parameters, cfg, test.get("mean"))
    if test:
        _repeat(test, sae, folder)
    return sae


def find_sae(path: Path) -> Path:
    """The SAE folder at a path: itself, or the only one of a run folder.

    Raises:
        BadInputError: there is none, or there are several.
    """
    if (path / CFG).is_file():
        return path
    if not path.is_dir():
        what = "is a file, not a folder" if path.exists() else "does not exist"
        raise BadInputError(f"SAE folder {path} {what}: check the path")
    found = sorted(
        cfg.parent for cfg in path.glob(f"sae/*/{CFG}") if PARTIAL not in cfg.parent.name
    )
    if len(found) == 1:
        return found[0]
    if found:
        names = ", ".join(str(folder) for folder in found)
        raise BadInputError(f"run {path} holds {len(found)} SAEs: choose one of {names}")
    raise BadInputError(
        f"{path} holds no SAE: give an SAE folder, or a run that saeflow train has finished"
    )


def _weights_of(sae: SAE) -> dict[str, Tensor]:
    """Every tensor under the name that it has in the folder."""
    p, architecture = sae.parameters, sae.architecture
    ours: dict[str, Tensor] = {
        "W_enc": p.W_enc,
        "b_enc": p.b_enc,
        "W_dec": p.W_dec,
        "b_dec": p.b_dec,
        **{name: p.more(name) for name in architecture.rules},
    }
    return {architecture.renamed.get(name, name): tensor for name, tensor in ours.items()}


def _shapes_of(architecture: Inference) -> dict[str, tuple[str, ...]]:
    """The axes of each of its tensors, under their names here."""
    return {**_SHAPES, **{name: rule.axes for name, rule in architecture.rules.items()}}


def _check_shapes(
    weights: Mapping[str, Tensor],
    shapes: Mapping[str, tuple[str, ...]],
    renamed: Mapping[str, str],
    cfg: Mapping[str, Any],
    folder: Path,
) -> None:
    for own_name, axes in shapes.items():
        name = renamed.get(own_name, own_name)
        expected = tuple(cfg.get(axis) for axis in axes)
        found = tuple(weights[name].shape) if name in weights else None
        if found != expected:
            raise BadInputError(
                f"SAE folder {folder}: {name} has shape {found}, its {CFG} says {expected}"
            )


def _check_settings(cfg: Mapping[str, Any], folder: Path) -> None:
    """Refuse what SAELens's format allows and this saeflow would compute wrongly."""
    for name, supported in _SETTINGS.items():
        if cfg.get(name, supported) != supported:
            raise BadInputError(
                f"SAE folder {folder}: {name} is {cfg[name]!r}, saeflow can use only {supported!r}"
            )


def _fold_decoder_norms(weights: dict[str, Tensor]) -> None:
    """Pre-activations times decoder norms, and decoder rows without them, as weights of TopK."""
    norms = weights["W_dec"].norm(dim=1)
    weights["W_enc"] = weights["W_enc"] * norms
    weights["b_enc"] = weights["b_enc"] * norms
    weights["W_dec"] = weights["W_dec"] / norms[:, None]


def _repeat(test: Mapping[str, Tensor], sae: SAE, folder: Path) -> None:
    with safe_open(folder / SELF_TEST, "pt") as file:
        recorded = (file.metadata() or {}).get("weights_sha256")
    if recorded is not None and recorded != weights_sha256(folder):
        raise SaeflowError(
            f"SAE folder {folder} fails its self-test: {WEIGHTS} is not the file that was written "
            f"with it; if you changed it on purpose, remove {SELF_TEST}"
        )
    found = sae(test["x"])
    error = (found - test["reconstruction"]).norm() / test["reconstruction"].norm()
    if not error <= _TOLERANCE:
        raise SaeflowError(
            f"SAE folder {folder} fails its self-test: its reconstructions are off by "
            f"{error.item():.2g} of their norm; its files were changed or damaged"
        )


def weights_sha256(folder: Path) -> str:
    """What identifies an SAE's weights."""
    with (folder / WEIGHTS).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _save(
    tensors: Mapping[str, Tensor], path: Path, metadata: dict[str, str] | None = None
) -> None:
    save_file({k: t.detach().cpu().contiguous() for k, t in tensors.items()}, path, metadata)
    with path.open("rb") as file:
        os.fsync(file.fileno())


def metadata(**entries: Any) -> dict[str, Any]:
    """The part of cfg.json that says where an SAE is from, as SAELens 6 names it."""
    return {"sae_lens_version": "6.0.0", **{k: v for k, v in entries.items() if v is not None}}
