"""The units of training: rows of every hook point divided by a number of its own.

The number makes the ordinary rows' mean squared distance from their mean equal to
their width, so that learning rates, penalties and thresholds mean the same whatever
the source model's units are. Massive rows, whose distance is many times the others',
count with a weight that bounds what one row can do; they neither set the scale nor
throw the optimizer off.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor

from saeflow.errors import SaeflowError
from saeflow.train.parameters import Parameters, Scale

HEAVIEST = 3.0
"""A row farther from the mean than this times the ordinary distance counts as if it were there."""

Kind = Literal["sae", "transcoder", "crosscoder"]
"""It reconstructs the rows that it reads; or those of another hook point; or it reads and
reconstructs those of several hook points at once."""


@dataclass(frozen=True)
class Normalisation:
    """The units of the rows that are reconstructed, and of those that are read.

    A crosscoder's rows are those of its hook points, one after the other.

    Attributes:
        mean: of the ordinary rows, in the source model's units.
        scale: what a row is multiplied by; one number for each channel in a crosscoder,
            whose hook points have units of their own.
        median: the rows' geometric median, in the source model's units; None where it
            is not known.
        source: the same of the rows that a transcoder reads; None where the rows that
            are read are those that are reconstructed.
        blocks: widths of a crosscoder's hook points.
    """

    mean: Float[Tensor, " d_out"]
    scale: Scale
    median: Float[Tensor, " d_out"] | None = None
    source: "Normalisation | None" = None
    blocks: tuple[int, ...] = ()

    @staticmethod
    def of_sae(statistics: Mapping[str, Any], device: torch.device) -> "Normalisation":
        """From what a store knows of a hook point's ordinary rows, `Store.statistics`.

        Raises:
            SaeflowError: the rows do not vary.
        """
        units = Normalisation.from_statistics(statistics["mean"], statistics["std"], device)
        return replace(units, median=_tensor(statistics["geometric_median"], device))

    @staticmethod
    def of_transcoder(
        source: Mapping[str, Any], target: Mapping[str, Any], device: torch.device
    ) -> "Normalisation":
        """From the statistics of the rows that are read, and of those that are reconstructed.

        Raises:
            SaeflowError: those of one hook point do not vary.
        """
        units = Normalisation.of_sae(source, device)
        return replace(Normalisation.of_sae(target, device), source=units)

    @staticmethod
    def of_crosscoder(
        statistics: Sequence[Mapping[str, Any]], device: torch.device
    ) -> "Normalisation":
        """From the statistics of each of its hook points.

        Raises:
            SaeflowError: the rows of one do not vary.
        """
        each = [Normalisation.of_sae(one, device) for one in statistics]
        medians = [units.median for units in each if units.median is not None]
        return Normalisation(
            mean=torch.cat([units.mean for units in each]),
            scale=torch.cat([torch.ones_like(units.mean) * units.scale for units in each]),
            median=torch.cat(medians),
            blocks=tuple(len(units.mean) for units in each),
        )

    @staticmethod
    def from_statistics(mean: Any, std: Any, device: torch.device) -> "Normalisation":
        """From the mean and the deviation of each channel of one hook point's ordinary rows.

        Raises:
            SaeflowError: the rows do not vary.
        """
        spread = float((std**2).sum())
        if spread <= 0:
            raise SaeflowError(
                "the store's rows are all equal: there is nothing to learn from them"
            )
        return Normalisation(_tensor(mean, device), math.sqrt(len(mean) / spread))

    @property
    def kind(self) -> Kind:
        """Of what kind of SAE these are the units."""
        if self.blocks:
            return "crosscoder"
        return "sae" if self.source is None else "transcoder"

    @property
    def centre(self) -> Float[Tensor, " d_out"]:
        """Mean of the targets, in normalised units."""
        return self.mean * self.scale

    @property
    def latents(self) -> float:
        """What latents are multiplied by, together with the rows.

        They are in the targets' units, as decoder rows have unit norm. A crosscoder's
        hook points have no units in common: its latents stay as they are in training.
        """
        return self.scale if isinstance(self.scale, float) else 1.0

    def pair(
        self, rows: tuple[Float[Tensor, "batch _"], ...]
    ) -> tuple[Float[Tensor, "batch d_in"], Float[Tensor, "batch d_out"]]:
        """Normalised rows to read and to reconstruct; the same tensor, but in a transcoder.

        Args:
            rows: of each hook point, in the source model's units; a transcoder's are
                those that it reads and its targets.
        """
        if self.source is not None:
            x, target = rows
            return x * self.source.scale, target * self.scale
        x = (rows[0] if len(rows) == 1 else torch.cat(rows, 1)) * self.scale
        return x, x

    def row_weights(
        self, x: Float[Tensor, "batch d_in"], target: Float[Tensor, "batch d_out"]
    ) -> Float[Tensor, " batch"]:
        """How much each row's error counts; a row that is massive on either side, little."""
        distance = (target - self.centre).square().sum(1)
        weights = (HEAVIEST**2 * target.shape[1] / distance).clamp(max=1.0)
        return weights if self.source is None else weights.minimum(self.source.row_weights(x, x))

    def folded(self, parameters: Parameters) -> Parameters:
        """Parameters that do on raw rows what these do on normalised ones.

        Latents come out in the units of the rows that are reconstructed, in the source
        model, and decoder rows keep their norms. A transcoder takes nothing off its
        rows any more: its centre is in the biases. A crosscoder's latents stay in
        normalised units; the part of a decoder row that is of a hook point is divided
        by that hook point's scale.
        """
        source = self.scale if self.source is None else self.source.scale
        raw = parameters.copy_for_rows_divided_by(self.scale, source=source, latents=self.latents)
        return raw if raw.centre is None else raw.recentred(torch.zeros_like(raw.centre))

    def unfolded(self, parameters: Parameters) -> Parameters:
        """Parameters that do on normalised rows what these do on raw ones."""
        source = self.scale if self.source is None else self.source.scale
        ours = parameters.copy_for_rows_divided_by(
            1 / self.scale, source=1 / source, latents=1 / self.latents
        )
        return ours if self.source is None else ours.recentred(self.source.centre)

    def to(self, device: torch.device) -> "Normalisation":
        """The same, with its tensors on a device."""
        return Normalisation(
            mean=self.mean.to(device),
            scale=self.scale if isinstance(self.scale, float) else self.scale.to(device),
            median=None if self.median is None else self.median.to(device),
            source=None if self.source is None else self.source.to(device),
            blocks=self.blocks,
        )


def _tensor(values: Any, device: torch.device) -> Float[Tensor, " channels"]:
    return torch.as_tensor(values, dtype=torch.float32, device=device)
