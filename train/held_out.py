"""How an SAE does in training: as it would be saved now, on held-out rows that it never sees."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from saeflow import console
from saeflow.harvest.layout import HookPoint, Split
from saeflow.harvest.store import Store
from saeflow.train.metrics import FiringShares, reconstruction_metrics
from saeflow.train.trainer import Trainer

DENSE = 0.1
"""A latent is dense if it is active in more than this share of the rows."""

_ROWS_AT_ONCE = 1024

_RUN = 64
"""Rows that are read together, as fast as many: few enough for rows of many documents."""


@dataclass(frozen=True)
class HeldOut:
    """Held-out rows of a run's hook points, in the host's memory as they are stored.

    Attributes:
        rows: the same rows of each hook point.
    """

    rows: Mapping[str, Float[Tensor, "rows _"]]

    def figures(self, trainer: Trainer, hook_points: Sequence[HookPoint]) -> dict[str, float]:
        """What metrics.jsonl says of an SAE, each name beginning with `held_out_`.

        Args:
            trainer: of the SAE.
            hook_points: those that it reads, and of a transcoder the one that it reconstructs.
        """
        units, device = trainer.normalisation, trainer.since_fired.device
        shared = units.scale if units.kind == "crosscoder" else 1.0  # of hook points with own units
        metrics = reconstruction_metrics(units.mean * shared).to(device)
        firing = FiringShares(len(trainer.since_fired)).to(device)
        parts = [self.rows[h.name].split(_ROWS_AT_ONCE) for h in hook_points]
        with trainer.finished() as (inference, p):
            for chunk in zip(*parts, strict=True):
                rows = [part.to(device).float() for part in chunk]
                x = torch.cat(rows, 1) if units.kind == "crosscoder" else rows[0]
                target = rows[1] if units.kind == "transcoder" else x
                latents = inference.encode(p, x)
                fired = (latents > 0).sum(0)
                found = latents @ p.W_dec + p.offset(x)
                metrics.update(x=target * shared, reconstruction=found * shared, fired=fired)
                firing.update(x=x, fired=fired)
        values = {name: value.item() for name, value in metrics.compute().items()}
        shares = firing.compute()
        values["dead"] = int((shares == 0).sum())
        values["dense"] = int((shares > DENSE).sum())
        return {f"held_out_{name}": value for name, value in values.items()}


def open_held_out(store: Store, hook_points: Sequence[HookPoint], n_rows: int) -> HeldOut | None:
    """Held-out rows, spread over all there are; None if there are none, or none are wanted."""
    split = store.held_out
    if n_rows == 0:
        return None
    if split.n_rows == 0:
        console.say(f"store {store.path} holds no held-out rows: training is not checked on any")
        return None
    runs = _spread(split, n_rows)
    return HeldOut({h.name: store.rows(h, split, runs) for h in hook_points})


def _spread(split: Split, n_rows: int) -> list[range]:
    """Runs of rows, evenly spaced, none across a shard."""
    n_runs = -(-min(n_rows, split.n_rows) // _RUN)
    starts = [number * split.n_rows // n_runs for number in range(n_runs)]
    ends = [*starts[1:], split.n_rows]
    shard, left = split.rows_per_shard, n_rows
    runs = []
    for start, end in zip(starts, ends, strict=True):
        runs.append(range(start, min(start + min(_RUN, left), end, (start // shard + 1) * shard)))
        left -= len(runs[-1])
    return runs
