"""What a training run will do: the options held against a store, the defaults filled in."""

import json
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from saeflow.config import require
from saeflow.harvest.layout import HookPoint
from saeflow.harvest.store import Store
from saeflow.train.architecture import Architecture
from saeflow.train.architectures import MAKERS
from saeflow.train.choose import choose_order
from saeflow.train.config import TrainConfig
from saeflow.train.filters import kept_bits
from saeflow.train.members import Member, make_members
from saeflow.train.order import StreamOrder
from saeflow.train.overshoot import encoder_scale
from saeflow.train.penalised import (
    bias_rate,
    decoder_norm,
    decoder_scale,
    rate_factor,
    sparsity_warm_up,
)
from saeflow.train.schedule import Schedule, default_rate

_BYTES_A_PARAMETER = 16
"""The parameter, its gradient and Adam's two moments, in float32."""

_DEAD_AFTER = 500_000
"""Rows of silence after which a latent is dead, at most; in a short run, a tenth of its rows."""

_DECAY = 0.2
"""Share of the steps over which a constant rate falls to zero at the end."""


@dataclass(frozen=True)
class SaePlan:
    """How one SAE of a run will be trained.

    Attributes:
        member: its name, options and hook points.
        architecture: which kind of SAE.
        schedule: learning rate and penalty over the steps.
        dead_after: rows without activity after which a latent counts as dead.
        bytes_of_state: memory for parameters, gradients and Adam's moments.
    """

    member: Member
    architecture: Architecture
    schedule: Schedule
    dead_after: int
    bytes_of_state: int

    def to_json(self) -> dict[str, Any]:
        """For `--dry-run`."""
        member = self.member
        return {
            "name": member.name,
            "hook_points": [hook_point.name for hook_point in member.hook_points],
            "d_in": member.d_in,
            "d_sae": member.d_sae,
            **self.chosen(),
            "bytes_of_state": self.bytes_of_state,
        }

    def chosen(self) -> dict[str, Any]:
        """What options come to whose defaults depend on others."""
        member = self.member
        own = member.config
        return {
            "lr": self.schedule.peak,
            "bias_rate": bias_rate(own, member.d_in),
            "dead_after": self.dead_after,
            "decoder_norm": decoder_norm(own),
            "decoder_scale": decoder_scale(own),
            "encoder_scale": encoder_scale(own, member.d_in, member.d_sae),
            "sparsity_warm_up": sparsity_warm_up(own),
            "architecture": asdict(self.architecture),  # type: ignore[call-overload]  # all are dataclasses
        }


@dataclass(frozen=True)
class TrainPlan:
    """What a training run will do.

    Attributes:
        saes: which SAEs, each by its own options.
        hook_points: all whose rows are read.
        n_steps: steps.
        batch_size: rows of each.
        epochs: passes over the rows that are trained on.
        order: of the rows, those that no filter leaves out.
        bytes_of_windows: memory for the two windows of rows that a reader holds; 0
            where it needs none.
    """

    saes: tuple[SaePlan, ...]
    hook_points: tuple[HookPoint, ...]
    n_steps: int
    batch_size: int
    epochs: float
    order: StreamOrder
    bytes_of_windows: int

    @property
    def rows(self) -> int:
        """Rows of all steps."""
        return self.n_steps * self.batch_size

    def remarks(self) -> list[str]:
        """What was chosen for each SAE, a line each."""
        return [f"chosen for {sae.member.name}: {json.dumps(sae.chosen())}" for sae in self.saes]

    def to_json(self) -> dict[str, Any]:
        """For `--dry-run`."""
        return {
            "saes": [sae.to_json() for sae in self.saes],
            "steps": self.n_steps,
            "rows": self.rows,
            "epochs": self.epochs,
            "bytes_of_state": sum(sae.bytes_of_state for sae in self.saes),
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
    members = make_members(config, store)
    hook_points = tuple(dict.fromkeys(h for member in members for h in member.hook_points))
    order = _order(config, store, hook_points)
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
    for own in (member.config for member in members if member.config.resample and n_steps):
        require(
            own.resample_every <= n_steps * batch,
            f"--resample-every {own.resample_every} is more than the {n_steps * batch} rows of "
            "the run: no latent would ever be resampled, lower it or leave out --resample",
        )
    return TrainPlan(
        saes=tuple(plan_sae(member, n_steps) for member in members),
        hook_points=hook_points,
        n_steps=n_steps,
        batch_size=batch,
        epochs=n_steps * batch / n_rows,
        order=order,
        bytes_of_windows=_bytes_of_windows(order, store, hook_points),
    )


def plan_sae(member: Member, n_steps: int) -> SaePlan:
    """What one SAE of a run is, in a run of so many steps."""
    config, d_in, d_sae = member.config, member.d_in, member.d_sae
    architecture = MAKERS[config.arch](config, d_in, d_sae)
    d_out = d_in if member.target is None else member.target.d_in
    n_extra = sum(tensor.numel() for tensor in architecture.initial(d_sae).values())
    n_parameters = d_sae * (d_in + d_out) + d_sae + d_out + n_extra
    n_parameters += d_in * d_out if config.skip else 0
    rows = n_steps * config.batch_size
    return SaePlan(
        member=member,
        architecture=architecture,
        schedule=_schedule(config, d_sae, n_steps),
        dead_after=config.dead_after or max(1, min(_DEAD_AFTER, rows // 10)),
        bytes_of_state=_BYTES_A_PARAMETER * n_parameters,
    )


def _schedule(config: TrainConfig, d_sae: int, n_steps: int) -> Schedule:
    decay = config.decay
    if decay is None:
        by_itself = config.schedule != "constant" or config.optimizer == "schedule-free"
        decay = 0.0 if by_itself else _DECAY
    return Schedule(
        peak=config.lr or rate_factor(config) * default_rate(d_sae),
        n_steps=n_steps,
        warm_up=round(config.warm_up * n_steps),
        decay=round(decay * n_steps),
        shape=config.schedule,
        cycles=config.cycles or 4,
        sparsity_warm_up=round(sparsity_warm_up(config) * n_steps),
    )


def _order(config: TrainConfig, store: Store, hook_points: Sequence[HookPoint]) -> StreamOrder:
    """The order of the rows; reads what the filter, if there is one, has to know of them.

    A row is left out if the filter leaves it out at any of the hook points.
    """
    kept = [kept_bits(store, hook_point, config.rows_where) for hook_point in hook_points]
    bits = [one for one in kept if one is not None]
    return choose_order(
        store.layout,
        store.train,
        max(hook_points, key=lambda h: h.d_in),
        batch_size=config.batch_size,
        seed=config.order_seed,
        window_rows=config.window_rows,
        remote=store.remote,
        kept_bits=np.bitwise_and.reduce(bits) if bits else None,
    )


def _bytes_of_windows(order: StreamOrder, store: Store, hook_points: Sequence[HookPoint]) -> int:
    width = sum(store.activations(hook_point, store.train).width for hook_point in hook_points)
    n_bytes = 2 * order.window * order.rows_per_strip * width
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    require(
        n_bytes < memory,
        f"two windows of rows take {n_bytes:,} bytes, more than this machine's memory of "
        f"{memory:,}: lower --window-rows",
    )
    return n_bytes
