"""The figures of a trained SAE, whoever trained it: by one code, on rows nobody trained on."""

import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from saeflow import EvaluateConfig, Store, load_sae
from saeflow.evaluate.score import ReconstructionScore
from saeflow.evaluate.source import source_model
from saeflow.evaluate.splice import (
    Replacement,
    replaced_positions,
    scored_predictions,
    token_losses,
)
from saeflow.evaluate.text import held_out_text
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


class Scorer:
    """The reconstruction score, as `saeflow evaluate` computes it, of one SAE after another.

    Two of its three passes, clean and zero-ablated, are the same for all SAEs of a hook
    point. They are run once, which makes a table of many SAEs three times as fast.

    Args:
        folder: any of the SAE folders; they are all of one store.
        model: the source model, where it is not where the store was made from it.
        tokens: held-out tokens, at most.
    """

    def __init__(self, folder: Path, model: str | None, tokens: int) -> None:
        sae = load_sae(folder)
        config = EvaluateConfig(sae=folder, model=model, tokens=tokens, device="cpu")
        self._model = source_model(config, sae)
        text = held_out_text(config, sae.cfg["metadata"]["saeflow"], self._model)
        self._batches = torch.from_numpy(text.sequences.astype("int64")).split(16)
        self._special = sorted(set(self._model.tokenizer.all_special_ids))
        self._clean = self._losses(sae.hook_point, None)
        self._zero_ablated = self._losses(sae.hook_point, torch.zeros_like)

    def score(self, folder: Path) -> dict[str, Any]:
        """Of one SAE."""
        sae = load_sae(folder)
        score = ReconstructionScore()
        spliced = self._losses(sae.hook_point, sae)
        score.update(clean=self._clean, spliced=spliced, zero_ablated=self._zero_ablated)
        return {
            "score": score.compute().item(),
            "tokens_scored": len(spliced),
            "losses": score.losses(),
        }

    def _losses(self, hook_point: str, replacement: Replacement | None) -> Tensor:
        """Of the scored predictions of all the text."""
        found = []
        for tokens in self._batches:
            replaced = replaced_positions(tokens, self._special)
            losses = token_losses(self._model, tokens, hook_point, replaced, replacement)
            found.append(losses[scored_predictions(replaced)])
        return torch.cat(found)
