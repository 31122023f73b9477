"""How many block evaluations an evaluation of several SAEs at one hook point takes.

    python benchmarks/evaluate_cost.py [--model builtin] [--hook blocks.1.hook_resid_post]
                                       [--saes 4] [--sequences 16] [--context 128]

One block over one token is one evaluation. With L blocks and N SAEs after block l, the
ideal is one whole pass and, for each SAE, for zero and for mean ablation, the blocks after
l: `L + (N + 2)(L - l - 1)`; for a hook point inside block l, that block too. Beside it
what other tools do, three whole passes an SAE: clean, spliced and ablated, run here too.
Both are counted by hooks on the model's own blocks, not taken from the formula, and timed
without the SAEs themselves. Exits 1 if ours is more than 1.15 of the ideal.
"""

import argparse
import sys
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from saeflow.evaluate.ablation import mean_rows, zero_rows
from saeflow.evaluate.placing import attached, place_rows
from saeflow.evaluate.positions import chosen_positions
from saeflow.evaluate.replay import Replay
from saeflow.harvest.models import ModelSpec, SourceModel, load_model

BOUND = 1.15
ABLATIONS = 2


class BlockCounter:
    """Counts the tokens that go through the blocks of a model."""

    def __init__(self, model: SourceModel) -> None:
        self.evaluations = 0
        self.n_blocks = len(model.bridge.blocks)
        for block in model.bridge.blocks:  # whose wrappers run even where a block doesn't
            block.original_component.register_forward_hook(self._count)

    def _count(self, module: Any, args: Any, output: Any) -> None:  # noqa: ARG002  # torch's signature
        residual = output[0] if isinstance(output, tuple) else output
        self.evaluations += residual.shape[0] * residual.shape[1]

    def of(self, run: Callable[[], None]) -> tuple[int, float]:
        """Block evaluations and seconds that something takes."""
        before, started = self.evaluations, time.perf_counter()
        run()
        return self.evaluations - before, time.perf_counter() - started


def ours(replay: Replay, hook: str, tokens: Tensor, replaced: Tensor, n_saes: int) -> None:
    """The passes of an evaluation of one batch; each SAE puts in rows of its own."""
    clean = replay.clean(tokens)
    rows = clean.rows(hook, replaced)
    saes = [rows * (0.9 - 0.1 * number) for number in range(n_saes)]
    for put in (zero_rows(rows), mean_rows(rows.mean(0), rows), *saes):
        replay.spliced(clean, replaced, {hook: put})


@torch.inference_mode()
def whole_pass(model: SourceModel, tokens: Tensor) -> None:
    """One forward pass."""
    model.bridge(tokens, use_cache=False)


@torch.inference_mode()
def naive(model: SourceModel, hook: str, tokens: Tensor, replaced: Tensor, n_saes: int) -> None:
    """Three whole passes an SAE."""

    def scaled(factor: float) -> Callable[[Tensor], Tensor]:
        return lambda activation: place_rows(
            activation, replaced, activation.flatten(2)[replaced] * factor
        )

    for number in range(n_saes):
        whole_pass(model, tokens)
        for factor in (0.0, 0.9 - 0.1 * number):
            with attached(model.bridge, [(hook, scaled(factor))]):
                whole_pass(model, tokens)


def blocks_after(model: SourceModel, hook: str) -> int:
    """How many blocks depend on what is at a hook point, by its name."""
    n_blocks = len(model.bridge.blocks)
    parts = hook.split(".")
    if parts[0] != "blocks":
        return 0 if parts[0] in ("ln_final", "unembed") else n_blocks
    return n_blocks - int(parts[1]) - (parts[-1] in ("hook_resid_post", "hook_out"))


def main() -> int:
    arguments = argparse.ArgumentParser(description="Block evaluations of an evaluation.")
    arguments.add_argument("--model", default="builtin")
    arguments.add_argument("--hook", help="after the middle block if not given")
    arguments.add_argument("--saes", type=int, default=4)
    arguments.add_argument("--sequences", type=int, default=16)
    arguments.add_argument("--context", type=int, default=128)
    given = arguments.parse_args()
    model = load_model(ModelSpec(name=given.model))
    n_blocks = len(model.bridge.blocks)
    hook = given.hook or f"blocks.{n_blocks // 2 - 1}.hook_resid_post"
    shape = given.sequences, given.context
    tokens = torch.randint(model.vocabulary, shape, generator=torch.Generator().manual_seed(0))
    replaced = chosen_positions(tokens, torch.ones_like(tokens, dtype=torch.bool), [])
    replay, counter = Replay(model, [hook]), BlockCounter(model)
    whole_pass(model, tokens)  # to be warm

    whole, whole_seconds = counter.of(lambda: whole_pass(model, tokens))
    found = {
        "ours": counter.of(lambda: ours(replay, hook, tokens, replaced, given.saes)),
        "three whole passes an SAE": counter.of(
            lambda: naive(model, hook, tokens, replaced, given.saes)
        ),
    }
    later = blocks_after(model, hook)
    ideal = (n_blocks + (given.saes + ABLATIONS) * later) * tokens.numel()
    print(f"{given.saes} SAEs at {hook} of {given.model}: {n_blocks} blocks, {shape} tokens")
    print(f"{'one whole pass':26} {whole:>12,} block evaluations, {whole_seconds:.2f} s")
    print(f"{'ideal':26} {ideal:>12,} block evaluations, {ideal / whole:6.2f} whole passes")
    for name, (count, seconds) in found.items():
        print(
            f"{name:26} {count:>12,} block evaluations, {count / whole:6.2f} whole passes, "
            f"{count / ideal:5.2f} of the ideal; {seconds:6.2f} s, "
            f"{seconds / whole_seconds:5.2f} times one"
        )
    ratio = found["ours"][0] / ideal
    print(f"bound {BOUND}, used {ratio:.4f}")
    return int(ratio > BOUND)


if __name__ == "__main__":
    sys.exit(main())
