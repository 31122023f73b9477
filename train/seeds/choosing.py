"""Which rows the dead latents of all components are to learn, the same in every process."""

import logging
from collections.abc import Callable
from typing import Any

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from saeflow.errors import BadInputError
from saeflow.train.seeds.axes import with_component_axis
from saeflow.train.seeds.resampling import (
    assign_sampling_probabilities,
    check_enough,
    dead_latents,
    sample_rows,
)
from saeflow.train.seeds.together import gathered, of_the_first, rank
from saeflow.train.seeds.window import Window

_LOG = logging.getLogger(__name__)

LossOf = Callable[[Any], Any]
"""From rows (batch, [components], width) to their losses (batch, [components])."""


def dead_of_components(
    fired: Int64[Tensor, "components latents"],
    n_counted: int,
    threshold_is_dead_portion_fires: int | float,
) -> list[Int64[Tensor, " _"]]:
    """The dead latents of each component; none, and a line in the log, where none is alive.

    >>> import torch
    >>> dead_of_components(torch.tensor([[5, 0, 0], [0, 1, 2]]), 10, 0.0)
    [tensor([1, 2]), tensor([0])]
    """
    dead = []
    for component, activity in enumerate(fired):
        latents = dead_latents(activity, n_counted, threshold_is_dead_portion_fires)
        if not activity.any():
            _LOG.warning(
                "component %d: no latent fired in the last %d rows; none was resampled",
                component,
                n_counted,
            )
            latents = latents[:0]
        dead.append(latents)
    return dead


def losses_of_kept(
    window: Window, n_components: int | None, loss_of: LossOf | None
) -> Float[Tensor, "rows components"]:
    """The losses of the rows that a window kept: those it was given, or of `loss_of` now.

    Raises:
        BadInputError: it was not given all of them.
    """
    losses = window.losses
    if loss_of is not None:
        given = [rows if n_components else rows[:, 0] for rows in window.rows]
        losses = [with_component_axis(loss_of(rows), n_components, width_axes=0) for rows in given]
    n_losses = sum(map(len, losses))
    if n_losses != window.n_kept:
        raise BadInputError(
            f"{window.n_kept} rows were kept to resample from and {n_losses} losses: "
            "give each update the losses of its rows, or compute loss_of"
        )
    return torch.cat(losses) if losses else torch.zeros(0, len(window.fired))


def choose_rows(
    n_dead: list[int],
    losses: Float[Tensor, "rows components"],
    generator: torch.Generator,
) -> list[Int64[Tensor, " _"]]:
    """For each component a row for each dead latent, by its place among this process's rows.

    Rows of the processes follow each other by rank, so that a place before 0 or beyond
    the last is another process's. Everything that may be refused is refused before
    anything is drawn.

    Args:
        n_dead: of each component.
        losses: of this process's rows.
        generator: on the CPU.

    Raises:
        BadInputError: more dead latents than rows; a loss that is not finite.

    >>> import torch
    >>> losses = torch.tensor([[0.0, 0.0], [1.0, 0.0], [0.0, 0.5]])
    >>> choose_rows([1, 0], losses, torch.Generator())
    [tensor([1]), tensor([], dtype=torch.int64)]
    """
    if not any(n_dead):
        return [torch.zeros(0, dtype=torch.int64, device=losses.device) for _ in n_dead]
    parts = gathered(losses)
    begin = sum(map(len, parts[: rank()]))
    for component, wanted in enumerate(n_dead):
        check_enough(wanted, sum(map(len, parts)), component)
    chances = assign_sampling_probabilities(torch.cat(parts))
    return [
        of_the_first(sample_rows(chances[:, component], wanted, generator).to(losses.device))
        - begin
        for component, wanted in enumerate(n_dead)
    ]
