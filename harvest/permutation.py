"""Seeded permutations that need no memory and no state.

`permute(i, n, key)` is a bijection of 0..n-1 that is computed for any index alone,
so a shuffled order is a pure function of its key: nothing to save, nothing to
lose, and the same in every version of every library. It is a Feistel network
over the next even power of two with cycle-walking (Black and Rogaway, "Ciphers
with Arbitrary Finite Domains", CT-RSA 2002, section 4), its round function the
finaliser of SplitMix64.
"""

import hashlib

import numpy as np
from jaxtyping import Int64, UInt64

_ROUNDS = 6


def derive_key(*parts: int | str) -> int:
    """A 64-bit key from a seed and the names of what it is for; different names, different keys."""
    text = "\x1f".join(map(str, parts))
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "little")


def permute(indices: Int64[np.ndarray, " m"], n: int, key: int) -> Int64[np.ndarray, " m"]:
    """Where the permutation of 0..n-1 under `key` sends each index.

    Args:
        indices: int64, each in [0, n).
        n: size of the domain, at least 1.
        key: 64 bits, from `derive_key`.
    """
    half_bits = max(1, ((n - 1).bit_length() + 1) // 2)
    round_keys = _mix(np.uint64(key) + _GOLDEN * np.arange(1, _ROUNDS + 1, dtype=np.uint64))
    result = _encrypt(np.asarray(indices).astype(np.uint64), half_bits, round_keys)
    outside = np.flatnonzero(result >= n)
    while outside.size:  # the domain is under 4n, so a few rounds of this are enough
        result[outside] = _encrypt(result[outside], half_bits, round_keys)
        outside = outside[result[outside] >= n]
    return result.astype(np.int64)


def _encrypt(
    values: UInt64[np.ndarray, " m"], half_bits: int, round_keys: UInt64[np.ndarray, " rounds"]
) -> UInt64[np.ndarray, " m"]:
    mask = np.uint64((1 << half_bits) - 1)
    shift = np.uint64(half_bits)
    left, right = values >> shift, values & mask
    for round_key in round_keys:
        left, right = right, left ^ (_mix(right ^ round_key) & mask)
    return (left << shift) | right


_GOLDEN = np.uint64(0x9E3779B97F4A7C15)


def _mix(values: UInt64[np.ndarray, " m"]) -> UInt64[np.ndarray, " m"]:
    """SplitMix64's finaliser: every output bit depends on every input bit."""
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    mixed: UInt64[np.ndarray, " m"] = values ^ (values >> np.uint64(31))
    return mixed
