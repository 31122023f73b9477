"""Latents whose Adam begins later than the others': what their updates are to be.

Adam's moments begin at zero, so it divides them by `1 - beta ** step`. A latent whose
moments became zero at a later step needs its own count of steps.
"""

import math
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int64
from torch import Tensor

_NEGLIGIBLE = 1e-6


@dataclass(frozen=True)
class Young:
    """Some latents of one component of a parameter.

    Attributes:
        component: which; None where the parameter has no component axis.
        axis: of latents, in one component.
        latents: which of them.
        born: the step after which each begins, with an axis of length 1 for each other axis.
    """

    component: int | None
    axis: int
    latents: Int64[Tensor, " latents"]
    born: Float[Tensor, "*shape"]

    def of(self, values: Tensor) -> Tensor:
        """Their part of the parameter, or of a moment of it; a copy."""
        return part(values, self.component).index_select(self.axis, self.latents)

    def correct(
        self, parameter: Tensor, before: Tensor, state: dict[str, Any], group: dict[str, Any]
    ) -> None:
        """Give the parameter the update, from `before`, that these latents should have had."""
        second = self.of(state.get("max_exp_avg_sq", state["exp_avg_sq"]))
        step = state["step"].to(parameter.device)
        factor = late_start_factor(second, step, self.born, group["betas"], group["eps"])
        change = self.of(parameter) - before
        # An update that was left out, since its loss was bad, is nothing to correct: where a
        # latent has not begun yet, the factor of nothing is 0 / 0.
        right = before + torch.where(change == 0, change, change * factor)
        part(parameter, self.component).index_copy_(self.axis, self.latents, right)


def part(values: Tensor, component: int | None) -> Tensor:
    """What one component has of a parameter, or of its state; a view."""
    return values if component is None else values[component]


def young_latents(
    parameter: Tensor, born: Float[Tensor, "*shape"], n_components: int | None
) -> list[Young]:
    """The latents of a parameter that do not begin at step 0. Waits for the device."""
    found = []
    for component in [None] if n_components is None else range(n_components):
        steps = part(born, component)
        shape = part(parameter, component).shape
        axis = max(range(len(shape)), key=lambda a: (steps.shape[a] == shape[a], shape[a]))
        latents = steps.flatten().nonzero().flatten()
        if len(latents):
            found.append(Young(component, axis, latents, steps.index_select(axis, latents)))
    return found


def late_start_factor(
    second: Float[Tensor, "*shape"],
    step: Float[Tensor, ""],
    born: Float[Tensor, "*broadcastable"],
    betas: tuple[float, float],
    eps: float,
) -> Float[Tensor, "*shape"]:
    """By what to multiply Adam's update at `step` for latents that begin after `born`.

    Args:
        second: the second moment that the update was divided by.
        step: of the parameter, the update's own included.
        born: the step after which each latent begins.
        betas: decay rates of the moments.
        eps: added to the root of the second moment.

    >>> import torch
    >>> second, step = torch.tensor([0.001]), torch.tensor(90_000.0)
    >>> late_start_factor(second, step, torch.tensor([89_999.0]), (0.9, 0.999), 1e-8)
    tensor([0.3162])
    """
    root = second.sqrt()
    first_all, second_all = (_grown(step, beta) for beta in betas)
    first_own, second_own = (_grown(step - born, beta) for beta in betas)
    divisor_all = root / second_all.sqrt() + eps
    divisor_own = root / second_own.sqrt() + eps
    return (first_all / first_own) * (divisor_all / divisor_own)


def steps_until_negligible(betas: tuple[float, float]) -> int:
    """After how many steps a late start no longer shows.

    >>> steps_until_negligible((0.9, 0.999))
    13809
    """
    beta = max(betas)
    return math.ceil(math.log(_NEGLIGIBLE) / math.log(beta)) if beta > 0 else 1


def _grown(steps: Tensor, beta: float) -> Tensor:
    """`1 - beta ** steps`, precisely."""
    return -torch.expm1(steps * math.log(beta)) if beta > 0 else torch.ones_like(steps)
