"""A shard's files, held against those that zarr-python writes for the same rows."""

from pathlib import Path
from typing import Any

import google_crc32c
import numpy as np
import pytest
import torch
import zarr
from torch import Tensor
from zarr.codecs import Crc32cCodec, ZstdCodec

from saeflow.harvest import layout as layout_module
from saeflow.harvest.arrays import create_arrays
from saeflow.harvest.layout import DTYPES, ROW_ARRAYS, Codec, HookPoint, Layout, Split
from saeflow.harvest.quantise import Quantisation
from saeflow.harvest.shard_files import checksum, write_shard
from saeflow.harvest.shards import GatheredShard, new_shard, place_shard
from saeflow.harvest.tokens import Packing

HOOK = HookPoint("hook", (6,))
SHARD = 64
QUANTISATION = Quantisation(torch.linspace(-1, 1, 6), torch.linspace(0.1, 2, 6))
ZARRS = {
    "bytes": None,
    "crc32c": [Crc32cCodec()],
    "zstd": [ZstdCodec(level=1, checksum=True)],
}


def layout_of(
    dtype: str = "float32", order: str = "permuted", n_rows: int = 170, codec: Codec = "bytes"
) -> Layout:
    """Two full shards and one of 42 rows, in several chunks if `small_chunks` is in force."""
    return Layout(
        dtype=dtype,
        packing=Packing(context_size=11, bos=0, separator=1),
        order=order,  # type: ignore[arg-type]  # parametrised as text
        seed=0,
        rows_per_shard=SHARD,
        hook_points=(HOOK,),
        codec=codec,
        splits={"train": Split("train", n_rows // 10, n_rows, 5, SHARD)},
    )


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Chunks of 16 rows of int8, 4 of float32: several in a shard, as in real stores."""
    monkeypatch.setattr(layout_module, "_CHUNK_BYTES", 16 * 6)


def gather(layout: Layout, index: int, rows: Tensor) -> GatheredShard:
    """A shard of some rows, which arrive in two batches; each one's values are its number."""
    place = place_shard(layout, layout.splits["train"], index)
    numbers = np.arange(place.rows.start, place.rows.stop, dtype=np.uint32)
    shard = new_shard(
        layout,
        place,
        dict.fromkeys(ROW_ARRAYS, numbers),
        quantisations={"hook": QUANTISATION} if layout.dtype == "int8" else {},
    )
    places = torch.from_numpy(place.places)
    for some in torch.arange(len(numbers)).tensor_split(2):
        batch = rows[some + place.rows.start]
        if layout.dtype != "int8":
            batch = batch.to(layout.stored.torch)
        shard.put("hook", places[some], batch)
    return shard


def write(folder: Path, layout: Layout) -> tuple[Tensor, list[dict[str, Any]]]:
    """Write every shard; return the rows in stored order and the commit records."""
    split = layout.splits["train"]
    create_arrays(folder, layout, split)
    rows = torch.randn(split.n_rows, 6, generator=torch.Generator().manual_seed(0))
    shards = [gather(layout, k, rows) for k in range(split.n_shards)]
    records = [write_shard(folder, layout, shard) for shard in shards]
    return torch.cat([s.matrices["hook"][: len(s.place.rows)] for s in shards]), records


def read(array: Path) -> np.ndarray:
    return np.asarray(zarr.open_array(array, mode="r")[:])


def bits(rows: Tensor, layout: Layout) -> np.ndarray:
    return rows.view(torch.uint8).numpy().view(layout.stored.array)


@pytest.mark.parametrize("codec", ZARRS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_full_shards_are_zarrs_own_bytes(tmp_path: Path, dtype: str, codec: Codec) -> None:
    layout = layout_of(dtype, codec=codec)
    stored, _ = write(tmp_path / "ours", layout)
    ours = zarr.open_array(tmp_path / "ours/acts/hook", mode="r")
    theirs = zarr.create_array(
        tmp_path / "theirs",
        shape=ours.shape,
        shards=ours.shards,
        chunks=ours.chunks,
        dtype=ours.dtype,
        fill_value=ours.fill_value,
        compressors=ZARRS[codec],
        config={"write_empty_chunks": True},
    )
    theirs[:] = bits(stored, layout)
    assert ours.shards == (SHARD, 6)
    assert ours.chunks[0] < SHARD
    for k in (0, 1):
        name = f"c/{k}/0"
        assert (tmp_path / "ours/acts/hook" / name).read_bytes() == (
            tmp_path / "theirs" / name
        ).read_bytes()


@pytest.mark.parametrize("name", ["token", "norm/hook", "scale/hook", "crc/hook"])
def test_what_goes_with_the_rows_is_zarrs_own_bytes_too(tmp_path: Path, name: str) -> None:
    write(tmp_path / "ours", layout_of("int8"))
    ours = zarr.open_array(tmp_path / "ours" / name, mode="r")
    theirs = zarr.create_array(
        tmp_path / "theirs",
        shape=ours.shape,
        chunks=ours.chunks,
        dtype=ours.dtype,
        fill_value=ours.fill_value,
        compressors=None,
        config={"write_empty_chunks": True},
    )
    theirs[:] = ours[:]
    files = sorted((tmp_path / "theirs/c").iterdir())
    assert len(files) == 3  # the last one is filled up
    for file in files:
        assert (tmp_path / "ours" / name / "c" / file.name).read_bytes() == file.read_bytes()


@pytest.mark.parametrize("codec", ZARRS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("n_rows", [1, 42, 64, 130, 170])
def test_zarr_reads_the_rows_that_were_written(
    tmp_path: Path, dtype: str, n_rows: int, codec: Codec
) -> None:
    layout = layout_of(dtype, n_rows=n_rows, codec=codec)
    stored, _ = write(tmp_path, layout)
    assert np.array_equal(read(tmp_path / "acts/hook"), bits(stored, layout))


@pytest.mark.parametrize("dtype", DTYPES)
def test_norms_are_those_of_the_rows_as_they_are_read(tmp_path: Path, dtype: str) -> None:
    stored, _ = write(tmp_path, layout_of(dtype))
    rows = stored.float()
    if dtype == "int8":
        rows = QUANTISATION.dequantise(stored, torch.from_numpy(read(tmp_path / "scale/hook")))
    assert np.array_equal(read(tmp_path / "norm/hook"), rows.double().norm(dim=1).float().numpy())


@pytest.mark.parametrize("codec", ["crc32c", "zstd"])
def test_zarr_refuses_a_chunk_with_one_wrong_bit(tmp_path: Path, codec: Codec) -> None:
    """Every byte of a shard in turn; zstd's frame has one bit that says nothing."""
    stored, _ = write(tmp_path, layout_of("int8", n_rows=20, codec=codec))
    file = tmp_path / "acts/hook/c/0/0"
    content, silent = file.read_bytes(), []
    for at in range(len(content)):
        file.write_bytes(content[:at] + bytes([content[at] ^ 1 << at % 8]) + content[at + 1 :])
        try:
            found = read(tmp_path / "acts/hook")
        except (ValueError, RuntimeError):
            continue
        silent.append(at)
        assert np.array_equal(found, stored.numpy())  # no wrong number is ever read
    print(f"{codec}: {len(content) - len(silent)} of {len(content)} flips refused")
    assert len(silent) <= (0 if codec == "crc32c" else 2)


def test_row_values_go_where_their_rows_go(tmp_path: Path) -> None:
    layout = layout_of()
    write(tmp_path, layout)
    numbers = read(tmp_path / "seq")
    place = place_shard(layout, layout.splits["train"], 1)
    assert sorted(numbers[64:128]) == list(range(64, 128))
    assert np.array_equal(numbers[64 + place.places], np.arange(64, 128))


def test_the_order_of_a_shard_follows_seed_split_and_number() -> None:
    split, layout = layout_of().splits["train"], layout_of()
    one, other = (place_shard(layout, split, k).places for k in (0, 1))
    assert not np.array_equal(one, other)
    assert np.array_equal(one, place_shard(layout, split, 0).places)
    in_order = place_shard(layout_of(order="sequence"), split, 0).places
    assert np.array_equal(in_order, np.arange(SHARD))


@pytest.mark.parametrize("codec", ZARRS)
def test_chunk_checksums_are_those_of_the_chunks_as_stored(tmp_path: Path, codec: Codec) -> None:
    write(tmp_path, layout_of(codec=codec))
    crcs = read(tmp_path / "crc/hook")
    assert len(crcs) == 43  # four rows each, the last one filled up
    for shard in range(3):
        content = (tmp_path / f"acts/hook/c/{shard}/0").read_bytes()
        index = np.frombuffer(content[-16 * 16 - 4 : -4], "<u8").reshape(16, 2).astype(int)
        chunks = [content[first : first + length] for first, length in index if first >= 0]
        assert b"".join(chunks) == content[: -16 * 16 - 4]
        expected = [google_crc32c.value(chunk) for chunk in chunks]
        assert crcs[16 * shard : 16 * (shard + 1)].tolist() == expected


@pytest.mark.parametrize("dtype", ["float32", "int8"])
def test_the_commit_record_lists_every_file_with_size_and_checksum(
    tmp_path: Path, dtype: str
) -> None:
    _, records = write(tmp_path, layout_of(dtype))
    listed = {name: file for record in records for name, file in record["files"].items()}
    there = {str(p.relative_to(tmp_path)) for p in tmp_path.rglob("c/**/*") if p.is_file()}
    assert set(listed) == there
    for name, file in listed.items():
        content = (tmp_path / name).read_bytes()
        assert file == {"bytes": len(content), "crc32c": google_crc32c.value(content)}
    assert [record["rows"] for record in records] == [64, 64, 42]


def test_a_checksum_does_not_depend_on_how_the_bytes_are_cut() -> None:
    content = bytes(range(100))
    whole = {"bytes": 100, "crc32c": google_crc32c.value(content)}
    assert checksum([content]) == whole
    assert checksum([content[:7], b"", memoryview(content)[7:]]) == whole
