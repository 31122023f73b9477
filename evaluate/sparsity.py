"""How many latents are active in a row, and in how many rows a latent is active."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int64
from torch import Tensor

from saeflow.evaluate.decoder_cosines import cosine_quantiles
from saeflow.evaluate.figures import Sparsity
from saeflow.train.lean import Metric

_PERCENT = (5, 25, 50, 75, 95)
_DENSE = 10  # active in more than one row of as many
_L0_BINS = 40
_AT_ONCE = 2**24

DENSITY_EDGES = tuple(-7 + step / 4 for step in range(29))
"""Of the density histogram, log10 of the share of rows: four bins a decade."""


class ActiveLatents(Metric):
    """Counts of active latents, by row and by latent; a latent is active above zero.

    Counts are whole numbers, and what is made from them does not hang on batches; an update
    takes 128 MiB at most beside the latents, and waits for no device.

    Args:
        d_sae: number of latents.
    """

    full_state_update = False
    fired: Tensor
    rows_by_l0: Tensor
    l1: Tensor

    def __init__(self, d_sae: int, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.add_state("fired", torch.zeros(d_sae, dtype=torch.int64), dist_reduce_fx="sum")
        by_l0 = torch.zeros(d_sae + 1, dtype=torch.int64)
        self.add_state("rows_by_l0", by_l0, dist_reduce_fx="sum")
        self.add_state("l1", torch.zeros((), dtype=torch.float64), dist_reduce_fx="sum")

    def update(self, latents: Float[Tensor, "rows d_sae"]) -> None:
        """Add the latents of rows."""
        for part in latents.split(max(_AT_ONCE // latents.shape[1], 1)):
            active = part > 0
            self.fired += active.sum(0)
            l0 = active.sum(1)
            self.rows_by_l0.index_add_(0, l0, torch.ones_like(l0))
            self.l1 += part.sum(dtype=torch.float64)

    def compute(self) -> dict[str, Tensor]:
        """The counts: `fired`, (d_sae,), and `rows_by_l0`, (d_sae + 1,); and the sum `l1`."""
        return {"fired": self.fired, "rows_by_l0": self.rows_by_l0, "l1": self.l1}

    def sparsity(self, largest_cosines: Float[Tensor, " latents"]) -> Sparsity:
        """What the counts say.

        Args:
            largest_cosines: of the decoder's rows (`decoder_cosines.largest_cosines`).
        """
        counts = self.compute()
        by_l0 = counts["rows_by_l0"].cpu().numpy()
        fired = counts["fired"].reshape(-1).cpu().numpy()  # torchmetrics makes one latent a scalar
        rows = int(by_l0.sum())
        l0_edges, l0_counts = _histogram(by_l0)
        return Sparsity(
            l0=int(fired.sum()) / rows,
            l0_quantiles=_quantiles(by_l0),
            l0_edges=l0_edges,
            l0_counts=l0_counts,
            l1=float(counts["l1"]) / rows,
            dead=int((fired == 0).sum()),
            dense=int((fired * _DENSE > rows).sum()),
            density_edges=DENSITY_EDGES,
            density_counts=_densities(fired, rows),
            decoder_cosine_quantiles=cosine_quantiles(largest_cosines),
            decoder_cosine_latents=len(largest_cosines),
        )


def _quantiles(rows_by_l0: Int64[np.ndarray, " l0"]) -> Mapping[str, float]:
    """For each share of the rows, the smallest L0 that as many do not exceed."""
    rows_up_to = rows_by_l0.cumsum()
    wanted = [-(-int(rows_up_to[-1]) * percent // 100) for percent in _PERCENT]
    found = np.searchsorted(rows_up_to, wanted)
    return {f"{p / 100:g}": float(l0) for p, l0 in zip(_PERCENT, found, strict=True)}


def _histogram(
    rows_by_l0: Int64[np.ndarray, " l0"],
) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Edges and counts of at most 40 bins of equal width from the smallest L0 to the largest."""
    there = rows_by_l0.nonzero()[0]
    low, high = int(there[0]), int(there[-1])
    width = -(-(high + 1 - low) // _L0_BINS)
    starts = np.arange(low, high + 1, width)
    counts = np.add.reduceat(rows_by_l0[: high + 1], starts)
    return (*starts.tolist(), int(starts[-1]) + width), tuple(counts.tolist())


def _densities(fired: Int64[np.ndarray, " d_sae"], rows: int) -> tuple[int, ...]:
    """Latents by share of the rows; those under the first edge are in the first bin."""
    shares = np.log10(fired[fired > 0] / rows).clip(DENSITY_EDGES[0])
    counts, _ = np.histogram(shares, DENSITY_EDGES)
    return tuple(counts.tolist())
