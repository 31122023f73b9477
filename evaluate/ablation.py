"""What takes the place of rows in an ablation: nothing, their mean, or other rows."""

from collections.abc import Mapping

import torch
from jaxtyping import Float, Float32, Int
from torch import Tensor

_INCREMENT, _FIRST, _SECOND = (  # splitmix64's, as signed numbers
    n - 2**64 for n in (0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB)
)


def zero_rows(clean_rows: Float32[Tensor, "rows d_in"]) -> Float32[Tensor, "rows d_in"]:
    """Zeros in the place of each row."""
    return torch.zeros_like(clean_rows)


def mean_rows(
    mean: Float[Tensor, " d_in"], clean_rows: Float32[Tensor, "rows d_in"]
) -> Float32[Tensor, "rows d_in"]:
    """The mean in the place of each row."""
    return mean.to(clean_rows).expand_as(clean_rows)


class Resampler:
    """Rows of other tokens in the place of rows, drawn from a pool.

    A draw is a function of the seed, the sequence's number and the position alone, so it
    is the same however sequences are batched; and all hook points get rows of one token.
    A row is never given back to its own place.

    Raises:
        ValueError: the pool has fewer than two rows, or parts of unequal length.
    """

    def __init__(
        self,
        pool: Mapping[str, Float32[Tensor, "pool d_in"]],
        sequences: Int[Tensor, " pool"],
        positions: Int[Tensor, " pool"],
        seed: int,
    ) -> None:
        """Keep a pool.

        Args:
            pool: rows of each hook point; those of one index are of one token.
            sequences: int64 numbers of the sequences that they are from.
            positions: int64, and where in them; no two rows are from the same place.
            seed: of the draw.
        """
        lengths = {len(sequences), len(positions), *map(len, pool.values())}
        if len(lengths) != 1 or min(lengths) < 2:
            raise ValueError(f"a pool needs two rows or more, as many of each: it has {lengths}")
        self._pool, self._size, self._seed = pool, len(sequences), seed
        self._places = _place(sequences, positions)

    def rows(
        self, hook_point: str, sequences: Int[Tensor, " rows"], positions: Int[Tensor, " rows"]
    ) -> Float32[Tensor, "rows d_in"]:
        """A row of the pool for each row.

        Args:
            hook_point: whose rows.
            sequences: int64 numbers of the sequences that the rows are in.
            positions: int64, and where in them.
        """
        place = _place(sequences, positions)
        seed = torch.full_like(place, _signed(self._seed))
        drawn = _mix(_mix(seed) ^ _mix(place))
        index = drawn.remainder(self._size)
        # Its own: on by any number but a whole round, so that all others are as likely.
        step = 1 + _mix(drawn).remainder(self._size - 1)
        own = self._places[index] == place
        index = torch.where(own, (index + step).remainder(self._size), index)
        return self._pool[hook_point][index]


def _place(sequences: Tensor, positions: Tensor) -> Tensor:
    return (sequences << 32) | positions


def _mix(z: Tensor) -> Tensor:
    """The finalizer of splitmix64 (Steele et al. 2014), on int64 that wrap around."""
    z = z + _INCREMENT
    z = (z ^ _shifted(z, 30)) * _FIRST
    z = (z ^ _shifted(z, 27)) * _SECOND
    return z ^ _shifted(z, 31)


def _shifted(z: Tensor, bits: int) -> Tensor:
    return (z >> bits) & ((1 << (64 - bits)) - 1)  # int64's shift copies the sign


def _signed(n: int) -> int:
    n %= 2**64
    return n - 2**64 if n >= 2**63 else n
