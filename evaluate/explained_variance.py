"""Explained variance, exact however far the mean is from zero."""

from typing import Any

import torch
from jaxtyping import Float, Float64
from torch import Tensor

from saeflow.train.lean import Metric


class ExplainedVariance(Metric):
    """1 less the variance of `x - x_hat` over that of `x`, each summed over channels.

    Unlike 1 - FVU it forgives an error that is the same in every row. Nothing is taken as a
    difference of large numbers: each batch's mean and squared deviations are merged into
    those of all (Chan, Golub & LeVeque 1979, eq. 2.1), in float64; batches and processes
    merge alike.

    Args:
        d_in: width of the rows.
    """

    full_state_update = False
    higher_is_better = True
    moments: Tensor

    def __init__(self, d_in: int, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        none = torch.zeros(3, 2 * d_in, dtype=torch.float64)
        self.add_state("moments", none, dist_reduce_fx=merged)

    def update(
        self, x: Float[Tensor, "rows d_in"], reconstruction: Float[Tensor, "rows d_in"]
    ) -> None:
        """Add rows."""
        wide = x.double()
        channels = torch.cat([wide, wide - reconstruction.double()], 1)
        self.moments = merged(torch.stack([self.moments, _moments(channels)]))

    def compute(self) -> Float64[Tensor, ""]:
        """The share; not finite where the rows have no variance."""
        rows, error = self.moments[2].chunk(2)
        return 1 - error.sum() / rows.sum()


def merged(
    parts: Float64[Tensor, "parts 3 channels"],
) -> Float64[Tensor, "3 channels"]:
    """Counts, means and sums of squared deviations of all parts together."""
    count, mean, squares = parts.unbind(1)
    total = count.sum(0)
    centre = (count * mean).sum(0) / total.clamp_min(1)
    between = (count * (mean - centre).square()).sum(0)
    return torch.stack([total, centre, squares.sum(0) + between])


def _moments(channels: Float64[Tensor, "rows channels"]) -> Float64[Tensor, "3 channels"]:
    if not len(channels):
        return channels.new_zeros(3, channels.shape[1])
    mean = channels.mean(0)
    squares = (channels - mean).square().sum(0)
    return torch.stack([torch.full_like(mean, len(channels)), mean, squares])
