"""The loop over batches: every SAE takes a step on each; what is due is noted and saved."""

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from functools import cached_property
from typing import NoReturn

from jaxtyping import Float
from torch import Tensor

from saeflow import console
from saeflow.errors import SaeflowError
from saeflow.harvest.layout import HookPoint
from saeflow.harvest.store import Store
from saeflow.train.architecture import Objective
from saeflow.train.checkpoint import Checkpoint, Checkpoints
from saeflow.train.config import TrainConfig
from saeflow.train.held_out import HeldOut
from saeflow.train.journal import Journal
from saeflow.train.loader import Loader
from saeflow.train.order import StreamOrder
from saeflow.train.plan import TrainPlan
from saeflow.train.shared import SharedEncoders
from saeflow.train.stopping import Stopping
from saeflow.train.trainer import LOOK_EVERY, Trainer

Rows = Mapping[HookPoint, Float[Tensor, "batch _"]]


@dataclass
class Training:
    """A run on its way.

    Attributes:
        config, plan, store: what is trained, on what.
        trainers: of each SAE, by its name, in the plan's order.
        groups: of SAEs whose encoders' products are one.
        loader: where batches come from.
        held_out: rows to check on; None for none.
        journal: where figures go.
        checkpoints: where the state goes.
        stopping: whether someone wants it to stop.
        saved: the last step that has a checkpoint.
    """

    config: TrainConfig
    plan: TrainPlan
    store: Store
    trainers: Mapping[str, Trainer]
    groups: Sequence[SharedEncoders]
    loader: Loader
    held_out: HeldOut | None
    journal: Journal
    checkpoints: Checkpoints
    stopping: Stopping
    saved: int = 0
    _saved_at: float = field(default_factory=time.monotonic, init=False)

    def run(self, first_step: int) -> None:
        """Take the steps from `first_step` on.

        Raises:
            SaeflowError: the store is damaged, or a loss is not finite.
            SystemExit, KeyboardInterrupt: someone wanted it to stop, and it has saved.
        """
        n_steps = self.plan.n_steps
        with (
            console.meter("training", self.plan.rows, "rows") as meter,
            closing(self.loader.all_batches(first_step, n_steps)) as batches,
        ):
            meter.resume_at(first_step * self.plan.batch_size)
            note = ""
            for step, batch in enumerate(batches, first_step):
                rows = dict(zip(self.plan.hook_points, batch, strict=True))
                objectives = self._step(rows, step)
                if self._is_looked_at(step):
                    self._refuse_divergence()
                if self._is_logged(step):
                    note = self._log(step, rows, objectives)
                meter.advance(self.plan.batch_size, note)
                self._save_or_stop(step + 1)

    def _step(self, rows: Rows, step: int) -> dict[str, Objective]:
        batches = {
            name: trainer.batch(self._rows_of(name, rows), step)
            for name, trainer in self.trainers.items()
        }
        for group in self.groups:
            batches |= group.with_known(batches)
        return {name: self.trainers[name].step_on(batch) for name, batch in batches.items()}

    def _rows_of(self, name: str, rows: Rows) -> tuple[Float[Tensor, "batch _"], ...]:
        return tuple(rows[hook_point] for hook_point in self._hook_points[name])

    @cached_property
    def _hook_points(self) -> dict[str, tuple[HookPoint, ...]]:
        return {sae.member.name: sae.member.hook_points for sae in self.plan.saes}

    def _is_logged(self, step: int) -> bool:
        done = step + 1
        return done % self.config.log_every == 0 or self._is_evaluated(step)

    def _is_evaluated(self, step: int) -> bool:
        return (step + 1) % self.config.evaluate_every == 0 or step + 1 == self.plan.n_steps

    def _is_looked_at(self, step: int) -> bool:
        """On a GPU to look is to wait, so it is seldom done: no update follows a bad loss."""
        seldom = self.loader.device.type == "cuda"
        return not seldom or (step + 1) % LOOK_EVERY == 0 or step + 1 == self.plan.n_steps

    def _log(self, step: int, rows: Rows, objectives: Mapping[str, Objective]) -> str:
        """Write what is due; what the progress line says of it."""
        self._refuse_divergence()
        figures = {}
        for name, trainer in self.trainers.items():
            values = trainer.figures(self._rows_of(name, rows), step, objectives[name])
            if self.held_out is not None and self._is_evaluated(step):
                values |= self.held_out.figures(trainer, self._hook_points[name])
            figures[name] = values
        self.journal.write(step + 1, (step + 1) * self.plan.batch_size, figures)
        reading = self.loader.figures()
        self.journal.write_speed(step + 1, reading)
        first = next(iter(figures))
        shown, d_sae = figures[first], self.trainers[first].parameters.d_sae
        told = f"step {step + 1:,}, FVU {shown['row_fvu']:.3f}, L0 {shown['l0']:.1f}, "
        told += f"dead {shown['dead'] / d_sae:.1%}, waiting {reading['waited']:.0%}"
        return told if len(figures) == 1 else f"{told} ({first})"

    def _save_or_stop(self, done: int) -> None:
        if self.stopping.signal is not None:
            self._save(done)
            self.checkpoints.wait()
            console.say(f"stopped after step {done:,}: run it again, and it goes on from there")
            self.stopping.leave()
        steps, seconds = self.config.checkpoint_steps, self.config.checkpoint_seconds
        by_steps = steps and done % steps == 0
        by_time = seconds and time.monotonic() - self._saved_at >= seconds
        if (by_steps or by_time) and done < self.plan.n_steps:
            self._save(done)

    def _save(self, done: int) -> None:
        if done == self.saved:
            return
        self._refuse_divergence()
        states = {name: trainer.state_dict() for name, trainer in self.trainers.items()}
        n_bytes = self.journal.settle()
        self.checkpoints.save(Checkpoint(done, self.store.identity, n_bytes, states))
        self.saved, self._saved_at = done, time.monotonic()

    def _refuse_divergence(self) -> None:
        for name, trainer in self.trainers.items():
            step = trainer.first_bad_step()
            if step is not None:
                self.checkpoints.wait()
                self._raise_divergence(name, step)

    def _raise_divergence(self, name: str, step: int) -> NoReturn:
        batch = self.plan.batch_size
        first, last = step * batch, (step + 1) * batch - 1
        kept = (
            f"the checkpoint of step {self.saved:,} is kept" if self.saved else "none was saved yet"
        )
        told = f"the loss of {name} is not finite at step {step + 1:,}, rows {first:,} to {last:,}"
        bad = next(
            _bad_rows(self.store, self.plan.order, self._hook_points[name], step, batch), None
        )
        if bad is None:
            why = "the rows are finite, so it has diverged: try a smaller --lr, or --clip 1"
        else:
            why = f"row {bad[1]:,} of {bad[0].name} in the store is not finite: harvest it again"
        raise SaeflowError(f"{told}; no weight was changed by it, {kept}; {why}")


def _bad_rows(
    store: Store, order: StreamOrder, hook_points: tuple[HookPoint, ...], step: int, batch: int
) -> Iterator[tuple[HookPoint, int]]:
    """Numbers of the stored rows in a batch that are not finite."""
    runs = order.runs(step * batch, batch)
    numbers = [number for run in runs for number in run]
    for hook_point in hook_points:
        finite = store.rows(hook_point, store.train, runs).isfinite().all(1)
        for place in (~finite).nonzero().flatten().tolist():
            yield hook_point, numbers[place]
