"""How well the rows of a hook point are given back.

FVU and its mean over rows are those of training (`saeflow.train.metrics`). All sums are in
float64, and all states reduce across processes.
"""

import math
from typing import Any

import torch
from jaxtyping import Bool, Float, Float64
from torch import Tensor

from saeflow.evaluate.estimates import LEAST_DENOMINATOR
from saeflow.evaluate.explained_variance import ExplainedVariance
from saeflow.evaluate.figures import Reconstruction
from saeflow.train.lean import Metric, MetricCollection
from saeflow.train.metrics import FVU, RowFVU

MASSIVE = 10
"""A row whose norm is over this many times the median is massive."""


class FVUOfOthers(FVU):
    """The fraction of variance unexplained of the rows that are not massive."""

    def update(  # type: ignore[override]
        self,
        x: Float[Tensor, "rows d_in"],
        reconstruction: Float[Tensor, "rows d_in"],
        massive: Bool[Tensor, " rows"],
    ) -> None:
        """Add rows."""
        super().update(x[~massive], reconstruction[~massive])


class RowSums(Metric):
    """Sums over rows, which means and shares are made from."""

    full_state_update = False
    names = (
        "rows",
        "error",
        "cosine",
        "norm_ratio",
        "rows_not_zero",
        "squares_of_reconstruction",
        "products",
        "massive_rows",
        "massive_error",
        "scored",
        "loss",
        "massive_loss",
    )

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        for name in self.names:
            self.add_state(name, torch.zeros((), dtype=torch.float64), dist_reduce_fx="sum")

    def update(
        self,
        x: Float[Tensor, "rows d_in"],
        reconstruction: Float[Tensor, "rows d_in"],
        massive: Bool[Tensor, " rows"],
        loss_increase: Float[Tensor, " rows"],
    ) -> None:
        """Add rows; the loss increase is NaN where it is not known."""
        x, reconstruction = x.double(), reconstruction.double()
        norms, found_norms = x.norm(dim=1), reconstruction.norm(dim=1)
        products = (x * reconstruction).sum(1)
        error = (x - reconstruction).square().sum(1)
        lengths = norms * found_norms
        scored = ~loss_increase.isnan()
        loss = loss_increase.double().where(scored, 0)
        added = {
            "rows": torch.ones_like(norms),
            "error": error,
            "cosine": torch.where(lengths > 0, products / lengths, 0),
            "norm_ratio": torch.where(norms > 0, found_norms / norms, 0),
            "rows_not_zero": norms > 0,
            "squares_of_reconstruction": found_norms.square(),
            "products": products,
            "massive_rows": massive,
            "massive_error": error * massive,
            "scored": scored,
            "loss": loss,
            "massive_loss": loss * massive,
        }
        for name, values in added.items():
            setattr(self, name, getattr(self, name) + values.sum())

    def compute(self) -> dict[str, Float64[Tensor, ""]]:
        """The sums, by name."""
        return {name: getattr(self, name) for name in self.names}


class ReconstructionMetrics:
    """All that is said of the rows of one hook point and what an SAE makes of them.

    Args:
        mean: the reference point of FVU per row, and what is near the mean of the rows
            for the others, (d_in,); the mean of the training rows.
        median_norm: of the rows, which says which ones are massive.

    Attributes:
        metrics: torchmetrics, which reduce across processes; they are on the mean's device.
    """

    def __init__(self, mean: Float[Tensor, " d_in"], median_norm: float) -> None:
        self.massive_norm = MASSIVE * median_norm
        self.metrics = MetricCollection(
            {
                "fvu": FVU(mean),
                "fvu_without_massive": FVUOfOthers(mean),
                "row_fvu": RowFVU(mean),
                "explained_variance": ExplainedVariance(len(mean)),
                "sums": RowSums(),
            },
            compute_groups=False,
        ).to(mean.device)

    def update(
        self,
        x: Float[Tensor, "rows d_in"],
        x_hat: Float[Tensor, "rows d_in"],
        loss_increase: Float[Tensor, " rows"],
    ) -> None:
        """Add rows.

        Args:
            x: the rows of the source model.
            x_hat: what the SAE puts in their place.
            loss_increase: what that adds to the loss of the prediction that is made from
                each row's position, in nats; NaN where no prediction is scored.
        """
        self.metrics.update(
            x=x.double(),
            reconstruction=x_hat.double(),
            massive=x.double().norm(dim=1) > self.massive_norm,
            loss_increase=loss_increase,
        )

    def compute(self, hook_point: str) -> Reconstruction:
        """What the rows so far come to."""
        values = {name: float(value) for name, value in self.metrics.compute().items()}
        rows, kept = values["rows"], values["rows_not_zero"]
        return Reconstruction(
            hook_point=hook_point,
            rows=int(rows),
            fvu=_finite(values["fvu"]),
            fvu_without_massive=_finite(values["fvu_without_massive"]),
            row_fvu=_finite(values["row_fvu"]),
            explained_variance=_finite(values["explained_variance"]),
            mse=values["error"] / rows,
            cosine=_over(values["cosine"], kept),
            l2_ratio=_over(values["norm_ratio"], kept),
            relative_bias=_over(values["squares_of_reconstruction"], values["products"]),
            massive_rows=int(values["massive_rows"]),
            massive_share_of_error=_over(values["massive_error"], values["error"]),
            massive_share_of_loss=_share_of_loss(values),
        )


def _over(top: float, bottom: float) -> float | None:
    return top / bottom if bottom else None


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


def _share_of_loss(sums: dict[str, float]) -> float | None:
    if not sums["loss"] > LEAST_DENOMINATOR * sums["scored"]:
        return None
    return sums["massive_loss"] / sums["loss"]
