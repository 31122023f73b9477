"""SAELens's `run_evals` of one SAE on given tokens.

    python benchmarks/peer_saelens_evals.py SAE MODEL TOKENS OUT [--batch-size 8]

To be run where SAELens is installed; `evaluate_beside_saelens.py` calls it. TOKENS is a
safetensors file with `tokens`, (sequences, positions), BOS in front; the figures go to
OUT, JSON. The model is TransformerLens 3's bridge, since its HookedTransformer reads no
local folder; SAELens's own subclass of it does not know hook points by their usual names,
and hooks that are given one are silently not called (6.54.12). What the activation store
hands out is held against the given tokens, once for the losses and once for the rows.
"""

import argparse
import json
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from sae_lens import SAE, ActivationsStore
from sae_lens.evals import get_eval_everything_config, run_evals
from sae_lens.training.activation_scaler import ActivationScaler
from safetensors.torch import load_file
from torch import Tensor
from transformer_lens.model_bridge import TransformerBridge


class Recorded(ActivationsStore):
    """An activation store that keeps the batches of tokens it has handed out."""

    def get_batch_tokens(self, *args: Any, **kwargs: Any) -> Tensor:
        """As it is there."""
        batch: Tensor = super().get_batch_tokens(*args, **kwargs)
        self.__dict__.setdefault("seen", []).append(batch)
        return batch


def figures(
    sae: Any, model: Any, tokens: Tensor, batch_size: int, *, exclude_special_tokens: bool
) -> dict[str, float]:
    """Every figure of `run_evals` that is not of single latents, and the count of dead ones."""
    store = Recorded.from_sae(
        model,
        sae,
        Dataset.from_dict({"input_ids": tokens.tolist()}),
        context_size=tokens.shape[1],
        streaming=False,
        store_batch_size_prompts=batch_size,
        total_tokens=len(tokens),
    )
    n_batches = len(tokens) // batch_size
    groups, latents = run_evals(
        sae,
        store,
        model,
        ActivationScaler(),
        get_eval_everything_config(batch_size, n_batches, n_batches),
        exclude_special_tokens=exclude_special_tokens,
    )
    if not torch.equal(torch.cat(store.seen), torch.cat([tokens, tokens])):
        raise RuntimeError("SAELens did not evaluate the given tokens in their order, twice")
    dead = sum(density == 0 for density in latents["feature_density"])
    found = {name: value for group in groups.values() for name, value in group.items()}
    return {**found, "dead": dead}


def main() -> None:
    arguments = argparse.ArgumentParser(description="SAELens's run_evals of one SAE.")
    for name in ("sae", "model", "tokens", "out"):
        arguments.add_argument(name, type=Path)
    arguments.add_argument("--batch-size", type=int, default=8)
    args = arguments.parse_args()
    tokens = load_file(args.tokens)["tokens"].long()
    if len(tokens) % args.batch_size:
        raise SystemExit(f"{len(tokens)} sequences are no whole batches of {args.batch_size}")
    sae = SAE.load_from_disk(args.sae)
    model = TransformerBridge.boot_transformers(
        str(args.model.resolve()), device="cpu", dtype=torch.float32
    )
    found = {
        "versions": {name: version(name) for name in ("sae-lens", "transformer-lens", "torch")},
        **{
            name: figures(sae, model, tokens, args.batch_size, exclude_special_tokens=excluded)
            for name, excluded in (("default", True), ("all_positions", False))
        },
    }
    args.out.write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
