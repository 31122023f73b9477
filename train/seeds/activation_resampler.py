"""The resampler of dead latents, with the seed's settings."""

import math
from collections.abc import Mapping
from typing import Any

import torch
from jaxtyping import Float, Num
from torch import Tensor

from saeflow.errors import BadInputError
from saeflow.train.seeds.axes import checked_components, with_component_axis
from saeflow.train.seeds.choosing import LossOf, choose_rows, dead_of_components, losses_of_kept
from saeflow.train.seeds.parameter_updates import ParameterUpdateResults
from saeflow.train.seeds.resampling import (
    assign_sampling_probabilities,
    new_weights,
    renormalize_and_scale,
    sample_input,
)
from saeflow.train.seeds.together import n_processes, summed
from saeflow.train.seeds.window import Window


class ActivationResampler:
    """Counts which latents fire, and makes new weights for those that do not.

    Every `resample_interval` rows, latents that fired in none of the last
    `n_activations_activity_collate` rows (or in at most a portion of them) become
    detectors of rows that the SAE reconstructs badly, chosen among the interval's last
    `resample_dataset_size` rows by the square of their loss. Windows begin and end at
    exactly these rows, inside a batch too; what a batch has beyond the interval counts
    for the next one.

    In training, `update` belongs after a forward pass, and where `due` then holds,
    `compute` and `apply_updates` after the optimizer's step: outside the graph, so that
    no gradient of the old latents reaches the new ones. Calling the resampler does both
    halves at once, as the seed's.

    With several processes the settings are of them all together. Each must give the same
    number of rows in each update; `compute` is called by all, adds up what they counted,
    draws from all their rows, and gives each the same result.

    Args:
        n_learned_features: latents of a component.
        n_components: components; None for inputs and weights without that axis, 1 for
            either form.
        resample_interval: rows between one resampling and the next.
        max_n_resamples: how often at most; `math.inf` for no limit.
        n_activations_activity_collate: rows, at the interval's end, whose firing counts.
        resample_dataset_size: rows, at the interval's end, that are kept to draw from.
        threshold_is_dead_portion_fires: a latent is dead that fired in at most this
            portion of the rows that were counted.
        generator: on the CPU, for the draws; None for one of its own, of seed 0.

    Raises:
        BadInputError: settings that contradict each other.

    >>> import torch
    >>> resampler = ActivationResampler(
    ...     n_learned_features=3,
    ...     resample_interval=2,
    ...     n_activations_activity_collate=2,
    ...     resample_dataset_size=2,
    ... )
    >>> rows, learned = torch.tensor([[3.0, 4.0], [0.0, 1.0]]), torch.tensor([[1.0, 0.0, 2.0]] * 2)
    >>> resampler.update(rows, learned, loss=torch.tensor([1.0, 0.0]))
    >>> resampler.due
    True
    >>> [update] = resampler.compute(torch.ones(3, 2))
    >>> update.dead_neuron_indices, update.dead_decoder_weight_updates.flatten()
    (tensor([1]), tensor([0.6000, 0.8000]))
    """

    assign_sampling_probabilities = staticmethod(assign_sampling_probabilities)
    renormalize_and_scale = staticmethod(renormalize_and_scale)
    sample_input = staticmethod(sample_input)

    def __init__(
        self,
        n_learned_features: int,
        n_components: int | None = 1,
        resample_interval: int = 200_000_000,
        max_n_resamples: int | float = 4,
        n_activations_activity_collate: int = 100_000_000,
        resample_dataset_size: int = 819_200,
        threshold_is_dead_portion_fires: int | float = 0.0,
        *,
        generator: torch.Generator | None = None,
    ) -> None:
        self.n_learned_features = n_learned_features
        self.n_components = n_components
        self.resample_interval = resample_interval
        self.max_n_resamples = max_n_resamples
        self.n_activations_activity_collate = n_activations_activity_collate
        self.resample_dataset_size = resample_dataset_size
        self.threshold_is_dead_portion_fires = threshold_is_dead_portion_fires
        self.generator = generator or torch.Generator().manual_seed(0)
        self.n_times_resampled = 0
        self._check_settings()
        self._current, self._surplus = self._empty(), self._empty()

    @property
    def finished(self) -> bool:
        """All resamplings were done: nothing is collected any more."""
        return self.n_times_resampled >= self.max_n_resamples

    @property
    def due(self) -> bool:
        """The interval is over: `compute` is next. Does not wait for the device."""
        return not self.finished and self._current.n_seen >= self._own(self.resample_interval)

    def update(
        self,
        input_activations: Float[Tensor, " batch *component_width"],
        learned_activations: Num[Tensor, " batch *component_latents"],
        loss: Float[Tensor, " batch *component"] | None,
    ) -> None:
        """Collect what a training batch shows. Does not wait for the device.

        Args:
            input_activations: (batch, [components], width).
            learned_activations: (batch, [components], latents); above zero is firing.
            loss: of each row, (batch, [components]); None if `compute` gets `loss_of`.

        Raises:
            BadInputError: other shapes; a batch longer than the interval.
        """
        if self.finished:
            return
        learned = with_component_axis(learned_activations, self.n_components)
        stop = self._keep(input_activations, loss)
        first = self._first(self.n_activations_activity_collate)
        for window, part in ((self._current, learned[:stop]), (self._surplus, learned[stop:])):
            counted = part[max(0, first - window.n_seen) :]
            if len(counted):
                window.count((counted > 0).sum(0), len(counted))
            window.n_seen += len(part)

    def update_counts(
        self,
        input_activations: Float[Tensor, " batch *component_width"],
        fired: Num[Tensor, "*component latents"],
        loss: Float[Tensor, " batch *component"] | None = None,
    ) -> None:
        """`update` for those who know only how often latents fired in the whole batch.

        A batch that is partly in the collation window is counted whole, and one that
        ends the interval does not count for the next.

        Args:
            input_activations: (batch, [components], width).
            fired: ([components], latents), in how many of the batch's rows.
            loss: of each row, (batch, [components]); None if `compute` gets `loss_of`.

        Raises:
            BadInputError: other shapes; a batch longer than the interval.
        """
        if self.finished:
            return
        n_rows = len(input_activations)
        counts = with_component_axis(fired.unsqueeze(0), self.n_components)[0]
        stop = self._keep(input_activations, loss)
        if self._current.n_seen + stop > self._first(self.n_activations_activity_collate):
            self._current.count(counts.to(torch.int64), n_rows)
        self._current.n_seen += stop
        self._surplus.n_seen += n_rows - stop

    @torch.no_grad()
    def compute(
        self,
        encoder_weight: Float[Tensor, "*component latents width"],
        *,
        loss_of: LossOf | None = None,
        bias: Float[Tensor, "*component width"] | None = None,
    ) -> list[ParameterUpdateResults]:
        """New weights for the dead latents of each component; begins the next interval.

        A component of which no latent is alive is left as it is, with a line in the log.

        Args:
            encoder_weight: ([components], latents, width), as it is now.
            loss_of: gives the loss of each row with the weights as they are now, of rows
                (batch, components, width), or without that axis where `n_components` is
                None; None for the losses that were collected.
            bias: ([components], width), subtracted from a row before its direction is
                taken; None for the row itself, as in the seed.

        Raises:
            BadInputError: more dead latents than rows to draw from; losses that are
                missing or not finite. The resampler is as it was before.
        """
        assert self.due, "compute is called where the resampler is due"
        window, n_components = self._current, self.n_components
        encoder = with_component_axis(encoder_weight.unsqueeze(0), n_components, width_axes=2)[0]
        fired = summed(window.fired.to(encoder.device))
        n_counted = int(summed(torch.tensor(window.n_counted, device=encoder.device)))
        dead = dead_of_components(fired, n_counted, self.threshold_is_dead_portion_fires)
        n_dead = [len(latents) for latents in dead]
        losses = losses_of_kept(window, n_components, loss_of) if any(n_dead) else fired[:0].float()
        chosen = choose_rows(n_dead, losses.to(encoder.device), self.generator)
        updates = []
        for component, latents in enumerate(dead):
            rows = summed(window.rows_at(component, chosen[component], like=encoder))
            if bias is not None:
                rows = rows - bias.reshape(-1, bias.shape[-1])[component]
            updates.append(new_weights(latents, rows, fired[component], encoder[component]))
        self.n_times_resampled += 1
        self._current = self._empty() if self.finished else self._surplus
        self._surplus = self._empty()
        return updates

    def __call__(
        self,
        input_activations: Float[Tensor, " batch *component_width"],
        learned_activations: Num[Tensor, " batch *component_latents"],
        loss: Float[Tensor, " batch *component"],
        encoder_weight_reference: Float[Tensor, "*component latents width"],
    ) -> list[ParameterUpdateResults] | None:
        """`update`, and `compute` where it is due; None where it is not."""
        self.update(input_activations, learned_activations, loss)
        return self.compute(encoder_weight_reference) if self.due else None

    def state_dict(self) -> dict[str, Any]:
        """What this process has collected, as tensors and whole numbers under flat names."""
        return {
            "n_times_resampled": self.n_times_resampled,
            "generator": self.generator.get_state(),
            **{f"current.{name}": value for name, value in self._current.state_dict().items()},
            **{f"surplus.{name}": value for name, value in self._surplus.state_dict().items()},
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from a `state_dict`.

        Raises:
            BadInputError: it is of other components or latents.
        """
        saved = tuple(state["current.fired"].shape)
        if saved != tuple(self._current.fired.shape):
            raise BadInputError(
                f"the resampler's state is of {saved} components and latents, its settings of "
                f"{tuple(self._current.fired.shape)}: load it with the settings it was saved with"
            )
        self.n_times_resampled = int(state["n_times_resampled"])
        self.generator.set_state(state["generator"].cpu())
        self._current, self._surplus = (
            Window.from_state(
                {
                    name.removeprefix(f"{window}."): value
                    for name, value in state.items()
                    if name.startswith(f"{window}.")
                }
            )
            for window in ("current", "surplus")
        )

    def _check_settings(self) -> None:
        interval = self.resample_interval
        ranges = {
            "n_learned_features": (1, math.inf),
            "resample_interval": (1, math.inf),
            "max_n_resamples": (0, math.inf),
            "n_activations_activity_collate": (1, interval),
            "resample_dataset_size": (1, interval),
            "threshold_is_dead_portion_fires": (0, 1),
        }
        for name, (least, most) in ranges.items():
            value = getattr(self, name)
            if not least <= value <= most:
                limit = f" and at most {most:,}" if most < math.inf else ""
                why = ", the resample_interval" if most == interval else ""
                raise BadInputError(f"{name} is {value:,}: give at least {least}{limit}{why}")

    def _empty(self) -> Window:
        n_components = checked_components(self.n_components)
        return Window.empty(n_components, self.n_learned_features)

    def _own(self, n_rows: int) -> int:
        """One process's part of a number of rows."""
        return n_rows // n_processes()

    def _first(self, size: int) -> int:
        """Where in the interval a window of some size at its end begins, for one process."""
        return self._own(self.resample_interval) - self._own(size)

    def _keep(self, input_activations: Tensor, loss: Tensor | None) -> int:
        """Keep the rows of a batch that are in their window; how many are in this interval."""
        assert not self.due, "compute is called before the next update"
        rows = with_component_axis(input_activations, self.n_components)
        interval = self._own(self.resample_interval)
        if len(rows) > interval:
            raise BadInputError(
                f"a batch has {len(rows)} rows and the resample_interval is {interval} (of one "
                "process): give an interval of a batch or more"
            )
        losses = None
        if loss is not None:
            losses = with_component_axis(loss, self.n_components, width_axes=0)
        stop = min(len(rows), interval - self._current.n_seen)
        first = self._first(self.resample_dataset_size)
        for window, begin, end in ((self._current, 0, stop), (self._surplus, stop, len(rows))):
            part = slice(begin + max(0, first - window.n_seen), end)
            window.keep(rows[part], None if losses is None else losses[part])
        return stop
