"""What is known of a hook point's rows without reading them again.

Made while harvesting, shard by shard, and merged in the shards' order, so that
the figures do not depend on interruptions. Language models have a few *massive*
rows whose norm is a hundred times the others' (Sun et al., "Massive Activations
in Large Language Models", 2024); they would rule any mean or deviation, so those
are of the ordinary rows alone, and massive rows are counted.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Float64, Int64
from torch import Tensor

MASSIVE = 10.0
"""A row is massive when its norm is more than this times the median norm of its shard."""

NORM_BINS = 512
"""Bins of the norm histogram: eight an octave, from 2**-32 to 2**32."""

_BLOCK = 8192


@dataclass(frozen=True)
class ShardStatistics:
    """One shard's figures for one hook point.

    Attributes:
        channels: mean, sum of squared deviations, and largest absolute value of
            each channel; the first two over ordinary rows, the last over all.
        ordinary: ordinary rows.
        massive: massive rows.
        square_sum: sum of the squared norms of ordinary rows.
        norm_histogram: rows in each bin of the norm, all rows.
    """

    channels: Float64[np.ndarray, "3 d_in"]
    ordinary: int
    massive: int
    square_sum: float
    norm_histogram: Int64[np.ndarray, " bins"]

    def to_record(self) -> dict[str, Any]:
        """The part that goes into the commit record; `channels` is an array of the store."""
        bins = np.flatnonzero(self.norm_histogram)
        return {
            "ordinary": self.ordinary,
            "massive": self.massive,
            "square_sum": self.square_sum,
            "norm_bins": {str(b): int(self.norm_histogram[b]) for b in bins},
        }

    @staticmethod
    def from_record(
        record: dict[str, Any], channels: Float64[np.ndarray, "3 d_in"]
    ) -> "ShardStatistics":
        """The inverse of `to_record`."""
        histogram = np.zeros(NORM_BINS, np.int64)
        for b, count in record["norm_bins"].items():
            histogram[int(b)] = count
        return ShardStatistics(
            channels, record["ordinary"], record["massive"], record["square_sum"], histogram
        )


@dataclass(frozen=True)
class Statistics:
    """A hook point's figures over all training rows.

    Attributes:
        mean, std: of each channel over ordinary rows.
        absmax: largest absolute value of each channel over all rows.
        mean_square: mean squared norm of ordinary rows.
        ordinary, massive: how many rows of each kind.
        norm_histogram: rows in each bin of the norm, all rows.
    """

    mean: Float64[np.ndarray, " d_in"]
    std: Float64[np.ndarray, " d_in"]
    absmax: Float64[np.ndarray, " d_in"]
    mean_square: float
    ordinary: int
    massive: int
    norm_histogram: Int64[np.ndarray, " bins"]


def shard_statistics(rows: Float[Tensor, "rows d_in"]) -> ShardStatistics:
    """The figures of one shard, in float64.

    Args:
        rows: at least one row, finite, in any precision.
    """
    norms = torch.cat([block.double().norm(dim=1) for block in rows.split(_BLOCK)])
    kept = norms <= MASSIVE * norms.median()
    ordinary = int(kept.sum())
    blocks = list(zip(rows.split(_BLOCK), kept.split(_BLOCK), strict=True))
    mean = sum(block[keep].double().sum(0) for block, keep in blocks) / ordinary
    m2 = sum((block[keep].double() - mean).square().sum(0) for block, keep in blocks)
    absmax = rows.abs().amax(0).double()
    channels = torch.stack([torch.as_tensor(mean), torch.as_tensor(m2), absmax]).numpy()
    return ShardStatistics(
        channels,
        ordinary,
        len(rows) - ordinary,
        float(norms[kept].square().sum()),
        np.bincount(_norm_bin(norms.numpy()), minlength=NORM_BINS),
    )


def merge(shards: Sequence[ShardStatistics]) -> Statistics:
    """Put shards' figures together (Chan, Golub and LeVeque 1983, equation 2.1)."""
    count, mean, m2 = 0, np.zeros(1), np.zeros(1)
    for shard in shards:
        total = count + shard.ordinary
        delta = shard.channels[0] - mean
        mean = mean + delta * (shard.ordinary / total)
        m2 = m2 + shard.channels[1] + delta**2 * (count * shard.ordinary / total)
        count = total
    return Statistics(
        mean=mean,
        std=np.sqrt(m2 / count),
        absmax=np.max([shard.channels[2] for shard in shards], axis=0),
        mean_square=sum(shard.square_sum for shard in shards) / count,
        ordinary=count,
        massive=sum(shard.massive for shard in shards),
        norm_histogram=np.sum([shard.norm_histogram for shard in shards], axis=0),
    )


def _norm_bin(norms: Float64[np.ndarray, " rows"]) -> Int64[np.ndarray, " rows"]:
    with np.errstate(divide="ignore"):
        octaves = np.log2(norms)
    bins = np.floor(8 * octaves) + NORM_BINS // 2
    clipped: Int64[np.ndarray, " rows"] = np.clip(bins, 0, NORM_BINS - 1).astype(np.int64)
    return clipped
