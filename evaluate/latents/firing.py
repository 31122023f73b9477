"""How often and how strongly latents are active: counts, sums and histograms, in one pass."""

from typing import NamedTuple

import torch
from jaxtyping import Float, Float32, Int
from torch import Tensor

LOWEST, HIGHEST = -16, 24
"""Powers of two between which activations are told apart."""

_BINS = 2 * (HIGHEST - LOWEST)


class Active(NamedTuple):
    """The activations above zero of some rows.

    Attributes:
        rows: int64, rising.
        latents: int64.
        values: float32.
    """

    rows: Int[Tensor, " pairs"]
    latents: Int[Tensor, " pairs"]
    values: Float32[Tensor, " pairs"]

    @staticmethod
    def of(latents: Float[Tensor, "rows latents"]) -> "Active":
        """Find them; waits for the device."""
        rows, numbers = (latents > 0).nonzero(as_tuple=True)
        return Active(rows, numbers, latents[rows, numbers].float())


class Firing:
    """Counts over all rows seen, 332 bytes a latent: 22 MB for 65,536 latents.

    The bins are half octaves of the activation itself, from 2^-16 to 2^24: no second pass
    finds the range, no bin's edge depends on what came first, and those that no latent
    uses are left out at the end.
    """

    def __init__(self, n: int, device: torch.device) -> None:
        self.rows = 0
        self.fired = torch.zeros(n, dtype=torch.int64, device=device)
        self.sums = torch.zeros(n, dtype=torch.float64, device=device)
        self._counts = torch.zeros(n, _BINS, dtype=torch.int32, device=device)
        powers = torch.arange(_BINS + 1, dtype=torch.float64, device=device) / 2 + LOWEST
        self._edges = (2.0**powers).float()

    @property
    def nbytes(self) -> int:
        """Bytes that are held."""
        return self.fired.nbytes + self.sums.nbytes + self._counts.nbytes

    def update(self, active: Active, rows: int) -> None:
        """Count what is active in `rows` more rows."""
        self.rows += rows
        self.fired += torch.bincount(active.latents, minlength=len(self.fired))
        self.sums.index_add_(0, active.latents, active.values.double())
        bins = torch.bucketize(active.values, self._edges, right=True) - 1
        places = active.latents * _BINS + bins.clamp(0, _BINS - 1)
        ones = torch.ones_like(places, dtype=torch.int32)
        self._counts.view(-1).index_add_(0, places, ones)

    def histogram(self) -> tuple[Float32[Tensor, " edges"], Int[Tensor, "latents bins"]]:
        """Edges and counts of the bins from the lowest to the highest that is not empty."""
        used = self._counts.any(0).nonzero().flatten().tolist() or [0]
        first, last = used[0], used[-1] + 1
        return self._edges[first : last + 1], self._counts[:, first:last]
