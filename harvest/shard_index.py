"""The index at the end of a shard file (zarr v3, sharding codec, version 1.0).

For each of the shard's chunks its offset and length, uint64, then the crc32c of that.
This module needs numpy, not torch: a reader process uses it too.
"""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Int64

from saeflow.crc import crc32c

ABSENT = -1
"""Offset and length of a chunk that is not there: 2**64 - 1, read as int64."""


def index_bytes(n_chunks: int) -> int:
    """How long the index of a shard is."""
    return 16 * n_chunks + 4


def encode_index(lengths: Sequence[int], n_chunks: int) -> bytes:
    """The index of chunks that follow each other from offset 0; the rest are not there.

    Args:
        lengths: bytes of each chunk that is there.
        n_chunks: chunks of a full shard.
    """
    entries = np.full((n_chunks, 2), ABSENT, "<i8")
    entries[: len(lengths), 0] = np.cumsum([0, *lengths[:-1]])
    entries[: len(lengths), 1] = lengths
    return with_crc(entries.tobytes())


def decode_index(encoded: bytes, n_chunks: int) -> Int64[np.ndarray, "chunks offset_length"] | None:
    """The entries of an index; None if it is cut short or damaged."""
    if len(encoded) != index_bytes(n_chunks) or with_crc(encoded[:-4]) != encoded:
        return None
    return np.frombuffer(encoded[:-4], "<i8").reshape(n_chunks, 2).astype(np.int64)


def with_crc(encoded: bytes | memoryview) -> bytes:
    """Bytes with their crc32c behind them, as zarr's codec `crc32c` does it."""
    return bytes(encoded) + crc32c(encoded).to_bytes(4, "little")
