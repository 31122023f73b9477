"""crc32c of bytes, and of two pieces of bytes one after the other, without reading them again."""

from functools import lru_cache

import google_crc32c
import numpy as np

_POLYNOMIAL = 0x82F63B78
"""Castagnoli's, with its bits reversed."""


def crc32c(part: bytes | memoryview) -> int:
    """The crc32c of some bytes."""
    # Through numpy, because the C library takes no memoryview, and bytes would be a copy.
    crc: int = google_crc32c.value(np.frombuffer(part, np.uint8))
    return crc


def joined(before: int, after: int, length: int) -> int:
    """The crc32c of two pieces one after the other.

    A crc is linear over GF(2): behind `length` more bytes, that of the first piece
    has been multiplied by x**(8 * length) (zlib's crc32_combine does the same).

    Args:
        before: crc32c of the first piece.
        after: crc32c of the second.
        length: bytes of the second.
    """
    return _times(_shift(length), before) ^ after


@lru_cache(maxsize=64)
def _shift(length: int) -> tuple[int, ...]:
    """The matrix that moves a crc behind `length` bytes, as its 32 columns."""
    square: tuple[int, ...] = (_POLYNOMIAL, *(1 << bit for bit in range(31)))  # one bit
    for _ in range(3):  # one byte
        square = tuple(_times(square, column) for column in square)
    matrix = tuple(1 << bit for bit in range(32))
    while length:
        if length & 1:
            matrix = tuple(_times(square, column) for column in matrix)
        square = tuple(_times(square, column) for column in square)
        length >>= 1
    return matrix


def _times(matrix: tuple[int, ...], vector: int) -> int:
    product = 0
    for column in matrix:
        if vector & 1:
            product ^= column
        vector >>= 1
    return product
