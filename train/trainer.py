"""One SAE in training: a batch, a loss, an update, and what is counted on the way.

Nothing here waits for the device, but for a look at which latents are dead every
few steps, and what is asked for in between: figures, a checkpoint.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor

from saeflow.train.accumulate import parts_of, together
from saeflow.train.architecture import Architecture, Batch, Inference, Objective
from saeflow.train.metrics import reconstruction_metrics
from saeflow.train.normalisation import Normalisation
from saeflow.train.optimizer import Updater, UpdateSettings
from saeflow.train.parameters import Parameters
from saeflow.train.resample import Resampling
from saeflow.train.schedule import Schedule

LOOK_EVERY = 16
"""Steps between two looks at which latents are dead, each of which waits for the device."""

Precision = Literal["float32", "bfloat16"]


@dataclass
class Trainer:
    """One SAE in training.

    Attributes:
        architecture: its kind.
        parameters: its tensors, on the device, in normalised units.
        normalisation: those units.
        schedule: learning rate and penalty over the steps.
        dead_after: rows without activity after which a latent counts as dead.
        settings: how the optimizer steps.
        resampling: gives dead latents new weights; None if nobody does.
        accumulate: parts in which a batch goes through.
        precision: of matrix products.
        since_fired: for each latent, rows since it was last above zero.
        dead: int64, the dead latents when that was last looked at, every few steps;
            None where the architecture does nothing about them.
    """

    architecture: Architecture
    parameters: Parameters
    normalisation: Normalisation
    schedule: Schedule
    dead_after: int
    settings: UpdateSettings = field(default_factory=UpdateSettings)
    resampling: Resampling | None = None
    accumulate: int = 1
    precision: Precision = "float32"
    since_fired: Int[Tensor, " d_sae"] = field(init=False)
    dead: Int[Tensor, " dead"] | None = field(init=False, default=None)

    def __post_init__(self) -> None:
        device = self.parameters.b_dec.device
        self.since_fired = torch.zeros(self.parameters.d_sae, dtype=torch.int64, device=device)
        self.updater = Updater(self.parameters, self.settings)
        self._first_bad = torch.tensor(self._never, device=device)
        self._metrics = reconstruction_metrics(self.normalisation.centre).to(device)

    def step(self, rows: tuple[Float[Tensor, "batch _"], ...], step: int) -> Objective:
        """One update on rows of each hook point, in the source model's units."""
        return self.step_on(self.batch(rows, step))

    def batch(self, rows: tuple[Float[Tensor, "batch _"], ...], step: int) -> Batch:
        """What `step_on` works on: the rows in normalised units, and what goes with them."""
        if self.architecture.revives and step % LOOK_EVERY == 0:
            self.dead = (self.since_fired >= self.dead_after).nonzero().flatten()
        x, target = self.normalisation.pair(rows)
        return Batch(
            x=x,
            target=target,
            weights=self.normalisation.row_weights(x, target),
            warm_up=self.schedule.pressure(step),
            step=step,
            n_steps=self.schedule.n_steps,
            dead=self.dead,
        )

    def step_on(self, batch: Batch) -> Objective:
        """One update.

        Where the loss is not finite nothing is updated, then and in all later steps:
        ask `first_bad_step`.
        """
        objective = self._gradients(batch)
        bad = self._note_if_bad(objective, batch.step)
        held = self.parameters.state
        self.parameters.renew(
            {n: torch.where(bad > 0, held[n], value) for n, value in objective.state.items()}
        )
        self.updater.step(self.schedule.rate(batch.step), bad)
        self.since_fired += len(batch.x)
        self.since_fired[objective.fired > 0] = 0
        if self.resampling is not None:
            self._resample(self.resampling, batch, objective)
        return objective

    def first_bad_step(self) -> int | None:
        """The first step whose loss was not finite; None if none was. Waits for the device."""
        step = int(self._first_bad)
        return None if step == self._never else step

    def figures(
        self, rows: tuple[Float[Tensor, "batch _"], ...], step: int, objective: Objective
    ) -> dict[str, float]:
        """What is logged of the batch that was just trained on."""
        _, target = self.normalisation.pair(rows)
        self._metrics.reset()
        self._metrics.update(
            x=target, reconstruction=objective.reconstruction, fired=objective.fired
        )
        return {
            "lr": self.schedule.rate(step),
            "loss": objective.loss.item(),
            **{name: value.item() for name, value in self._metrics.compute().items()},
            "dead": self.n_dead,
        }

    @property
    def n_dead(self) -> int:
        """Latents that were not above zero in the last `dead_after` rows."""
        return int((self.since_fired >= self.dead_after).sum())

    @contextmanager
    def finished(self) -> Iterator[tuple[Inference, Parameters]]:
        """The SAE that training would leave now, on raw rows; training can go on afterwards."""
        with self.updater.final(), torch.no_grad():
            folded = self.normalisation.folded(self._weights_in_use)
            yield self.architecture.trained(folded)

    @torch.no_grad()
    def errors(self, x: Float[Tensor, "batch d_in"]) -> Float[Tensor, " batch"]:
        """Weighted squared errors of normalised rows, of the SAE as it is."""
        inference, p = self.architecture.trained(self._weights_in_use)
        latents = inference.encode(p, x)
        squared = (latents @ p.W_dec + p.offset(x) - x).square().sum(1)
        return self.normalisation.row_weights(x, x) * squared

    def autocast(self) -> torch.autocast:
        """In which matrix products are of the precision that is wanted."""
        enabled = self.precision == "bfloat16"
        return torch.autocast(self.since_fired.device.type, torch.bfloat16, enabled=enabled)

    def state_dict(self) -> dict[str, Any]:
        """All that training goes on from: tensors and numbers, under flat names."""
        state = {
            **{f"parameters.{name}": value for name, value in self.parameters.state_dict().items()},
            **{f"updater.{name}": value for name, value in self.updater.state_dict().items()},
            "since_fired": self.since_fired,
        }
        if self.dead is not None:
            state["dead"] = self.dead
        if self.resampling is not None:
            kept = self.resampling.resampler.state_dict()
            state |= {f"resampler.{name}": value for name, value in kept.items()}
        return state

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from a `state_dict` of the same SAE."""
        device = self.since_fired.device
        self.parameters.load_state_dict(_part(state, "parameters"))
        self.updater.load_state_dict(_part(state, "updater"))
        self.since_fired = state["since_fired"].to(device)
        self.dead = state["dead"].to(device) if "dead" in state else None
        if self.resampling is not None:
            self.resampling.resampler.load_state_dict(_part(state, "resampler"))

    @property
    def _never(self) -> int:
        return torch.iinfo(torch.int64).max

    def _gradients(self, batch: Batch) -> Objective:
        """The loss of a batch, and its gradients in the parameters."""
        objectives, shares = [], []
        for part, share in parts_of(batch, self.accumulate):
            with self.autocast():
                objective = self.architecture.objective(self._weights_in_use, part)
            (objective.loss * share).backward()
            objectives.append(objective)
            shares.append(share)
        return together(objectives, shares)

    @property
    def _weights_in_use(self) -> Parameters:
        """Those with unit decoder rows."""
        free = self.settings.decoder == "free"
        return self.parameters.with_unit_decoder() if free else self.parameters

    def _resample(self, resampling: Resampling, batch: Batch, objective: Objective) -> None:
        resampling.resampler.update_counts(batch.x, objective.fired)
        if resampling.resampler.due and self.first_bad_step() is None:
            latents = resampling.replace(self.parameters, self.updater, self.errors)
            self.since_fired[latents] = 0

    def _note_if_bad(self, objective: Objective, step: int) -> Float[Tensor, ""]:
        """1 if this loss or its gradient, or one before it, is not finite; else 0.

        The biases' gradients stand for all: they are sums of what goes to the weights.
        """
        p = self.parameters
        told = objective.loss.detach()
        for bias in (p.b_enc, p.b_dec):
            assert bias.grad is not None
            told = told + bias.grad.sum()
        here = torch.where(told.isfinite(), self._never, step)
        self._first_bad = torch.minimum(self._first_bad, here)
        return (self._first_bad < self._never).float()


def _part(state: Mapping[str, Any], name: str) -> dict[str, Any]:
    prefix = f"{name}."
    return {k.removeprefix(prefix): v for k, v in state.items() if k.startswith(prefix)}
