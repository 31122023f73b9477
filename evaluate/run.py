"""`saeflow evaluate`: splice an SAE into its source model and score it on held-out text."""

import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from saeflow import console
from saeflow.config import require, to_plain
from saeflow.errors import BadInputError
from saeflow.evaluate.checks import check_all
from saeflow.evaluate.config import EvaluateConfig
from saeflow.evaluate.opening import OpenedSAE
from saeflow.evaluate.origin import origin_of
from saeflow.evaluate.result import EvaluationResult
from saeflow.evaluate.score import ReconstructionScore
from saeflow.evaluate.source import model_spec_of, source_model_of
from saeflow.evaluate.splice import (
    check_spliceable,
    replaced_positions,
    scored_predictions,
    token_losses,
)
from saeflow.evaluate.text import HeldOutText, held_out_text
from saeflow.files import write_json
from saeflow.harvest.models import SourceModel
from saeflow.train.folder import find_sae, load_sae, weights_sha256
from saeflow.train.metrics import DeadLatents, reconstruction_metrics
from saeflow.train.sae import SAE

SCORES = "scores.json"
_POSITIONS = {
    "replaced": "all but position 0 and special tokens, the same in every pass",
    "scored": "predictions made at a replaced position of a token at a replaced position",
}
_LIBRARIES = ("saeflow", "torch", "transformers", "transformer-lens")


def evaluate_sae(config: EvaluateConfig, *, overwrite: bool = False) -> EvaluationResult:
    """Score an SAE and write `scores.json`.

    Run again with the same options on the same SAE, it returns what it found.

    Args:
        config: the options.
        overwrite: replace scores that were made with other options.

    Raises:
        BadInputError: the SAE, the model, the text or an option can't be used.
    """
    folder = find_sae(config.sae)
    sae = load_sae(folder)
    options = _resolved(config, folder)
    out = (config.out or folder) / SCORES
    if out.parent.exists() and not out.parent.is_dir():
        raise BadInputError(f"--out {out.parent} is a file: name a folder")
    if out.is_file() and not overwrite:
        return _earlier(out, options)
    opened = _spliceable(folder, sae)
    source = source_model_of(config, [opened])
    model = source.model
    text = held_out_text(config, origin_of(sae), model)
    check_all(config, opened, replace(source.used, text=text))
    result = _score(config, sae.to(model.device), model, text, folder.name, options)
    write_json(out, result.to_json())
    return result


def plan_evaluation(config: EvaluateConfig) -> dict[str, Any]:
    """What an evaluation will run, for `--dry-run`; loads the SAE, not the model.

    Raises:
        BadInputError: the SAE can't be used, or does not say its model.
    """
    folder = find_sae(config.sae)
    sae = load_sae(folder)
    spec = model_spec_of(config, [_spliceable(folder, sae)])
    return {
        "sae": str(folder),
        "d_in": sae.d_in,
        "d_sae": sae.d_sae,
        "model": spec.name,
        "hook_point": sae.hook_point,
        "forward_passes_a_sequence": 3,
        "tokens_at_most": config.tokens,
    }


def _spliceable(folder: Path, sae: SAE) -> OpenedSAE:
    require(
        sae.kind == "sae",
        f"{folder} holds a {sae.kind}: evaluate can't splice a {sae.kind} yet, only an SAE "
        "that reconstructs the rows of one hook point",
    )
    check_spliceable(sae.hook_point)
    return OpenedSAE(folder.resolve().name, folder, sae)


def _resolved(config: EvaluateConfig, folder: Path) -> dict[str, Any]:
    plain = {k: v for k, v in to_plain(config).items() if k != "out"}
    return {**plain, "sae": str(folder.resolve()), "sae_weights_sha256": weights_sha256(folder)}


def _earlier(path: Path, options: Mapping[str, Any]) -> EvaluationResult:
    try:
        result = EvaluationResult.from_json(json.loads(path.read_text(encoding="utf-8")))
    except (ValueError, KeyError, TypeError) as error:
        raise BadInputError(
            f"{path} is no scores.json of this saeflow: move it, or give --overwrite"
        ) from error
    changed = [k for k in {**result.options, **options} if result.options.get(k) != options.get(k)]
    if changed:
        told = "; ".join(
            f"{k}: {result.options.get(k)!r} there, {options.get(k)!r} now" for k in changed
        )
        raise BadInputError(
            f"{path} holds scores made with other options ({told}): name another --out, "
            "or replace them with --overwrite"
        )
    console.say(f"{path} is complete already")
    return result


def _score(
    config: EvaluateConfig,
    sae: SAE,
    model: SourceModel,
    text: HeldOutText,
    name: str,
    options: Mapping[str, Any],
) -> EvaluationResult:
    special = sorted(set(model.tokenizer.all_special_ids))
    mean = _reference_mean(sae, model, text, config.batch_size, special)
    score, dead = ReconstructionScore(), DeadLatents(sae.d_sae)
    metrics = reconstruction_metrics(mean)
    for metric in (score, dead, metrics):
        metric.to(model.device)
    n_rows = 0
    with console.meter("evaluating", len(text.sequences), "sequences") as meter:
        for tokens in _batches(text, config.batch_size, model.device):
            replaced = replaced_positions(tokens, special)
            scored = scored_predictions(replaced)
            seen: list[Tensor] = []
            losses = {
                "clean": token_losses(model, tokens, sae.hook_point, replaced, None, seen),
                "spliced": token_losses(model, tokens, sae.hook_point, replaced, sae),
                "zero_ablated": token_losses(
                    model, tokens, sae.hook_point, replaced, torch.zeros_like
                ),
            }
            score.update(**{which: loss[scored] for which, loss in losses.items()})
            latents = sae.encode(seen[0])
            fired = (latents > 0).sum(0)
            metrics.update(x=seen[0], reconstruction=sae.decode(latents, seen[0]), fired=fired)
            dead.update(fired)
            n_rows += len(seen[0])
            meter.advance(len(tokens))
    values = {key: float(value) for key, value in metrics.compute().items()}
    found = float(score.compute())
    return EvaluationResult(
        name=name,
        options=options,
        model=model.spec.name,
        hook_point=sae.hook_point,
        text={
            "source": text.source,
            "held_out_only": not text.trained_on,
            "sequences": len(text.sequences),
            "sequences_available": text.available,
            "tokens_scored": int(score.tokens),
            "rows_replaced": n_rows,
        },
        positions=_POSITIONS,
        losses=score.losses(),
        reconstruction_score=None if math.isnan(found) else found,
        dead=int(dead.compute()),
        d_sae=sae.d_sae,
        versions={library: version(library) for library in _LIBRARIES},
        **values,
    )


def _batches(
    text: HeldOutText, batch_size: int, device: torch.device
) -> Iterator[Int[Tensor, "batch position"]]:
    for first in range(0, len(text.sequences), batch_size):
        batch = text.sequences[first : first + batch_size].astype(np.int64)
        yield torch.from_numpy(batch).to(device)


def _reference_mean(
    sae: SAE, model: SourceModel, text: HeldOutText, batch_size: int, special: list[int]
) -> Float[Tensor, " d_in"]:
    """The mean of the SAE's training rows; for a foreign SAE that of the text itself."""
    if sae.mean is not None:
        return sae.mean
    total, n_rows = torch.zeros(sae.d_in, dtype=torch.float64, device=model.device), 0
    for tokens in _batches(text, batch_size, model.device):
        seen: list[Tensor] = []
        token_losses(model, tokens, sae.hook_point, replaced_positions(tokens, special), None, seen)
        total += seen[0].double().sum(0)
        n_rows += len(seen[0])
    return total / n_rows
