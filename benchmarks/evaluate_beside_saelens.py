"""An evaluation beside SAELens's `run_evals`: same model, same SAE folder, same tokens.

    python benchmarks/evaluate_beside_saelens.py SAE PEER_PYTHON [--tokens 5080]

PEER_PYTHON is the interpreter of an environment with SAELens (`pip install sae-lens`; it
needs a transformer-lens older than saeflow's), which runs `peer_saelens_evals.py` beside
this script. The text is what `saeflow evaluate --tokens` takes: held-out sequences of the
SAE's store, spread evenly; SAELens needs whole batches of 8. Where a figure differs from
SAELens's, the causes are switched on here one after another, until nothing is left. Prints
one table, and exits 1 if more than 1e-4 is left anywhere, of the value where that is above
1, or if `saeflow evaluate` itself says other figures. `docs/evaluation.md` says more of the
causes.
"""

import argparse
import json
import math
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from evaluate_passes import BATCH_SIZE, see
from evaluate_variants import Figure, loss_figures, loss_figures_everywhere, relative, row_figures
from safetensors.torch import save_file
from torch import Tensor

from saeflow import EvaluateConfig, evaluate_sae, load_sae, open_store
from saeflow.evaluate.config import PositionChoice
from saeflow.evaluate.positions import chosen_positions
from saeflow.evaluate.sequences import from_store
from saeflow.harvest.models import ModelSpec, load_model

BOUND = 1e-4


def peer_figures(python: Path, sae: Path, model: str, tokens: Tensor) -> dict[str, Any]:
    """What SAELens finds, in its own environment."""
    script = Path(__file__).with_name("peer_saelens_evals.py")
    with tempfile.TemporaryDirectory() as folder:
        given, found = Path(folder) / "tokens.safetensors", Path(folder) / "figures.json"
        save_file({"tokens": tokens.contiguous()}, given)
        command = [python, script, sae, model, given, found, "--batch-size", str(BATCH_SIZE)]
        environment = os.environ | {"HF_HUB_OFFLINE": "1"}
        subprocess.run(list(map(str, command)), check=True, env=environment)
        figures: dict[str, Any] = json.loads(found.read_text(encoding="utf-8"))
    return figures


def print_rows(title: str, figures: list[Figure]) -> None:
    """The part of the table that is of one setting."""
    print(f"| **{title}** | | | |")
    for figure in figures:
        for cause, value in figure.steps:
            what = f"| | + {cause}" if cause else f"| {figure.name} | saeflow"
            print(f"{what} | {value:.6g} | {value - figure.peer:+.6f} |")
        print(f"| | SAELens `{figure.peer_name}` | {figure.peer:.6g} | |")


def evaluated(sae: Path, tokens: int, positions: PositionChoice) -> dict[str, float]:
    """What `saeflow evaluate` says, which the lines `saeflow` must repeat."""
    with tempfile.TemporaryDirectory() as out:
        config = EvaluateConfig(
            sae=sae,
            tokens=tokens,
            replace=positions,
            score=positions,
            latents="none",
            report=False,
            batch_size=BATCH_SIZE,
            out=Path(out),
            device="cpu",
        )
        result = evaluate_sae(config)
    rows, losses = result.reconstruction, result.losses
    found = {
        "reconstruction score": result.reconstruction_score,
        "clean loss": losses["clean"].value,
        "spliced loss": losses["spliced"].value,
        "zero-ablated loss": losses["zero_ablated"].value,
        "KL": result.kl.value,
        "FVU": rows.fvu,
        "explained variance": rows.explained_variance,
        "FVU per row": rows.row_fvu,
        "relative bias": rows.relative_bias,
        "MSE": rows.mse,
        "cosine": rows.cosine,
        "L2 ratio": rows.l2_ratio,
        "L0": result.l0,
        "L1": result.sparsity.l1,
        "dead latents": result.dead,
    }
    return {name: math.nan if value is None else float(value) for name, value in found.items()}


@torch.inference_mode()
def main() -> int:
    arguments = argparse.ArgumentParser(description="Our evaluation beside SAELens's run_evals.")
    arguments.add_argument("sae", type=Path)
    arguments.add_argument("peer_python", type=Path)
    arguments.add_argument("--tokens", type=int, default=5080)
    args = arguments.parse_args()
    sae = load_sae(args.sae)
    store = open_store(Path(sae.cfg["metadata"]["saeflow"]["store"]["path"]))
    sequences = from_store(store, store.held_out, args.tokens).sequences
    tokens = torch.from_numpy(sequences.astype(np.int64))
    model = load_model(ModelSpec(name=store.provenance["model"]["name"]))
    peer = peer_figures(args.peer_python, args.sae, model.spec.name, tokens)
    special = sorted(set(model.tokenizer.all_special_ids))
    mean = store.statistics(store.hook_point(sae.hook_point))["mean"]
    mean = torch.as_tensor(mean, dtype=torch.float32)
    seen = see(model, sae, tokens, special)
    every = torch.ones_like(tokens, dtype=torch.bool)
    text = chosen_positions(tokens, every, special)
    default, everywhere = peer["default"], peer["all_positions"]
    print(f"saeflow beside {', '.join(f'{k} {v}' for k, v in peer['versions'].items())}")
    print(f"{sae.hook_point} of {model.spec.name}: {len(tokens)} sequences of {tokens.shape[1]}")
    print(f"{int((~text[:, 1:]).sum())} special tokens behind position 0; {int(text.sum()):,} rows")
    settings: dict[str, tuple[PositionChoice, list[Figure]]] = {
        "run_evals as it is by default": (
            "text",
            [*loss_figures(seen, special, default), *row_figures(sae, seen, text, mean, default)],
        ),
        "run_evals(exclude_special_tokens=False); here --replace all --score all": (
            "all",
            [
                *loss_figures_everywhere(seen, everywhere),
                *row_figures(sae, seen, every, mean, everywhere),
            ],
        ),
    }
    print("\n| figure | | value | less SAELens's |\n| --- | --- | ---: | ---: |")
    left, apart = 0.0, 0.0
    for title, (positions, figures) in settings.items():
        print_rows(title, figures)
        left = max(left, *(figure.left for figure in figures))
        said = evaluated(args.sae, args.tokens, positions)
        apart = max(apart, *(relative(said[f.name], f.steps[0][1]) for f in figures))
    print(f"\nleft after the last step: {left:.1e} at most (bound {BOUND:.0e})")
    print(f"lines `saeflow` against saeflow evaluate: {apart:.1e} at most (bound {BOUND:.0e})")
    return int(not (left <= BOUND and apart <= BOUND))


if __name__ == "__main__":
    sys.exit(main())
