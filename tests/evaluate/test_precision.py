"""Losses are transformers' own, and the score does not hang on the model's precision."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import zarr
from transformers import AutoModelForCausalLM

from saeflow.evaluate.config import EvaluateConfig
from saeflow.evaluate.result import EvaluationResult
from saeflow.evaluate.run import evaluate_sae
from saeflow.harvest.builtin import MODEL_PATH
from saeflow.harvest.config import HarvestConfig
from saeflow.harvest.run import harvest_activations
from saeflow.train.config import TrainConfig
from saeflow.train.run import train_sae

Evaluate = Callable[..., EvaluationResult]
TOKENS = 1260


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Rows of the built-in model."""
    out = tmp_path_factory.mktemp("precision") / "store"
    harvest_activations(
        HarvestConfig(
            model="builtin",
            dataset="builtin",
            hook=("blocks.1.hook_resid_post",),
            out=out,
            tokens=6000,
            context_size=64,
            held_out=0.3,
            device="cpu",
        )
    )
    return out


@pytest.fixture(scope="module")
def evaluate(store: Path, tmp_path_factory: pytest.TempPathFactory) -> Evaluate:
    """Evaluate one SAE of them, with any option changed."""
    base = tmp_path_factory.mktemp("precision")
    run = TrainConfig(
        store=store, out=base / "run", d_sae=256, k=16, tokens=51_200, batch_size=512, device="cpu"
    )
    train_sae(run)

    def found(**changed: Any) -> EvaluationResult:
        out = base / "-".join(["scores", *map(str, changed.values())])
        options: dict[str, Any] = {"sae": run.out, "out": out, "tokens": TOKENS}
        options |= {"latents": "none", "report": False, "device": "cpu"}
        return evaluate_sae(EvaluateConfig(**options, **changed))

    return found


def test_the_clean_loss_is_transformers_own(evaluate: Evaluate, store: Path) -> None:
    result = evaluate(score="all")
    held_out = zarr.open_group(store, mode="r")["heldout/sequences/token"]
    assert isinstance(held_out, zarr.Array)
    sequences = np.asarray(held_out[:]).astype(np.int64)
    chosen = torch.from_numpy(sequences[np.arange(20) * len(sequences) // 20])
    model = AutoModelForCausalLM.from_pretrained(str(MODEL_PATH), dtype=torch.float32)
    with torch.no_grad():
        loss = model(chosen, labels=chosen).loss.item()
    assert result.text["tokens_scored"] == chosen[:, 1:].numel()
    assert result.losses["clean"].value == pytest.approx(loss, abs=1e-4)


def test_a_bfloat16_model_gives_the_score_of_the_float32_one(evaluate: Evaluate) -> None:
    exact, rounded = evaluate(), evaluate(dtype="bfloat16")
    assert exact.reconstruction_score is not None
    assert rounded.reconstruction_score is not None
    assert exact.mismatches == ()
    assert [mismatch["field"] for mismatch in rounded.mismatches] == ["dtype"]
    assert exact.losses["clean"] != rounded.losses["clean"]
    assert rounded.reconstruction_score == pytest.approx(exact.reconstruction_score, abs=0.005)
