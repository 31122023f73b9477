"""What a training run will do: the options held against a store, the defaults filled in."""

import os
from dataclasses import dataclass
from typing import Any

from saeflow.config import require
from saeflow.harvest.layout import HookPoint
from saeflow.harvest.store import Store
from saeflow.train.architecture import Architecture
from saeflow.train.architectures import MAKERS
from saeflow.train.choose import choose_order
from saeflow.train.config import TrainConfig
from saeflow.train.filters import kept_bits
from saeflow.train.optimizer import Schedule, default_rate
from saeflow.train.order import StreamOrder

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
        epochs: passes over the rows that are trained on.
        bytes_of_state: memory for parameters, gradients and Adam's moments.
        order: of the rows, those that no filter leaves out.
        bytes_of_windows: memory for the two windows of rows that a reader holds; 0
            where it needs none.
    """

    hook_point: HookPoint
    architecture: Architecture
    d_sae: int
    n_steps: int
    batch_size: int
    schedule: Schedule
    epochs: float
    bytes_of_state: int
    order: StreamOrder
    bytes_of_windows: int

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
            "rows_kept": self.order.rows_per_epoch,
            "share_kept": self.order.rows_per_epoch / self.order.n_rows,
            "rows_per_strip": self.order.rows_per_strip,
            "strips_per_window": self.order.window,
            "bytes_of_windows": self.bytes_of_windows,
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
    architecture = MAKERS[config.arch](config, hook_point.d_in, d_sae)
    order = _order(config, store, hook_point)
    n_rows, batch = order.rows_per_epoch, config.batch_size
    kept = "" if order.kept is None else "that are kept, "
    require(
        n_rows >= batch,
        f"store {store.path} has {n_rows} training rows, {kept}fewer than one batch of {batch}: "
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
    n_extra = sum(tensor.numel() for tensor in architecture.initial(d_sae).values())
    n_parameters = 2 * d_sae * hook_point.d_in + d_sae + hook_point.d_in + n_extra
    return TrainPlan(
        hook_point=hook_point,
        architecture=architecture,
        d_sae=d_sae,
        n_steps=n_steps,
        batch_size=batch,
        schedule=schedule,
        epochs=n_steps * batch / n_rows,
        bytes_of_state=_BYTES_A_PARAMETER * n_parameters,
        order=order,
        bytes_of_windows=_bytes_of_windows(order, store, hook_point),
    )


def _order(config: TrainConfig, store: Store, hook_point: HookPoint) -> StreamOrder:
    """The order of the rows; reads what the filter, if there is one, has to know of them."""
    return choose_order(
        store.layout,
        store.train,
        hook_point,
        batch_size=config.batch_size,
        seed=config.seed,
        window_rows=config.window_rows,
        remote=store.remote,
        kept_bits=kept_bits(store, hook_point, config.rows_where),
    )


def _bytes_of_windows(order: StreamOrder, store: Store, hook_point: HookPoint) -> int:
    n_bytes = (
        2 * order.window * order.rows_per_strip * store.activations(hook_point, store.train).width
    )
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    require(
        n_bytes < memory,
        f"two windows of rows take {n_bytes:,} bytes, more than this machine's memory of "
        f"{memory:,}: lower --window-rows",
    )
    return n_bytes
