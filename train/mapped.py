"""Strips that the page cache holds, copied all at once out of memory maps.

All shards of an array are mapped behind one another in one stretch of addresses.
There the array is a matrix of strips, and the strips of a batch are one `np.take`:
without a system call or a line of Python a strip, and without the interpreter's
lock. So it is for hot files only, as a fault for a page that is not in the cache
waits for the disk, one page after another; and for a process of our own only, as
a mapped file that is cut short ends the process that reads it.
"""

import ctypes
import mmap
import os
import sys
from collections.abc import Sequence

import numpy as np
from jaxtyping import Bool, Int64, UInt8

from saeflow.harvest.reader import RowArray, RowReader

_LOOKED_AT = 16
"""Strips of a batch whose first page must be in the cache for all to be taken for hot."""

_NORESERVE, _FIXED, _NO_ACCESS = 0x4000, 0x10, 0
_FAILED = ctypes.c_void_p(-1).value


class MappedStrips:
    """The strips of an array in memory maps, made shard by shard as they are needed."""

    def __init__(self, reader: RowReader, rows_per_strip: int) -> None:
        self._reader, array = reader, reader.array
        self._strip_bytes = rows_per_strip * array.width
        self._shard_bytes = array.rows_per_shard * array.width
        self._strips_per_shard = array.rows_per_shard // rows_per_strip
        n_shards = -(-array.n_rows // array.rows_per_shard)
        self._mapped: Bool[np.ndarray, " shards"] = np.zeros(n_shards, np.bool_)
        self._libc = ctypes.PyDLL(None, use_errno=True)  # the calls are shorter than a lock's
        self._libc.mmap.restype = ctypes.c_void_p
        self._libc.mmap.argtypes = [
            ctypes.c_void_p,
            ctypes.c_size_t,
            *[ctypes.c_int] * 3,
            ctypes.c_long,
        ]
        self._libc.mincore.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_char_p]
        self._libc.munmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t]
        self._n_bytes = n_shards * self._shard_bytes
        reserved = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | _NORESERVE
        self._base = self._map(None, self._n_bytes, _NO_ACCESS, reserved, -1)
        memory = (ctypes.c_uint8 * self._n_bytes).from_address(self._base)
        self._strips: UInt8[np.ndarray, "strips bytes"] = np.ctypeslib.as_array(memory).reshape(
            -1, self._strip_bytes
        )

    @staticmethod
    def fit(array: RowArray) -> bool:
        """Whether an array's shards can be mapped behind one another."""
        return (
            sys.platform == "linux"
            and array.rows_per_chunk > 0
            and array.codec == "bytes"
            and array.rows_per_shard * array.width % mmap.PAGESIZE == 0
            and "://" not in array.path
            and os.access(array.path, os.W_OK)  # of others' files, nobody is told what is cached
        )

    def copy(self, strips: Sequence[int], target: memoryview) -> bool:
        """Copy whole strips, one after another, if they seem to be in the page cache.

        Raises:
            SaeflowError: a file is missing or damaged.
        """
        numbers: Int64[np.ndarray, " strips"] = np.asarray(strips, np.int64)
        shards = numbers // self._strips_per_shard
        for shard in np.unique(shards[~self._mapped[shards]]).tolist():
            self._map_shard(shard)
        if not self._are_cached(strips[:: -(-len(strips) // _LOOKED_AT)]):
            return False
        out = np.frombuffer(target, np.uint8).reshape(-1, self._strip_bytes)
        np.take(self._strips, numbers, axis=0, out=out, mode="clip")
        return True

    def close(self) -> None:
        """Take the maps away; nothing may be read any more."""
        self._libc.munmap(self._base, self._n_bytes)

    def _are_cached(self, strips: Sequence[int]) -> bool:
        answer, looks = ctypes.create_string_buffer(1), self._libc.mincore
        for strip in strips:
            page = strip * self._strip_bytes // mmap.PAGESIZE * mmap.PAGESIZE
            if looks(self._base + page, 1, answer) != 0 or answer.raw == b"\0":
                return False
        return True

    def _map_shard(self, shard: int) -> None:
        array = self._reader.array
        rows = array.chunks_in(shard) * array.rows_per_chunk
        place = self._base + shard * self._shard_bytes
        descriptor = self._reader.descriptor(shard)
        self._map(place, rows * array.width, mmap.PROT_READ, mmap.MAP_SHARED | _FIXED, descriptor)
        self._mapped[shard] = True

    def _map(self, place: int | None, length: int, access: int, flags: int, file: int) -> int:
        found: int | None = self._libc.mmap(place, length, access, flags, file, 0)
        if found is None or found == _FAILED:
            raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
        return found
