"""The SAE folder: cfg.json and sae_weights.safetensors as SAELens 6 reads them, and a self-test.

`self_test.safetensors` holds a few rows with their latents and reconstructions
and the mean of the training targets. Loading repeats the test, so a folder that was
damaged, or is read by code that computes something else, is refused.
"""

import hashlib
import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from torch import Tensor

from saeflow.errors import BadInputError, SaeflowError
from saeflow.files import PARTIAL, sync_directory, write_json
from saeflow.train import saelens
from saeflow.train.architecture import Inference
from saeflow.train.kinds import FORMS, Form
from saeflow.train.parameters import Parameters
from saeflow.train.sae import SAE, architecture_of
from saeflow.train.tensors import write_tensors

CFG, WEIGHTS, SELF_TEST = "cfg.json", "sae_weights.safetensors", "self_test.safetensors"
_TOLERANCE = 1e-3
_SHAPES = {
    "W_enc": ("d_in", "d_sae"),
    "b_enc": ("d_sae",),
    "W_dec": ("d_sae", "d_out"),
    "b_dec": ("d_out",),
}
_SKIP = {"W_skip": ("d_out", "d_in")}


def save_sae(sae: SAE, folder: Path, rows: Float[Tensor, "rows d_in"]) -> None:
    """Write an SAE folder, whole or not at all.

    Args:
        sae: on any device.
        folder: must not exist.
        rows: a few rows that it reads, for the self-test, in the source model's units.
    """
    assert sae.parameters.centre is None or not sae.parameters.centre.any(), "not folded"
    partial = folder.with_name(folder.name + PARTIAL)
    if partial.exists():
        shutil.rmtree(partial)
    partial.mkdir(parents=True)
    x = rows.to(sae.parameters.b_dec.device).float()
    latents = sae.encode(x)
    test = {"x": x, "latents": latents, "reconstruction": sae.decode(latents, x)}
    if sae.mean is not None:
        test["mean"] = sae.mean
    write_tensors(_weights_of(sae), partial / WEIGHTS)
    write_tensors(test, partial / SELF_TEST, {"weights_sha256": weights_sha256(partial)})
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
    saelens.check_version(cfg, folder)
    architecture = architecture_of(cfg, str(folder))
    form = FORMS[cfg["architecture"]]
    named = _shapes_of(architecture, form)
    sizes = {**cfg, "d_out": cfg.get("d_out" if form.kind == "transcoder" else "d_in")}
    _check_shapes(weights, named, architecture.renamed, sizes, folder)
    saelens.check_settings(cfg, form, folder)
    _check_blocks(cfg, form, folder)
    weights = saelens.in_float32(weights, folder)
    if cfg.get("rescale_acts_by_decoder_norm"):
        saelens.fold_decoder_norms(weights)
    ours = {name: weights[architecture.renamed.get(name, name)] for name in named}
    parameters = _parameters_of(ours, architecture, form, cfg)
    sae = SAE(
        architecture,
        parameters,
        saelens.canonical(cfg, form),
        test.get("mean"),
        saelens.row_scaling_of(cfg),
    )
    if test:
        _repeat(test, sae, folder)
    return sae


def find_sae(path: Path) -> Path:
    """The SAE folder at a path: itself, or the only one of a run folder.

    Raises:
        BadInputError: there is none, or there are several.
    """
    found = find_saes(path)
    if len(found) > 1:
        names = ", ".join(str(folder) for folder in found)
        raise BadInputError(f"run {path} holds {len(found)} SAEs: choose one of {names}")
    return found[0]


def find_saes(path: Path) -> tuple[Path, ...]:
    """The SAE folders at a path: itself, or all of a run folder, by name.

    Raises:
        BadInputError: there is none.
    """
    if (path / CFG).is_file():
        return (path,)
    if not path.is_dir():
        what = "is a file, not a folder" if path.exists() else "does not exist"
        raise BadInputError(f"SAE folder {path} {what}: check the path")
    found = sorted(
        cfg.parent for cfg in path.glob(f"sae/*/{CFG}") if PARTIAL not in cfg.parent.name
    )
    if not found:
        raise BadInputError(
            f"{path} holds no SAE: give an SAE folder, or a run that saeflow train has finished"
        )
    return tuple(found)


def _parameters_of(
    named: Mapping[str, Tensor], architecture: Inference, form: Form, cfg: Mapping[str, Any]
) -> Parameters:
    """Tensors by the names that they have here, as parameters that take no gradients."""
    off, crosscoder = saelens.takes_b_dec_off(cfg, form), form.kind == "crosscoder"
    return Parameters(
        named["W_enc"].t(),
        named["b_enc"],
        named["W_dec"],
        named["b_dec"],
        {name: named[name] for name in architecture.rules},
        architecture.rules,
        centre=None if off else torch.zeros_like(named["W_enc"][:, 0]),
        W_skip=named["W_skip"] if form.skip else None,
        blocks=tuple(cfg["d_ins"]) if crosscoder else (),
    ).requires_grad_(False)


def _weights_of(sae: SAE) -> dict[str, Tensor]:
    """Every tensor under the name that it has in the folder."""
    p, architecture = sae.parameters, sae.architecture
    ours: dict[str, Tensor] = {
        "W_enc": p.W_enc,
        "b_enc": p.b_enc,
        "W_dec": p.W_dec,
        "b_dec": p.b_dec,
        **{name: p.more(name) for name in architecture.rules},
        **({} if p.W_skip is None else {"W_skip": p.W_skip}),
    }
    return {architecture.renamed.get(name, name): tensor for name, tensor in ours.items()}


def _shapes_of(architecture: Inference, form: Form) -> dict[str, tuple[str, ...]]:
    """The axes of each of its tensors, under their names here."""
    more = {name: rule.axes for name, rule in architecture.rules.items()}
    return {**_SHAPES, **more, **(_SKIP if form.skip else {})}


def _check_shapes(
    weights: Mapping[str, Tensor],
    shapes: Mapping[str, tuple[str, ...]],
    renamed: Mapping[str, str],
    sizes: Mapping[str, Any],
    folder: Path,
) -> None:
    for own_name, axes in shapes.items():
        name = renamed.get(own_name, own_name)
        expected = tuple(sizes.get(axis) for axis in axes)
        found = tuple(weights[name].shape) if name in weights else None
        if found != expected:
            raise BadInputError(
                f"SAE folder {folder}: {name} has shape {found}, its {CFG} says {expected}"
            )
    if unknown := weights.keys() - {renamed.get(own_name, own_name) for own_name in shapes}:
        raise BadInputError(
            f"SAE folder {folder}: {min(unknown)} is no tensor of the architecture that its "
            f"{CFG} names"
        )


def _check_blocks(cfg: Mapping[str, Any], form: Form, folder: Path) -> None:
    """Refuse a crosscoder whose hook points are not those of its width."""
    if form.kind == "crosscoder":
        names, widths = cfg.get("hook_names"), cfg.get("d_ins")
        if not (
            isinstance(names, list)
            and isinstance(widths, list)
            and len(names) == len(widths)
            and all(isinstance(width, int) and width > 0 for width in widths)
            and sum(widths) == cfg["d_in"]
        ):
            raise BadInputError(
                f"SAE folder {folder}: hook_names {names} with widths d_ins {widths} are not "
                f"those of d_in {cfg['d_in']}: its {CFG} was changed"
            )


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


def metadata(**entries: Any) -> dict[str, Any]:
    """The part of cfg.json that says where an SAE is from, as SAELens 6 names it."""
    return {"sae_lens_version": "6.0.0", **{k: v for k, v in entries.items() if v is not None}}
