"""Is the clean loss the model's own, and what does a bfloat16 model do to the score?

    python benchmarks/evaluate_precision.py SAE [--tokens 5080]

SAE is an SAE folder whose store, made in float32, and source model are at hand. Its clean
loss, over all predictions, is held against the loss that transformers computes by itself on
the same tokens; then the score of the SAE in the same model, loaded in bfloat16, against
that in float32. Exits 1 if the losses are more than 1e-4 apart or the scores more than
0.005.
"""

import argparse
import sys
import tempfile
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from transformers import AutoModelForCausalLM

from saeflow import EvaluateConfig, EvaluationResult, evaluate_sae, load_sae, open_store
from saeflow.evaluate.config import PositionChoice
from saeflow.evaluate.sequences import from_store
from saeflow.harvest.models import find_model

LOSS_BOUND = 1e-4
SCORE_BOUND = 0.005
BATCH_SIZE = 8


def evaluated(
    sae: Path,
    tokens: int,
    score: PositionChoice = "text",
    dtype: Literal["bfloat16"] | None = None,
) -> EvaluationResult:
    """What `saeflow evaluate` says."""
    with tempfile.TemporaryDirectory() as out:
        config = EvaluateConfig(
            sae=sae,
            tokens=tokens,
            score=score,
            dtype=dtype,
            latents="none",
            report=False,
            batch_size=BATCH_SIZE,
            out=Path(out),
            device="cpu",
        )
        return evaluate_sae(config)


@torch.inference_mode()
def transformers_loss(sae: Path, tokens: int) -> float:
    """The mean loss of the same text by the `labels` of the model's own forward pass."""
    store = open_store(Path(load_sae(sae).cfg["metadata"]["saeflow"]["store"]["path"]))
    sequences = from_store(store, store.held_out, tokens).sequences
    folder = find_model(store.provenance["model"]["name"])
    model = AutoModelForCausalLM.from_pretrained(str(folder), dtype=torch.float32).eval()
    batches = torch.from_numpy(sequences.astype(np.int64)).split(BATCH_SIZE)
    losses = [model(batch, labels=batch).loss.item() * len(batch) for batch in batches]
    return float(sum(losses) / len(sequences))


def main() -> int:
    arguments = argparse.ArgumentParser(description="Clean loss and score by precision.")
    arguments.add_argument("sae", type=Path)
    arguments.add_argument("--tokens", type=int, default=5080)
    args = arguments.parse_args()
    by_all = evaluated(args.sae, args.tokens, score="all")
    clean, own = by_all.losses["clean"].value, transformers_loss(args.sae, args.tokens)
    assert clean is not None
    apart = abs(clean - own)
    print(f"clean loss of {by_all.model}, {by_all.text['tokens_scored']:,} predictions:")
    print(f"saeflow {clean:.6f}, transformers {own:.6f}: {apart:.1e} apart (bound {LOSS_BOUND})")
    results = [evaluated(args.sae, args.tokens), evaluated(args.sae, args.tokens, dtype="bfloat16")]
    for name, result in zip(("float32", "bfloat16"), results, strict=True):
        losses = ", ".join(f"{k} {v.value:.4f}" for k, v in result.losses.items())
        print(f"{name}: score {result.reconstruction_score:.5f}; losses: {losses}")
    exact, rounded = (result.reconstruction_score for result in results)
    if exact is None or rounded is None:
        raise SystemExit("zero ablation costs next to nothing here: there is no score to compare")
    difference = abs(rounded - exact)
    print(f"scores are {difference:.5f} apart (bound {SCORE_BOUND})")
    return int(not (apart <= LOSS_BOUND and difference < SCORE_BOUND))


if __name__ == "__main__":
    sys.exit(main())
