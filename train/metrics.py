"""Reconstruction and sparsity, as torchmetrics: they reset, and they reduce across processes.

All take `x` and `reconstruction`, (rows, d_in), and `fired`, (d_sae,): for each
latent, in how many of the rows it is above zero. Sums are kept in float64.
"""

from typing import Any

import torch
from jaxtyping import Float, Int, Num
from torch import Tensor

from saeflow.train.lean import Metric, MetricCollection


class FVU(Metric):
    """Fraction of variance unexplained: sum of `|x - x_hat|^2` over sum of `|x - mean|^2`.

    The mean is of the rows seen. Sums are taken around `centre`, so that a mean
    much larger than the deviation costs no digits. A few massive rows can rule
    this figure; `RowFVU` is the one that they can't.

    Args:
        centre: any point near the mean, (d_in,).
    """

    full_state_update = False
    higher_is_better = False
    centre: Tensor
    error: Tensor
    rows: Tensor
    squares: Tensor
    total: Tensor

    def __init__(self, centre: Float[Tensor, " d_in"], **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.register_buffer("centre", centre.double(), persistent=False)
        for name, shape in (("error", ()), ("rows", ()), ("squares", ()), ("total", centre.shape)):
            self.add_state(name, torch.zeros(shape, dtype=torch.float64), dist_reduce_fx="sum")

    def update(
        self, x: Float[Tensor, "rows d_in"], reconstruction: Float[Tensor, "rows d_in"]
    ) -> None:
        """Add rows."""
        shifted = x.double() - self.centre
        self.error += (reconstruction.double() - x.double()).square().sum()
        self.squares += shifted.square().sum()
        self.total += shifted.sum(0)
        self.rows += len(x)

    def compute(self) -> Float[Tensor, ""]:
        """The fraction; infinite or NaN where the rows have no variance."""
        return self.error / (self.squares - self.total.square().sum() / self.rows)


class RowFVU(Metric):
    """Mean over rows of `|x - x_hat|^2 / |x - mean|^2`: every row counts the same.

    Args:
        mean: the reference point, (d_in,); the mean of the training rows.
    """

    full_state_update = False
    higher_is_better = False
    mean: Tensor
    total: Tensor
    rows: Tensor

    def __init__(self, mean: Float[Tensor, " d_in"], **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.register_buffer("mean", mean.double(), persistent=False)
        self.add_state("total", torch.zeros((), dtype=torch.float64), dist_reduce_fx="sum")
        self.add_state("rows", torch.zeros((), dtype=torch.float64), dist_reduce_fx="sum")

    def update(
        self, x: Float[Tensor, "rows d_in"], reconstruction: Float[Tensor, "rows d_in"]
    ) -> None:
        """Add rows."""
        wide = x.double()
        error = (reconstruction.double() - wide).square().sum(1)
        self.total += (error / (wide - self.mean).square().sum(1)).sum()
        self.rows += len(x)

    def compute(self) -> Float[Tensor, ""]:
        """The mean."""
        return self.total / self.rows


class L0(Metric):
    """Mean number of latents above zero in a row."""

    full_state_update = False
    active: Tensor
    rows: Tensor

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.add_state("active", torch.zeros((), dtype=torch.float64), dist_reduce_fx="sum")
        self.add_state("rows", torch.zeros((), dtype=torch.float64), dist_reduce_fx="sum")

    def update(self, x: Float[Tensor, "rows d_in"], fired: Num[Tensor, " d_sae"]) -> None:
        """Add rows."""
        self.active += fired.double().sum()
        self.rows += len(x)

    def compute(self) -> Float[Tensor, ""]:
        """The mean."""
        return self.active / self.rows


class DeadLatents(Metric):
    """How many latents are above zero in none of the rows."""

    full_state_update = False
    fired: Tensor

    def __init__(self, d_sae: int, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.add_state("fired", torch.zeros(d_sae, dtype=torch.float64), dist_reduce_fx="sum")

    def update(self, fired: Num[Tensor, " d_sae"]) -> None:
        """Add rows."""
        self.fired += fired.double()

    def compute(self) -> Int[Tensor, ""]:
        """The count."""
        return torch.sum(self.fired == 0)


class FiringShares(Metric):
    """In which share of the rows each latent is above zero, (d_sae,)."""

    full_state_update = False
    fired: Tensor
    rows: Tensor

    def __init__(self, d_sae: int, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.add_state("fired", torch.zeros(d_sae, dtype=torch.float64), dist_reduce_fx="sum")
        self.add_state("rows", torch.zeros((), dtype=torch.float64), dist_reduce_fx="sum")

    def update(self, x: Float[Tensor, "rows _"], fired: Num[Tensor, " d_sae"]) -> None:
        """Add rows."""
        self.fired += fired.double()
        self.rows += len(x)

    def compute(self) -> Float[Tensor, " d_sae"]:
        """The shares."""
        return self.fired / self.rows


def reconstruction_metrics(mean: Float[Tensor, " d_in"]) -> MetricCollection:
    """What is said of every SAE, in training and in evaluation: `fvu`, `row_fvu`, `l0`."""
    return MetricCollection(
        {"fvu": FVU(mean), "row_fvu": RowFVU(mean), "l0": L0()}, compute_groups=False
    )
