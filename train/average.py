"""A running mean of tensors over the steps of training."""

from collections.abc import Mapping

import torch
from jaxtyping import Float
from torch import Tensor


class Average:
    """An exponential moving average of an SAE's tensors, kept in float32.

    A step counts `decay` times as much as the one after it, and the tensors from
    before the first step don't count at all: the mean after n steps is
    `sum(decay ** (n - i) * tensor_i) / sum(decay ** (n - i))` over i from 1 to n. It
    is so from the first step on, which a mean that begins with the initial weights
    comes near to only after several times `1 / (1 - decay)` steps.

    Args:
        tensors: what is averaged; they are changed in place between updates.
        decay: more than 0 and less than 1.

    Attributes:
        means: of each tensor, by its name; before the first update, the tensor itself.
        mass: the sum of powers above, on the tensors' device.
    """

    def __init__(self, tensors: Mapping[str, Tensor], decay: float) -> None:
        self._tensors, self._decay = dict(tensors), decay
        self.means = {
            name: tensor.detach().to(torch.float32, copy=True)
            for name, tensor in self._tensors.items()
        }
        device = next(iter(self._tensors.values())).device
        self.mass: Float[Tensor, ""] = torch.zeros((), device=device)

    @torch.no_grad()
    def update(self, bad: Float[Tensor, ""] | None = None) -> None:
        """Count the tensors as they are now; not if `bad` is 1, without waiting to see it."""
        counts = torch.ones_like(self.mass) if bad is None else 1 - bad
        self.mass += counts * (1 - (1 - self._decay) * self.mass)
        weight = counts / self.mass.clamp(min=1)
        now = [tensor.detach().float() for tensor in self._tensors.values()]
        torch._foreach_lerp_(list(self.means.values()), now, [weight] * len(now))

    @torch.no_grad()
    def forget(self, axes: Mapping[str, int], latents: Tensor) -> None:
        """Let some latents' means be what they are now.

        Args:
            axes: the axis of latents of each tensor that has one.
            latents: int64, which.
        """
        for name, axis in axes.items():
            now = self._tensors[name].detach().float().index_select(axis, latents)
            self.means[name].index_copy_(axis, latents, now)

    def state(self) -> dict[str, Tensor]:
        """All that it is, under names; not copies: to go on from elsewhere, copy into them."""
        return {"ema_mass": self.mass} | {f"ema.{name}": m for name, m in self.means.items()}
