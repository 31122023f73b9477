"""What a training run will do: the options held against a store, the defaults filled in."""

from dataclasses import dataclass
from typing import Any

from saeflow.config import require
from saeflow.harvest.layout import HookPoint
from saeflow.harvest.store import Store
from saeflow.train.architecture import Architecture
from saeflow.train.config import TrainConfig
from saeflow.train.optimizer import Schedule, default_rate
from saeflow.train.relu import ReLU
from saeflow.train.topk import TopK

DEFAULT_K = 32
DEFAULT_L1 = 5.0
_BYTES_A_PARAMETER = 16
"""The parameter, its gradient and Adam's two moments, in float32."""


@dataclass(frozen=True)
class TrainPlan:
    """What a training run will do.

    Attributes:
        hook_point: whose rows.
        architecture: which kind of SAE.
        d_sae: its latents.
        n_steps: steps.
        batch_size: rows of each.
        schedule: learning rate over the steps.
        epochs: passes over the store.
        bytes_of_state: memory for parameters, gradients and Adam's moments.
    """

    hook_point: HookPoint
    architecture: Architecture
    d_sae: int
    n_steps: int
    batch_size: int
    schedule: Schedule
    epochs: float
    bytes_of_state: int

    def to_json(self) -> dict[str, Any]:
        """For `--dry-run`."""
        return {
            "hook_point": self.hook_point.name,
            "d_in": self.hook_point.d_in,
            "d_sae": self.d_sae,
            "steps": self.n_steps,
            "rows": self.n_steps * self.batch_size,
            "epochs": self.epochs,
            "lr": self.schedule.peak,
            "bytes_of_state": self.bytes_of_state,
        }


def make_plan(config: TrainConfig, store: Store) -> TrainPlan:
    """Hold the options against the store.

    Raises:
        BadInputError: they don't fit it.
    """
    hook_point = store.hook_point(config.hook)
    d_sae = config.d_sae or round((config.expansion or 1) * hook_point.d_in)
    require(
        d_sae > 0, f"--expansion {config.expansion} of {hook_point.d_in} is no latent: raise it"
    )
    architecture: Architecture
    if config.arch == "topk":
        k = config.k or DEFAULT_K
        require(k <= d_sae, f"--k {k} is more than the {d_sae} latents: lower --k or raise --d-sae")
        architecture = TopK(k)
    else:
        architecture = ReLU(DEFAULT_L1 if config.l1 is None else config.l1)
    n_rows, batch = store.train.n_rows, config.batch_size
    require(
        n_rows >= batch,
        f"store {store.path} has {n_rows} training rows, fewer than one batch of {batch}: "
        "lower --batch-size, or harvest more",
    )
    tokens = n_rows if config.tokens is None else config.tokens
    require(
        tokens == 0 or tokens >= batch,
        f"--tokens {tokens} is less than one batch of {batch}: raise it, or lower --batch-size",
    )
    n_steps = tokens // batch
    schedule = Schedule(
        peak=config.lr or default_rate(d_sae),
        n_steps=n_steps,
        warm_up=round(config.warm_up * n_steps),
        decay=round(config.decay * n_steps),
    )
    n_parameters = 2 * d_sae * hook_point.d_in + d_sae + hook_point.d_in
    return TrainPlan(
        hook_point=hook_point,
        architecture=architecture,
        d_sae=d_sae,
        n_steps=n_steps,
        batch_size=batch,
        schedule=schedule,
        epochs=n_steps * batch / n_rows,
        bytes_of_state=_BYTES_A_PARAMETER * n_parameters,
    )
