"""Rows of one array of a store, read out of its shard files into memory of the caller's.

Where chunks are stored as they are, the body of a shard file is the matrix of its
rows, and a run of rows is one `preadv` into its place: nearly as fast as a copy out of
a memory map, without its page faults, and without the signal that kills a process
when a mapped file is cut short. That the body is what we take it for is checked
once a file, in its index. Encoded chunks are read and decoded whole.

This module needs numpy, not torch: it also runs in a reader process, which has
to start quickly.
"""

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from threading import Lock
from typing import Literal

import numpy as np
from jaxtyping import Int64

from saeflow.crc import crc32c
from saeflow.errors import SaeflowError
from saeflow.harvest.remote import Remote, RemoteFile, connect
from saeflow.harvest.shard_index import ABSENT, decode_index, index_bytes
from saeflow.location import Url, locate

ALIGNMENT = 4096
"""Where the kernel copies to should begin at a multiple of this, or at least of 64: some
processors copy at a third of their speed to the first bytes of a page but one."""

_MOST_OPEN = 256
_NO_WAIT = getattr(os, "RWF_NOWAIT", None)
_close = os.close  # still there while the interpreter ends


@dataclass(frozen=True)
class RowArray:
    """One array of rows, and all that is needed to find a row's bytes.

    Attributes:
        path: the array's folder, or its URL.
        name: what messages call it.
        width: bytes of a row.
        n_rows: rows of the array.
        rows_per_shard: rows of a file, but for the last.
        rows_per_chunk: rows of an inner chunk; 0 where a file holds nothing but rows.
        codec: how inner chunks are encoded.
    """

    path: str
    name: str
    width: int
    n_rows: int
    rows_per_shard: int
    rows_per_chunk: int = 0
    codec: Literal["bytes", "crc32c", "zstd"] = "bytes"

    def file(self, shard: int) -> str:
        """The file of a shard, below `path`."""
        return f"c/{shard}/0" if self.rows_per_chunk else f"c/{shard}"

    def chunks_in(self, shard: int) -> int:
        """How many chunks of a shard hold rows."""
        rows = min(self.rows_per_shard, self.n_rows - shard * self.rows_per_shard)
        return -(-rows // self.rows_per_chunk)


class _ShardFile:
    """An open shard file; it is closed when nothing refers to it any longer."""

    def __init__(self, path: str) -> None:
        self.path = path
        self.descriptor = -1
        self.chunks: Int64[np.ndarray, "chunks offset_length"] | None = None
        try:
            self.descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        except OSError as error:
            raise SaeflowError(f"{path} can't be opened: {error.strerror}") from error

    def __del__(self) -> None:
        if self.descriptor >= 0:
            _close(self.descriptor)

    @property
    def size(self) -> int:
        """Its length in bytes."""
        return os.fstat(self.descriptor).st_size

    def read(self, offset: int, length: int) -> bytes:
        """Bytes of the file, fewer at its end.

        Raises:
            SaeflowError: the disk fails.
        """
        try:
            return os.pread(self.descriptor, length, offset)
        except OSError as error:
            raise SaeflowError(f"{self.path} can't be read: {error.strerror}") from error


class LateRead:
    """Rows that the page cache did not hold: what is left of a read, for who can wait for it."""

    __slots__ = ("_buffers", "_file", "_last", "_offset")

    def __init__(self, file: _ShardFile, offset: int, buffers: list[memoryview], last: int) -> None:
        self._file, self._offset, self._buffers, self._last = file, offset, buffers, last

    def finish(self) -> None:
        """Read it.

        Raises:
            SaeflowError: the file ends too early, or can't be read.
        """
        while self._buffers:
            try:
                got = os.preadv(self._file.descriptor, self._buffers, self._offset)
            except OSError as error:
                raise SaeflowError(f"{self._file.path} can't be read: {error.strerror}") from error
            if got == 0:
                raise SaeflowError(
                    f"{self._file.path} ends before row {self._last}: "
                    "check the store with saeflow verify"
                )
            self.skip(got)

    def skip(self, got: int) -> None:
        """So many bytes of it are there."""
        self._offset += got
        while self._buffers and got >= len(self._buffers[0]):
            got -= len(self._buffers.pop(0))
        if got:
            self._buffers[0] = self._buffers[0][got:]


class RowReader:
    """Reads rows of one array; several threads may use it at once.

    It keeps the files it opened last, and the chunk it decoded last.
    """

    def __init__(self, array: RowArray, *, most_open: int = _MOST_OPEN) -> None:
        self.array = array
        self._most_open = most_open
        self._remote = _connect(array.path)
        self._files: dict[int, _ShardFile | RemoteFile] = {}
        self._lock = Lock()
        self._decoded: tuple[int, bytes | memoryview] = (-1, b"")
        self._skipped = memoryview(bytearray(0))

    def read(self, runs: Sequence[range], target: memoryview) -> None:
        """Read runs of consecutive rows, one after another.

        Args:
            runs: row numbers; no run crosses a shard.
            target: memory for all of them, writable.

        Raises:
            SaeflowError: a file is missing, cut short, damaged, or not laid out as
                format 1 says.
        """
        begin = 0
        for run in runs:
            stop = begin + len(run) * self.array.width
            if self._remote is not None and self.array.codec == "bytes":
                self._read_remote(run, target[begin:stop])
            elif self.array.codec == "bytes":
                late = self.begin([run], target[begin:stop])
                if late is not None:
                    late.finish()
            else:
                self._read_encoded(run, target[begin:stop])
            begin = stop

    def begin(self, runs: Sequence[range], target: memoryview) -> LateRead | None:
        """Copy runs of one strip as far as the page cache holds them; the rest, or None.

        Args:
            runs: row numbers, rising, all of one shard and near to each other: what
                lies between them is read too, and thrown away. Chunks must be stored
                as they are.
            target: memory for the rows, one after another.
        """
        array, first = self.array, runs[0].start
        shard, row = divmod(first, array.rows_per_shard)
        file = self._files.get(shard) or self._file(shard)
        assert isinstance(file, _ShardFile)
        buffers = [target] if len(runs) == 1 else list(self._scattered(runs, target))
        offset, got = row * array.width, 0
        if _NO_WAIT is not None:
            try:
                got = os.preadv(file.descriptor, buffers, offset, _NO_WAIT)
            except OSError:
                got = 0  # not in the cache, or a file system that doesn't know this flag
            if got == (runs[-1].stop - first) * array.width:
                return None
        late = LateRead(file, offset, buffers, runs[-1].stop - 1)
        late.skip(got)
        return late

    def descriptor(self, shard: int) -> int:
        """Of a shard's file, checked; good until the files are closed or many more are opened."""
        file = self._file(shard)
        assert isinstance(file, _ShardFile)
        return file.descriptor

    def close(self) -> None:
        """Close the files."""
        with self._lock:
            self._files.clear()
        self._decoded = (-1, b"")

    def _scattered(self, runs: Sequence[range], target: memoryview) -> Iterator[memoryview]:
        width, begin, row = self.array.width, 0, runs[0].start
        span = (runs[-1].stop - row) * width
        if len(self._skipped) < span:
            self._skipped = memoryview(bytearray(span))
        for run in runs:
            if run.start > row:
                yield self._skipped[: (run.start - row) * width]
            yield target[begin : begin + len(run) * width]
            begin, row = begin + len(run) * width, run.stop

    def _read_remote(self, run: range, target: memoryview) -> None:
        """Chunks stored as they are: one request for the run."""
        shard, row = divmod(run.start, self.array.rows_per_shard)
        target[:] = self._file(shard).read(row * self.array.width, len(target))

    def _read_encoded(self, run: range, target: memoryview) -> None:
        rows, width, begin, first = self.array.rows_per_chunk, self.array.width, 0, run.start
        while first < run.stop:
            chunk = first // rows
            stop = min(run.stop, (chunk + 1) * rows)
            inside = slice((first - chunk * rows) * width, (stop - chunk * rows) * width)
            part = self._decode(chunk)[inside]
            target[begin : begin + len(part)] = part
            begin, first = begin + len(part), stop

    def _decode(self, chunk: int) -> bytes | memoryview:
        """All rows of a chunk, numbered from the array's first."""
        number, decoded = self._decoded
        if number != chunk:
            decoded = self._decode_anew(chunk)
            self._decoded = chunk, decoded
        return decoded

    def _decode_anew(self, chunk: int) -> bytes | memoryview:
        array = self.array
        shard, inside = divmod(chunk, array.rows_per_shard // array.rows_per_chunk)
        file = self._file(shard)
        assert file.chunks is not None
        offset, length = file.chunks[inside].tolist()
        if array.codec == "crc32c":
            body, crc = file.read(offset, length - 4), file.read(offset + length - 4, 4)
            decoded = body if crc32c(body) == int.from_bytes(crc, "little") else b""
        else:
            decoded = _unzipped(file.read(offset, length))
        if len(decoded) != array.rows_per_chunk * array.width:
            first = chunk * array.rows_per_chunk
            last = min(first + array.rows_per_chunk, array.n_rows) - 1
            raise SaeflowError(
                f"{array.name}, shard {shard}, chunk {inside} (rows {first} to {last}) is "
                f"damaged in {file.path}: mend the store with saeflow verify --repair"
            )
        return decoded

    def _file(self, shard: int) -> _ShardFile | RemoteFile:
        file = self._files.get(shard)
        if file is None:
            file = self._open(shard)  # two threads may: the one that is not kept is closed
            with self._lock:
                while len(self._files) >= self._most_open:
                    self._files.pop(next(iter(self._files)))
                self._files[shard] = file
        return file

    def _open(self, shard: int) -> _ShardFile | RemoteFile:
        name = self.array.file(shard)
        file: _ShardFile | RemoteFile
        if self._remote is None:
            file = _ShardFile(f"{self.array.path}/{name}")
        else:
            file = self._remote.file(name)
        if self.array.rows_per_chunk:
            self._check_index(file, shard)
        return file

    def _check_index(self, file: _ShardFile | RemoteFile, shard: int) -> None:
        """Chunks must follow each other from offset 0, those that hold rows and no others."""
        array = self.array
        present = array.chunks_in(shard)
        all_chunks = array.rows_per_shard // array.rows_per_chunk
        size = file.size
        length = index_bytes(all_chunks)
        entries = decode_index(file.read(max(0, size - length), min(size, length)), all_chunks)
        if entries is None or not self._is_sound(entries[:present], entries[present:], size):
            raise SaeflowError(
                f"{file.path} is damaged or not laid out as format 1: "
                "check the store with saeflow verify"
            )
        if array.codec != "bytes":
            file.chunks = entries[:present]

    def _is_sound(
        self,
        present: Int64[np.ndarray, "chunks offset_length"],
        absent: Int64[np.ndarray, "others offset_length"],
        size: int,
    ) -> bool:
        """Whether an index is that of a file of this size, with no gap in it."""
        array, lengths = self.array, present[:, 1]
        chunk_bytes = array.rows_per_chunk * array.width
        plain = {"bytes": chunk_bytes, "crc32c": chunk_bytes + 4}.get(array.codec)
        ends = np.cumsum(lengths)
        return bool(
            np.array_equal(present[:, 0], ends - lengths)
            and (absent == ABSENT).all()
            and (plain is None or (lengths == plain).all())
            and size == int(ends[-1]) + index_bytes(len(present) + len(absent))
        )


def _connect(path: str) -> Remote | None:
    """What a URL's objects are read through; None for a folder."""
    place = locate(path)
    return connect(place) if isinstance(place, Url) else None


def _unzipped(encoded: bytes) -> bytes:
    """A zstd frame's content; nothing if it is damaged."""
    from numcodecs.zstd import Zstd

    try:
        return bytes(Zstd().decode(encoded))
    except (RuntimeError, ValueError):
        return b""
