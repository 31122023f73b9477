"""Every architecture on data whose answer is known.

    python benchmarks/synthetic.py [--arch NAME ...] [--steps 150]

Rows are sparse sums of 512 directions in 256 dimensions, 8 on average, around a
mean of norm 3, with noise that no SAE can explain (1.2 % of the variance). Each
architecture trains with the settings that `saeflow train` would give it at d_sae
2048 (and k 16), but for a learning rate three times the default. Printed of rows
that training never saw: FVU, L0, the mean over true directions of the largest
cosine with a decoder row (MMCS), the share of latents that were active in none of
the last 16,384 rows of training (dead), and in none of as many unseen ones
(unused). 512 latents are enough: an SAE that needs no others leaves 75 % unused.
"""

import argparse
import math
import time
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F

from saeflow.train.architecture import Architecture
from saeflow.train.architectures import MAKERS
from saeflow.train.config import TrainConfig
from saeflow.train.optimizer import Schedule, default_rate
from saeflow.train.parameters import Parameters
from saeflow.train.trainer import Normalisation, Trainer

D_IN, N_TRUE, L0, D_SAE, BATCH = 256, 512, 8, 2048, 2048
RATE = 3 * default_rate(D_SAE)
"""150 steps are few: the default, which is for many, would not get to the end of its way."""
NOISE_SHARE, MEAN_NORM, N_UNSEEN = 0.012, 3.0, 16_384

CASES: dict[str, dict[str, object]] = {
    "topk": {"arch": "topk", "k": 16},
    "topk, no AuxK": {"arch": "topk", "k": 16, "aux_k": 0},
    "batchtopk": {"arch": "batchtopk", "k": 16},
    "matryoshka": {"arch": "matryoshka", "k": 16},
    "matryoshka of topk, drawn": {
        "arch": "matryoshka",
        "base": "topk",
        "k": 16,
        "drawn_prefixes": 5,
    },
    "matryoshka of relu": {"arch": "matryoshka", "base": "relu"},
    "relu": {"arch": "relu"},
    "gated": {"arch": "gated"},
    "p-anneal": {"arch": "p-anneal"},
    "jumprelu": {"arch": "jumprelu"},
    "jumprelu, tanh": {"arch": "jumprelu", "sparsity": "tanh"},
    "jumprelu, target L0 16": {"arch": "jumprelu", "target_l0": 16},
}


class Truth:
    """The directions, and rows made of them."""

    def __init__(self, seed: int) -> None:
        self._generator = torch.Generator().manual_seed(seed)
        self.directions = F.normalize(self._normal(N_TRUE, D_IN), dim=1)
        self._mean = MEAN_NORM * F.normalize(self._normal(D_IN), dim=0)
        signal = self._signal(N_UNSEEN)
        variance = (signal - signal.mean(0)).square().sum(1).mean()
        self._noise = math.sqrt(NOISE_SHARE / (1 - NOISE_SHARE) * variance / D_IN)

    def rows(self, n: int) -> Tensor:
        """Rows that were never drawn before."""
        return self._signal(n) + self._mean + self._noise * self._normal(n, D_IN)

    def _signal(self, n: int) -> Tensor:
        active = torch.rand(n, N_TRUE, generator=self._generator) < L0 / N_TRUE
        strengths = 1 + torch.rand(n, N_TRUE, generator=self._generator)
        return (active * strengths) @ self.directions

    def _normal(self, *shape: int) -> Tensor:
        return torch.randn(*shape, generator=self._generator)


def train(architecture: Architecture, rows: Tensor, n_steps: int) -> Trainer:
    """Train on the rows, in order, as the command would."""
    values = rows.double().numpy()
    normalisation = Normalisation.from_statistics(
        values.mean(0), values.std(0), torch.device("cpu")
    )
    start = normalisation.mean * normalisation.scale
    extra = architecture.initial(D_SAE)
    parameters = Parameters.initial(start, D_SAE, 0, extra, architecture.rules)
    schedule = Schedule(RATE, n_steps, round(0.05 * n_steps), round(0.2 * n_steps))
    trainer = Trainer(architecture, parameters, normalisation, schedule, TrainConfig.dead_after)
    for _ in trainer.fit(iter(rows.split(BATCH)), 0, log_every=n_steps):
        pass
    return trainer


def describe(trainer: Trainer, truth: Truth, unseen: Tensor) -> dict[str, float]:
    """The figures of one row of the table."""
    inference, p = trainer.architecture.trained(trainer.normalisation.folded(trainer.parameters))
    latents = inference.encode(p, unseen)
    error = (latents @ p.W_dec + p.b_dec - unseen).square().sum()
    cosines = truth.directions @ F.normalize(p.W_dec, dim=1).t()
    return {
        "FVU": (error / (unseen - unseen.mean(0)).square().sum()).item(),
        "L0": (latents > 0).sum(1).float().mean().item(),
        "MMCS": cosines.amax(1).mean().item(),
        "dead": (trainer.since_fired >= N_UNSEEN).float().mean().item(),
        "unused": (latents > 0).any(0).logical_not().float().mean().item(),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--arch", nargs="*", default=list(CASES))
    parser.add_argument("--steps", type=int, default=150)
    options = parser.parse_args()
    truth = Truth(seed=0)
    unseen, rows = truth.rows(N_UNSEEN), truth.rows(options.steps * BATCH)
    print(f"{'':28} {'FVU':>7} {'L0':>7} {'MMCS':>7} {'dead':>7} {'unused':>7} {'seconds':>8}")
    for name in options.arch:
        config = TrainConfig(store=Path("-"), out=Path("-"), d_sae=D_SAE, **CASES[name])  # type: ignore[arg-type]  # named in CASES
        architecture = MAKERS[config.arch](config, D_IN, D_SAE)
        start = time.perf_counter()
        trainer = train(architecture, rows, options.steps)
        seconds = time.perf_counter() - start
        figures = describe(trainer, truth, unseen)
        print(
            f"{name:28} {figures['FVU']:7.4f} {figures['L0']:7.1f} {figures['MMCS']:7.3f} "
            f"{figures['dead']:7.1%} {figures['unused']:7.1%} {seconds:8.1f}",
            flush=True,
        )


if __name__ == "__main__":
    main()
