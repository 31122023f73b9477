"""Rows out of shard files: what zarr wrote is what is read, whatever the codec."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
import zarr
from hypothesis import given
from hypothesis import strategies as st
from zarr.codecs import Crc32cCodec, ZstdCodec

from saeflow.errors import SaeflowError
from saeflow.harvest.reader import RowArray, RowReader

N_ROWS, WIDTH, SHARD, CHUNK = 1000, 24, 256, 32
CODECS: dict[str, Any] = {"bytes": None, "crc32c": Crc32cCodec(), "zstd": ZstdCodec(checksum=True)}
Codec = Literal["bytes", "crc32c", "zstd"]


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One array in every codec, and one without inner chunks, as zarr-python writes them."""
    folder = tmp_path_factory.mktemp("arrays")
    for codec, compressor in CODECS.items():
        array = zarr.create_array(
            folder / codec,
            shape=(N_ROWS, WIDTH),
            shards=(SHARD, WIDTH),
            chunks=(CHUNK, WIDTH),
            dtype="uint8",
            compressors=compressor,
        )
        array[:] = content()
    plain = zarr.create_array(
        folder / "plain", shape=(N_ROWS,), chunks=(SHARD,), dtype="float32", compressors=None
    )
    plain[:] = np.arange(N_ROWS)
    return folder


def content() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 9, (N_ROWS, WIDTH), np.uint8)


def array_of(folder: Path, codec: Codec) -> RowArray:
    return RowArray(str(folder / codec), f"acts/{codec}", WIDTH, N_ROWS, SHARD, CHUNK, codec)


def read(reader: RowReader, runs: list[range]) -> bytes:
    target = bytearray(sum(map(len, runs)) * reader.array.width)
    reader.read(runs, memoryview(target))
    return bytes(target)


@st.composite
def runs(draw: st.DrawFn) -> range:
    start = draw(st.integers(0, N_ROWS - 1))
    border = min(N_ROWS, (start // SHARD + 1) * SHARD)
    return range(start, draw(st.integers(start + 1, border)))


@given(asked=st.lists(runs(), max_size=6), codec=st.sampled_from(["bytes", "crc32c", "zstd"]))
def test_any_runs_are_what_was_written(written: Path, asked: list[range], codec: Codec) -> None:
    reader = RowReader(array_of(written, codec), most_open=2)
    expected = b"".join(content()[run.start : run.stop].tobytes() for run in asked)
    assert read(reader, asked) == expected
    reader.close()
    assert read(reader, asked) == expected


def test_an_array_without_inner_chunks(written: Path) -> None:
    array = RowArray(str(written / "plain"), "scale", 4, N_ROWS, SHARD)
    found = np.frombuffer(read(RowReader(array), [range(250, 256), range(999, 1000)]), np.float32)
    assert found.tolist() == [*range(250, 256), 999]


@pytest.mark.parametrize("in_cache", [True, False])
def test_rows_between_runs_of_a_strip_are_skipped(
    written: Path, in_cache: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not in_cache:
        monkeypatch.setattr("saeflow.harvest.reader._NO_WAIT", None)
    reader = RowReader(array_of(written, "bytes"))
    kept = [range(300, 302), range(303, 304), range(310, 320)]
    target = bytearray(13 * WIDTH)
    late = reader.begin(kept, memoryview(target))
    assert in_cache or late is not None
    if late is not None:
        late.finish()
    assert target == b"".join(content()[run.start : run.stop].tobytes() for run in kept)


Damage = Callable[[Path], object]


def flip(at: int) -> Damage:
    def change(file: Path) -> None:
        data = bytearray(file.read_bytes())
        data[at] ^= 1
        file.write_bytes(data)

    return change


@pytest.mark.parametrize("codec", ["crc32c", "zstd"])
@pytest.mark.parametrize("at", range(0, 800, 97))
def test_no_flipped_bit_of_an_encoded_chunk_is_silent(
    written: Path, tmp_path: Path, codec: Codec, at: int
) -> None:
    file = tmp_path / codec / "c/1/0"
    file.parent.mkdir(parents=True)
    file.write_bytes((written / codec / "c/1/0").read_bytes())
    flip(at)(file)
    reader = RowReader(array_of(tmp_path, codec))
    line = rf"acts/{codec}, shard 1, chunk \d \(rows \d+ to \d+\) is damaged in {file}: mend"
    with pytest.raises(SaeflowError, match=line):
        read(reader, [range(SHARD, 2 * SHARD)])


def test_a_chunk_of_another_length_is_refused(written: Path, tmp_path: Path) -> None:
    """A sound zstd frame of too little content."""
    array = array_of(tmp_path, "zstd")
    zarr.create_array(
        tmp_path / "zstd",
        shape=(SHARD, WIDTH // 2),
        shards=(SHARD, WIDTH // 2),
        chunks=(CHUNK, WIDTH // 2),
        dtype="uint8",
        compressors=CODECS["zstd"],
    )[:] = 7
    with pytest.raises(SaeflowError, match="is damaged"):
        read(RowReader(array), [range(5)])


def test_a_missing_file_is_named(written: Path) -> None:
    array = RowArray(str(written / "bytes"), "acts/h", WIDTH, 9999, SHARD, CHUNK)
    with pytest.raises(SaeflowError, match=r"bytes/c/20/0 can't be opened: No such file"):
        read(RowReader(array), [range(20 * SHARD, 20 * SHARD + 1)])
