"""What is known of a hook point's rows without reading them again.

Made while harvesting, shard by shard, and merged in the shards' order, so that
the figures do not depend on interruptions. Language models have a few *massive*
rows whose norm is a hundred times the others' (Sun et al., "Massive Activations
in Large Language Models", 2024); they would rule any mean or deviation, so those
are of the ordinary rows alone, and massive rows are counted.
"""

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Float32, Float64, Int64, UInt32
from torch import Tensor

MASSIVE = 10.0
"""A row is massive when its norm is more than this times the median norm of its shard."""

NORM_BINS = 512
"""Bins of the norm histogram: eight an octave, from 2**-32 to 2**32."""

_BLOCK = 2**18
"""Numbers that are looked at together: in float64, what stays in the processor's cache."""

_COMMONEST = 32
"""Of a shard's massive rows, so many tokens and positions are counted one by one."""

MEDIAN_ROWS = 4096
"""Rows of a shard that its geometric median is made of."""

_MEDIAN_STEPS, _MEDIAN_TOLERANCE = 50, 1e-5
"""When the search for it ends."""

Rows = Callable[[int, int], Float[Tensor, "rows d_in"]]
"""Gives stored rows from `first` to `stop` (excluded), widened to float32."""


@dataclass(frozen=True)
class ShardStatistics:
    """One shard's figures for one hook point.

    Attributes:
        channels: `SHARD_FIGURES` of each channel: mean, sum of squared deviations,
            largest absolute value (this one over all rows) and geometric median.
        ordinary: ordinary rows.
        massive: massive rows.
        median_norm: median of the rows' norms.
        square_sum: sum of the squared norms of ordinary rows.
        norm_histogram: rows in each bin of the norm, all rows.
        massive_tokens, massive_positions: massive rows by token id and by position,
            the commonest of each.
    """

    channels: Float64[np.ndarray, "figures d_in"]
    ordinary: int
    massive: int
    median_norm: float
    square_sum: float
    norm_histogram: Int64[np.ndarray, " bins"]
    massive_tokens: Mapping[str, int] = field(default_factory=dict)
    massive_positions: Mapping[str, int] = field(default_factory=dict)

    def to_record(self) -> dict[str, Any]:
        """The part that goes into the commit record; `channels` is an array of the store."""
        bins = np.flatnonzero(self.norm_histogram)
        return {
            "ordinary": self.ordinary,
            "massive": self.massive,
            "median_norm": self.median_norm,
            "square_sum": self.square_sum,
            "norm_bins": {str(b): int(self.norm_histogram[b]) for b in bins},
            "massive_tokens": dict(self.massive_tokens),
            "massive_positions": dict(self.massive_positions),
        }

    @staticmethod
    def from_record(
        record: Mapping[str, Any], channels: Float64[np.ndarray, "figures d_in"]
    ) -> "ShardStatistics":
        """The inverse of `to_record`."""
        histogram = np.zeros(NORM_BINS, np.int64)
        for b, count in record["norm_bins"].items():
            histogram[int(b)] = count
        others = {k: v for k, v in record.items() if k != "norm_bins"}
        return ShardStatistics(channels, norm_histogram=histogram, **others)


@dataclass(frozen=True)
class Statistics:
    """A hook point's figures over all training rows.

    Attributes:
        mean, std: of each channel over ordinary rows.
        absmax: largest absolute value of each channel over all rows.
        geometric_median: an estimate: the shards' own, averaged.
        mean_square: mean squared norm of ordinary rows.
        ordinary, massive: how many rows of each kind.
        median_norm: of each shard.
        norm_histogram: rows in each bin of the norm, all rows.
        massive_tokens, massive_positions: massive rows by token id and by position,
            the commonest of each shard, the commonest first.
    """

    mean: Float64[np.ndarray, " d_in"]
    std: Float64[np.ndarray, " d_in"]
    absmax: Float64[np.ndarray, " d_in"]
    geometric_median: Float64[np.ndarray, " d_in"]
    mean_square: float
    ordinary: int
    massive: int
    median_norm: Float64[np.ndarray, " shards"]
    norm_histogram: Int64[np.ndarray, " bins"]
    massive_tokens: Mapping[str, int]
    massive_positions: Mapping[str, int]


def row_norms(rows: Rows, n_rows: int) -> Float32[np.ndarray, " rows"]:
    """Euclidean norms of stored rows, rounded once from float64."""
    norms = [rows(b.start, b.stop).double().norm(dim=1) for b in _blocks(rows, n_rows)]
    return torch.cat(norms).float().cpu().numpy()


def ordinary_rows(norms: Float[Tensor, " rows"]) -> Bool[Tensor, " rows"]:
    """Which rows are not massive."""
    return norms.double() <= MASSIVE * norms.double().median()


def shard_statistics(
    rows: Rows,
    norms: Float32[np.ndarray, " rows"],
    row_values: Mapping[str, UInt32[np.ndarray, " rows"]],
) -> ShardStatistics:
    """The figures of one shard, in float64.

    Args:
        rows: gives the shard's rows, finite.
        norms: of each of them; at least one.
        row_values: `token` and `pos` of each of them, where they are known.
    """
    n_rows = len(norms)
    median = float(torch.from_numpy(norms).median())
    kept = ordinary_rows(torch.from_numpy(norms))

    def ordinary_blocks() -> Iterator[Float[Tensor, "rows d_in"]]:
        for b in _blocks(rows, n_rows):
            block = rows(b.start, b.stop)
            yield block[kept[b].to(block.device)].double()

    ordinary = int(kept.sum())
    mean = torch.as_tensor(sum(block.sum(0) for block in ordinary_blocks())) / ordinary
    m2 = torch.as_tensor(sum((block - mean).square().sum(0) for block in ordinary_blocks()))
    tops = [rows(b.start, b.stop).abs().amax(0) for b in _blocks(rows, n_rows)]
    absmax = torch.stack(tops).amax(0).double()
    middle = geometric_median(rows(0, min(MEDIAN_ROWS, n_rows)), start=mean)
    massive = ~kept.numpy()
    return ShardStatistics(
        torch.stack([mean, m2, absmax, middle]).cpu().numpy(),
        ordinary,
        n_rows - ordinary,
        median,
        float(np.square(norms[~massive].astype(np.float64)).sum()),
        np.bincount(_norm_bin(norms.astype(np.float64)), minlength=NORM_BINS),
        *(_commonest(row_values[n][massive]) if n in row_values else {} for n in ("token", "pos")),
    )


def geometric_median(
    rows: Float[Tensor, "rows d_in"], *, start: Float64[Tensor, " d_in"]
) -> Float64[Tensor, " d_in"]:
    """The point whose summed distance to the rows is least, nearly (Weiszfeld 1937).

    Each step is a mean weighted by one over the distance; massive rows hardly move it.
    """
    middle, points = start.float(), rows.float()
    for _ in range(_MEDIAN_STEPS):
        weights = 1 / (points - middle).norm(dim=1).clamp(min=1e-12)
        moved = (weights @ points) / weights.sum()
        done = (moved - middle).norm() <= _MEDIAN_TOLERANCE * moved.norm()
        middle = moved
        if done:
            break
    return middle.double()


def merge(shards: Sequence[ShardStatistics]) -> Statistics:
    """Put shards' figures together (Chan, Golub and LeVeque 1983, equation 2.1)."""
    count, mean, m2, middle = 0, np.zeros(1), np.zeros(1), np.zeros(1)
    for shard in shards:
        total = count + shard.ordinary
        delta = shard.channels[0] - mean
        mean = mean + delta * (shard.ordinary / total)
        m2 = m2 + shard.channels[1] + delta**2 * (count * shard.ordinary / total)
        middle = middle + (shard.channels[3] - middle) * (shard.ordinary / total)
        count = total
    return Statistics(
        mean=mean,
        std=np.sqrt(m2 / count),
        absmax=np.max([shard.channels[2] for shard in shards], axis=0),
        geometric_median=middle,
        mean_square=sum(shard.square_sum for shard in shards) / count,
        ordinary=count,
        massive=sum(shard.massive for shard in shards),
        median_norm=np.array([shard.median_norm for shard in shards]),
        norm_histogram=np.sum([shard.norm_histogram for shard in shards], axis=0),
        massive_tokens=_added([shard.massive_tokens for shard in shards]),
        massive_positions=_added([shard.massive_positions for shard in shards]),
    )


def norm_quantiles(
    histogram: Int64[np.ndarray, " bins"], shares: Sequence[float]
) -> dict[float, float]:
    """Norms below which the given shares of the rows lie, to within a bin (a twelfth of it)."""
    cumulative = np.cumsum(histogram)
    counts = np.maximum(np.asarray(shares) * cumulative[-1], 1)  # no share is of the empty bins
    bins = np.searchsorted(cumulative, counts)
    return {s: 2.0 ** ((b - NORM_BINS // 2 + 0.5) / 8) for s, b in zip(shares, bins, strict=True)}


def _blocks(rows: Rows, n_rows: int) -> Iterator[slice]:
    size = max(1, _BLOCK // rows(0, 1).shape[1])
    return (slice(i, min(i + size, n_rows)) for i in range(0, n_rows, size))


def _commonest(values: UInt32[np.ndarray, " rows"]) -> dict[str, int]:
    found, counts = np.unique(values, return_counts=True)
    order = np.lexsort([found, -counts])[:_COMMONEST]
    return {str(found[i]): int(counts[i]) for i in order}


def _added(counts: Sequence[Mapping[str, int]]) -> dict[str, int]:
    total: Counter[str] = Counter()
    for one in counts:
        total.update(one)
    return dict(sorted(total.items(), key=lambda pair: (-pair[1], int(pair[0])))[:_COMMONEST])


def _norm_bin(norms: Float64[np.ndarray, " rows"]) -> Int64[np.ndarray, " rows"]:
    with np.errstate(divide="ignore"):
        octaves = np.log2(norms)
    bins = np.floor(8 * octaves) + NORM_BINS // 2
    clipped: Int64[np.ndarray, " rows"] = np.clip(bins, 0, NORM_BINS - 1).astype(np.int64)
    return clipped
