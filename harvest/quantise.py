"""int8 activations: channels standardised, then one scale a row.

Language models' channels differ a thousandfold, and so do their rows: a scale a
channel is ruled by the massive rows, a scale a row by the largest channel. With
channels standardised first, a row's largest value is a few deviations, and the
error is spread evenly over channels.
"""

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Float32, Int8
from torch import Tensor

from saeflow.harvest.statistics import ordinary_rows

_LARGEST = 127
"""The largest int8 used; -128 is left to absent rows."""

_NEGLIGIBLE = 2.0**-20
"""A channel that varies by less than this share of its mean, or of what channels vary by,
counts as constant: by its own deviation, one row where it does vary would lose all others."""


@dataclass(frozen=True)
class Quantisation:
    """What one hook point's channels are standardised by.

    `x = q * scale * deviation + mean`, q the stored int8 and scale its row's.

    Attributes:
        mean: of each channel.
        deviation: of each channel, above 0.
    """

    mean: Float32[Tensor, " d_in"]
    deviation: Float32[Tensor, " d_in"]

    def quantise(
        self, rows: Float[Tensor, "rows d_in"]
    ) -> tuple[Int8[Tensor, "rows d_in"], Float32[Tensor, " rows"]]:
        """Rows to the nearest int8, and the scale of each."""
        standard = (rows.float() - self.mean.to(rows.device)) / self.deviation.to(rows.device)
        scale = standard.abs().amax(1) / _LARGEST
        scale = torch.where(scale < torch.finfo(torch.float32).tiny, 1.0, scale)
        return (standard / scale[:, None]).round().to(torch.int8), scale

    def dequantise(
        self, q: Int8[Tensor, "rows d_in"], scale: Float32[Tensor, " rows"]
    ) -> Float32[Tensor, "rows d_in"]:
        """The rows that int8 values stand for, on their device."""
        widened = q.float() * scale[:, None]
        return widened * self.deviation.to(q.device) + self.mean.to(q.device)

    def to_array(self) -> Float32[np.ndarray, "mean_deviation d_in"]:
        """As the store's array `quant/<hook point>` holds it."""
        return torch.stack([self.mean, self.deviation]).cpu().numpy()

    @staticmethod
    def from_array(values: Float32[np.ndarray, "mean_deviation d_in"]) -> "Quantisation":
        """The inverse of `to_array`."""
        mean, deviation = torch.from_numpy(np.array(values, np.float32))
        return Quantisation(mean, deviation)


def calibrate(rows: Float[Tensor, "rows d_in"]) -> Quantisation:
    """Channels' mean and deviation over the ordinary rows of a sample.

    Args:
        rows: at least one row, finite; a few thousand are enough, as each row's own
            scale takes up what they get wrong.
    """
    kept = rows[ordinary_rows(rows.double().norm(dim=1))].double()
    mean, deviation = kept.mean(0), kept.std(0, correction=0)
    deviation = torch.where(deviation > _NEGLIGIBLE * mean.abs(), deviation, 0.0)
    typical = deviation.square().mean().sqrt()
    typical = torch.where(typical > torch.finfo(torch.float32).tiny, typical, 1.0)
    deviation = torch.where(deviation > _NEGLIGIBLE * typical, deviation, typical)
    return Quantisation(mean.float().cpu(), deviation.float().cpu())
