"""The figures of a trained SAE, whoever trained it: by one code, on rows nobody trained on."""

import json
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from saeflow import EvaluateConfig, EvaluationResult, Store, evaluate_saes, load_sae
from saeflow.train.metrics import DeadLatents, reconstruction_metrics

_PART = 4096


def adopt(folder: Path, store: Store) -> None:
    """Tell a peer's SAE folder what it is from, so that it is scored on the same text as ours."""
    path = folder / "cfg.json"
    cfg = json.loads(path.read_text(encoding="utf-8"))
    cfg["metadata"] |= {
        "model_name": store.provenance["model"]["name"],
        "hook_name": store.hook_point(None).name,
        "saeflow": {
            "store": {
                "path": str(store.path),
                "identity": store.identity,
                "provenance": dict(store.provenance),
            }
        },
    }
    path.write_text(json.dumps(cfg, indent=2) + "\n", encoding="utf-8")


def held_out_figures(folder: Path, store: Store) -> dict[str, float]:
    """FVU, FVU per row, L0 and dead share on all held-out rows.

    `silent` is the share of latents that are active in none of as many as 65,536
    training rows either: the held-out rows are few, and rare latents miss them.
    """
    sae, hook_point = load_sae(folder), store.hook_point(None)
    mean = torch.as_tensor(store.statistics(hook_point)["mean"], dtype=torch.float32)
    metrics, dead = reconstruction_metrics(mean), DeadLatents(sae.d_sae)
    held_out, train = store.held_out, store.train
    for begin in range(0, held_out.n_rows, _PART):
        runs = [range(begin, min(begin + _PART, held_out.n_rows))]
        x = store.rows(hook_point, held_out, runs).float()
        latents = sae.encode(x)
        fired = (latents > 0).sum(0)
        metrics.update(x=x, reconstruction=sae.decode(latents), fired=fired)
        dead.update(fired)
    figures = {name: value.item() for name, value in metrics.compute().items()}
    figures["dead"] = dead.compute().item() / sae.d_sae
    for begin in range(0, min(65_536, train.n_rows), _PART):
        runs = [range(begin, min(begin + _PART, train.n_rows))]
        dead.update((sae.encode(store.rows(hook_point, train, runs).float()) > 0).sum(0))
    return {**figures, "silent": dead.compute().item() / sae.d_sae}


def reconstruction_scores(
    folders: Mapping[str, Path], model: str | None, tokens: int
) -> dict[str, dict[str, Any]]:
    """The reconstruction score of SAEs, as `saeflow evaluate` gives it, all in one go.

    Args:
        folders: of SAEs of one store, by the name of the cell.
        model: the source model, where it is not where the store was made from it.
        tokens: held-out tokens, at most.
    """
    with tempfile.TemporaryDirectory() as scratch:
        run = Path(scratch, "run")
        for name, folder in folders.items():
            shutil.copytree(folder, run / "sae" / name)
        config = EvaluateConfig(
            sae=run,
            out=Path(scratch, "out"),
            model=model,
            tokens=tokens,
            latents="none",
            report=False,
            device="cpu",
        )
        results = evaluate_saes(config)
        return {name: _scored(results[name]) for name in folders}


def _scored(result: EvaluationResult) -> dict[str, Any]:
    score = result.scores["zero"].ratio_of_sums
    return {
        "score": score.value,
        "score_interval": [score.low, score.high],
        "tokens_scored": result.text["tokens_scored"],
        "losses": {name: loss.value for name, loss in result.losses.items()},
        "kl": result.kl.value,
    }
