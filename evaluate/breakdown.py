"""Losses by where a prediction is made and by how frequent the token is that it is of."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Float64, Int, Num
from torch import Tensor

from saeflow.errors import BadInputError
from saeflow.evaluate.figures import Breakdown
from saeflow.train.lean import Metric

_DECADES = range(-6, -1)


@dataclass(frozen=True)
class Bins:
    """Intervals of numbers, the lower end of each belonging to it.

    Attributes:
        borders: between the bins, ascending; the outer ones have no end.
        labels: one more, for people.
    """

    borders: tuple[float, ...]
    labels: tuple[str, ...]

    def of(self, values: Num[Tensor, " predictions"]) -> Int[Tensor, " predictions"]:
        """The bin of each value."""
        borders = torch.tensor(self.borders, dtype=torch.float64, device=values.device)
        return torch.bucketize(values.double(), borders, right=True)


def position_bins(last: int) -> Bins:
    """Bins that double: 0, 1, 2-3, 4-7, and so on up to the last position.

    Args:
        last: the last position that anything is predicted from.
    """
    borders = [2**power for power in range(last.bit_length())]
    lows, highs = [0, *borders], [*(border - 1 for border in borders), last]
    labels = [f"{a}" if a == b else f"{a}-{b}" for a, b in zip(lows, highs, strict=True)]
    return Bins(tuple(map(float, borders)), tuple(labels))


def frequency_bins() -> Bins:
    """Bins of a token's share of the text, by powers of ten from one in a million."""
    labels = [f"1e{power} to 1e{power + 1}" for power in _DECADES[:-1]]
    ends = f"under 1e{_DECADES[0]}", f"over 1e{_DECADES[-1]}"
    borders = tuple(float(f"1e{power}") for power in _DECADES)
    return Bins(borders, (ends[0], *labels, ends[1]))


class LossBreakdown(Metric):
    """The mean loss of each pass in each bin, of sums in float64.

    Args:
        labels: of the bins.
        passes: names of the forward passes.
    """

    full_state_update = False
    count: Tensor
    losses: Tensor

    def __init__(self, labels: Sequence[str], passes: Sequence[str], **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.labels, self.passes = tuple(labels), tuple(passes)
        count = torch.zeros(len(labels), dtype=torch.int64)
        losses = torch.zeros(len(passes), len(labels), dtype=torch.float64)
        self.add_state("count", count, dist_reduce_fx="sum")
        self.add_state("losses", losses, dist_reduce_fx="sum")

    def update(
        self, bins: Int[Tensor, " predictions"], losses: Mapping[str, Float[Tensor, " predictions"]]
    ) -> None:
        """Add predictions: the bin of each, and its loss in each pass.

        Raises:
            BadInputError: the names are not those of the passes.
        """
        if set(losses) != set(self.passes):
            raise BadInputError(
                f"losses of {', '.join(losses)} where {', '.join(self.passes)} are broken down: "
                "give those of each pass"
            )
        self.count.index_add_(0, bins, torch.ones_like(bins, dtype=torch.int64))
        for sums, name in zip(self.losses, self.passes, strict=True):
            sums.index_add_(0, bins, losses[name].double())

    def compute(self) -> Float64[Tensor, "passes bins"]:
        """The means; NaN in empty bins."""
        return self.losses / self.count

    def breakdown(self) -> Breakdown:
        """The means by name."""
        means = self.compute().reshape(self.losses.shape).tolist()  # one bin alone is no scalar
        count = tuple(self.count.tolist())
        return Breakdown(
            labels=self.labels,
            count=count,
            losses={
                name: tuple(m if n else None for m, n in zip(row, count, strict=True))
                for name, row in zip(self.passes, means, strict=True)
            },
        )


def joined(shared: Breakdown, own: Breakdown) -> Breakdown:
    """The passes of both: those that all SAEs share, and one SAE's own.

    Raises:
        BadInputError: they are not of the same predictions.
    """
    if (shared.labels, shared.count) != (own.labels, own.count):
        raise BadInputError(
            f"breakdowns of {sum(shared.count):,} and of {sum(own.count):,} predictions are not "
            "of the same ones: update both with the same bins"
        )
    return Breakdown(
        labels=shared.labels, count=shared.count, losses={**shared.losses, **own.losses}
    )
