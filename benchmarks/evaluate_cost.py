"""What an evaluation of several SAEs at one hook point costs, in evaluations of a block.

    python benchmarks/evaluate_cost.py [RUN] [--tokens 8192]

RUN is a run of `saeflow train` whose SAEs share a hook point; without one, four untrained SAEs
of the built-in model are made. All of `saeflow evaluate` is run on it, and the model's own
blocks count the tokens that go through them. With L blocks and N SAEs after block l, the ideal
is one whole pass, and the blocks after l for each SAE and for zero and mean ablation:
`L + (N + 2)(L - l - 1)`; for a hook point inside block l, that block too. Beside it what
other tools do: three whole passes an SAE, clean, spliced and ablated. Exits 1 if ours is more
than 1.15 of the ideal.
"""

import argparse
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch

from saeflow import (
    EvaluateConfig,
    HarvestConfig,
    TrainConfig,
    evaluate_saes,
    harvest_activations,
    train_sae,
)
from saeflow.evaluate import source
from saeflow.harvest.models import ModelSpec, SourceModel, load_model

BOUND = 1.15
ABLATIONS = 2


class BlockCounter:
    """Counts the tokens that go through a model's blocks, whose wrappers run in any case."""

    def __init__(self) -> None:
        self.evaluations = 0
        self.model: SourceModel | None = None

    def load(self, spec: ModelSpec) -> SourceModel:
        """Load a model and watch it."""
        self.model = load_model(spec)
        for block in self.model.bridge.blocks:
            block.original_component.register_forward_hook(self._count)
        return self.model

    def _count(self, module: Any, args: Any, output: Any) -> None:  # noqa: ARG002  # torch's signature
        residual = output[0] if isinstance(output, tuple) else output
        self.evaluations += residual.shape[0] * residual.shape[1]


def blocks_after(n_blocks: int, hook: str) -> int:
    """How many blocks depend on what is at a hook point, by its name."""
    parts = hook.split(".")
    if parts[0] != "blocks":
        return 0 if parts[0] in ("ln_final", "unembed") else n_blocks
    return n_blocks - int(parts[1]) - (parts[-1] in ("hook_resid_post", "hook_out"))


@contextmanager
def made_run() -> Iterator[Path]:
    """Four untrained SAEs of the built-in model."""
    with tempfile.TemporaryDirectory() as folder:
        store, run = Path(folder, "store"), Path(folder, "run")
        hook = ("blocks.1.hook_resid_post",)
        harvest_activations(
            HarvestConfig(model="builtin", dataset="builtin", hook=hook, out=store, tokens=200_000)
        )
        sweep = ("k=8,16,32,64",)
        train_sae(TrainConfig(store=store, out=run, d_sae=256, sweep=sweep, tokens=0))
        yield run


def evaluate(run: Path, tokens: int) -> int:
    """Evaluate a run, and print what that took."""
    counter = BlockCounter()
    started = time.perf_counter()
    with tempfile.TemporaryDirectory() as out, patch.object(source, "load_model", counter.load):
        config = EvaluateConfig(sae=run, out=Path(out), tokens=tokens, latents="none", report=False)
        results = evaluate_saes(config)
    wall = time.perf_counter() - started
    model, first = counter.model, next(iter(results.values()))
    assert model is not None
    hooks = {hook for result in results.values() for hook in (*result.reads, *result.replaces)}
    if len(hooks) > 1:
        raise SystemExit(f"run {run} has SAEs at {', '.join(sorted(hooks))}: give one of one")
    n_blocks, context = len(model.bridge.blocks), first.text["context_size"]
    whole = n_blocks * first.text["sequences"] * context
    later = blocks_after(n_blocks, hooks.pop())
    ideal = whole + (len(results) + ABLATIONS) * later * whole // n_blocks
    rows = {
        "one whole pass": whole,
        "ideal": ideal,
        "saeflow evaluate": counter.evaluations,
        "three whole passes an SAE": 3 * len(results) * whole,
    }
    print(f"{len(results)} SAEs at {first.where} of {first.model}, {n_blocks} blocks")
    for name, count in rows.items():
        told = f"{count / whole:6.2f} whole passes, {count / ideal:5.2f} of the ideal"
        print(f"{name:26} {count:>12,} block evaluations, {told}")
    seconds = seconds_of_a_pass(model, first.text["sequences"], context)
    print(f"all of it took {wall:.1f} s, with loading; {wall / seconds:.1f} times a whole pass")
    return int(counter.evaluations > BOUND * ideal)


@torch.inference_mode()
def seconds_of_a_pass(model: SourceModel, sequences: int, context: int) -> float:
    """One forward pass over as many tokens."""
    shape, draw = (sequences, context), torch.Generator().manual_seed(0)
    tokens = torch.randint(model.vocabulary, shape, generator=draw).to(model.device)
    started = time.perf_counter()
    for batch in tokens.split(16):
        model.bridge(batch, use_cache=False)[0, -1, 0].item()
    return time.perf_counter() - started


def main() -> int:
    arguments = argparse.ArgumentParser(description="Block evaluations of an evaluation.")
    arguments.add_argument("run", type=Path, nargs="?")
    arguments.add_argument("--tokens", type=int, default=8192)
    given = arguments.parse_args()
    if given.run is not None:
        return evaluate(given.run, given.tokens)
    with made_run() as run:
        return evaluate(run, given.tokens)


if __name__ == "__main__":
    sys.exit(main())
