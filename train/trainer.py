"""The training loop: a batch, a loss, an update; what is counted on the way, and logged.

Training runs on normalised rows: divided by one number, so that the ordinary
rows' mean squared distance from their mean is d_in. Massive rows, whose distance
is many times the others', count with a weight that bounds what one row can do;
they neither set the scale nor throw the optimizer off.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from saeflow.errors import SaeflowError
from saeflow.train.architecture import Architecture, Batch, Objective
from saeflow.train.metrics import reconstruction_metrics
from saeflow.train.optimizer import Schedule, make_optimizer, step_on_sphere
from saeflow.train.parameters import Parameters

HEAVIEST = 3.0
"""A row farther from the mean than this times the ordinary distance counts as if it were there."""

_LOOK_EVERY = 16
"""Steps between two looks at which latents are dead, each of which waits for the device."""


@dataclass(frozen=True)
class Normalisation:
    """The units of training.

    Attributes:
        mean: of the ordinary rows, in the source model's units.
        scale: what a row is multiplied by.
    """

    mean: Float[Tensor, " d_in"]
    scale: float

    @staticmethod
    def from_statistics(mean: Any, std: Any, device: torch.device) -> "Normalisation":
        """From a store's statistics of ordinary rows.

        Raises:
            SaeflowError: the rows do not vary.
        """
        spread = float((std**2).sum())
        if spread <= 0:
            raise SaeflowError(
                "the store's rows are all equal: there is nothing to learn from them"
            )
        scale = math.sqrt(len(mean) / spread)
        return Normalisation(torch.as_tensor(mean, dtype=torch.float32, device=device), scale)

    def folded(self, parameters: Parameters) -> Parameters:
        """Parameters that do on raw rows what these do on normalised ones.

        Latents come out in the source model's units.
        """
        return parameters.copy_for_rows_divided_by(self.scale)


@dataclass
class Trainer:
    """One SAE in training.

    Attributes:
        architecture: its kind.
        parameters: its tensors, on the device, in normalised units.
        normalisation: those units.
        schedule: learning rate and warm-up.
        dead_after: rows without activity after which a latent counts as dead.
        since_fired: for each latent, rows since it was last above zero.
        dead: int64, the dead latents when that was last looked at, every few steps;
            None where the architecture does nothing about them.
    """

    architecture: Architecture
    parameters: Parameters
    normalisation: Normalisation
    schedule: Schedule
    dead_after: int
    since_fired: Int[Tensor, " d_sae"] = field(init=False)
    dead: Int[Tensor, " dead"] | None = field(init=False, default=None)

    def __post_init__(self) -> None:
        device = self.parameters.b_dec.device
        self.since_fired = torch.zeros(self.parameters.d_sae, dtype=torch.int64, device=device)
        self._optimizer = make_optimizer(self.parameters, self.schedule.peak)
        self._metrics = reconstruction_metrics(
            self.normalisation.mean * self.normalisation.scale
        ).to(device)

    def fit(
        self,
        batches: Iterator[Float[Tensor, "batch d_in"]],
        first_step: int,
        *,
        log_every: int,
    ) -> Iterator[dict[str, Any] | None]:
        """Train on batches; yields after each step what is to be logged, or None."""
        for step, rows in enumerate(batches, first_step):
            x = rows * self.normalisation.scale
            objective = self.step(x, step)
            last = step + 1 == self.schedule.n_steps
            if (step + 1) % log_every == 0 or last:
                yield self._describe(step, len(rows), x, objective)
            else:
                yield None

    def step(self, x: Float[Tensor, "batch d_in"], step: int) -> Objective:
        """One update on normalised rows."""
        if self.architecture.revives and step % _LOOK_EVERY == 0:
            self.dead = (self.since_fired >= self.dead_after).nonzero().flatten()
        batch = Batch(
            x=x,
            weights=self._row_weights(x),
            warm_up=self.schedule.progress(step),
            step=step,
            n_steps=self.schedule.n_steps,
            dead=self.dead,
        )
        objective = self.architecture.objective(self.parameters, batch)
        objective.loss.backward()
        self.parameters.renew(objective.state)
        step_on_sphere(self._optimizer, self.parameters, self.schedule.rate(step))
        self.since_fired += len(x)
        self.since_fired[objective.fired > 0] = 0
        return objective

    def _row_weights(self, x: Float[Tensor, "batch d_in"]) -> Float[Tensor, " batch"]:
        centre = self.normalisation.mean * self.normalisation.scale
        distance = (x - centre).square().sum(1)
        return (HEAVIEST**2 * x.shape[1] / distance).clamp(max=1.0)

    def _describe(
        self, step: int, batch_size: int, x: Tensor, objective: Objective
    ) -> dict[str, Any]:
        loss = objective.loss.item()
        if not math.isfinite(loss):
            raise SaeflowError(
                f"the loss is {loss} at step {step}: nothing was saved; try a smaller --lr"
            )
        self._metrics.reset()
        self._metrics.update(x=x, reconstruction=objective.reconstruction, fired=objective.fired)
        values = {name: value.item() for name, value in self._metrics.compute().items()}
        return {
            "step": step + 1,
            "rows": (step + 1) * batch_size,
            "lr": self.schedule.rate(step),
            "loss": loss,
            **values,
            "dead": int((self.since_fired >= self.dead_after).sum()),
        }
