"""A shard's files, held against those that zarr-python writes for the same rows."""

from pathlib import Path

import google_crc32c
import numpy as np
import pytest
import torch
import zarr
from torch import Tensor

from saeflow.harvest import layout as layout_module
from saeflow.harvest.layout import ROW_ARRAYS, HookPoint, Layout, Split, create_arrays
from saeflow.harvest.shards import new_matrix, place_shard, write_shard
from saeflow.harvest.tokens import Packing

HOOK = HookPoint("hook", (6,))
SHARD = 64


def layout_of(dtype: str = "float32", order: str = "permuted", n_rows: int = 170) -> Layout:
    """Two full shards and one of 42 rows, in chunks of 16 rows if `small_chunks` is in force."""
    return Layout(
        dtype=dtype,
        packing=Packing(context_size=11, bos=0, separator=1),
        order=order,  # type: ignore[arg-type]  # parametrised as text
        seed=0,
        rows_per_shard=SHARD,
        hook_points=(HOOK,),
        splits={"train": Split("train", n_rows // 10, n_rows, 5, SHARD)},
    )


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Chunks of 16 rows of float32, 32 of two bytes: several in a shard, as in real stores."""
    monkeypatch.setattr(layout_module, "_CHUNK_BYTES", 16 * 6 * 4)


def write(folder: Path, layout: Layout) -> tuple[Tensor, list[dict[str, object]]]:
    """Write every shard; return the rows in stored order and the commit records."""
    split = layout.splits["train"]
    create_arrays(folder, layout, split)
    rows = torch.randn(split.n_rows, 6, generator=torch.Generator().manual_seed(0))
    rows, stored, records = rows.to(layout.stored.torch), [], []
    for k in range(split.n_shards):
        place = place_shard(layout, split, k)
        matrix = new_matrix(layout, HOOK, place)
        matrix[torch.from_numpy(place.places)] = rows[place.rows.start : place.rows.stop]
        numbers = np.arange(place.rows.start, place.rows.stop, dtype=np.uint32)
        values = dict.fromkeys(ROW_ARRAYS, numbers)
        records.append(write_shard(folder, layout, place, {"hook": matrix}, values))
        stored.append(matrix[: len(place.rows)])
    return torch.cat(stored), records


def read(array: Path) -> np.ndarray:
    return np.asarray(zarr.open_array(array, mode="r")[:])


def bits(rows: Tensor, layout: Layout) -> np.ndarray:
    return rows.view(torch.uint8).numpy().view(layout.stored.array)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float32"])
def test_full_shards_are_zarrs_own_bytes(tmp_path: Path, dtype: str) -> None:
    layout = layout_of(dtype)
    stored, _ = write(tmp_path / "ours", layout)
    ours = zarr.open_array(tmp_path / "ours/acts/hook", mode="r")
    theirs = zarr.create_array(
        tmp_path / "theirs",
        shape=ours.shape,
        shards=ours.shards,
        chunks=ours.chunks,
        dtype=ours.dtype,
        fill_value=ours.fill_value,
        compressors=None,
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


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float32"])
@pytest.mark.parametrize("n_rows", [1, 42, 64, 130, 170])
def test_zarr_reads_the_rows_that_were_written(tmp_path: Path, dtype: str, n_rows: int) -> None:
    layout = layout_of(dtype, n_rows=n_rows)
    stored, _ = write(tmp_path, layout)
    assert np.array_equal(read(tmp_path / "acts/hook"), bits(stored, layout))


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


def test_chunk_checksums_are_those_of_the_chunks(tmp_path: Path) -> None:
    stored, _ = write(tmp_path, layout_of())
    crcs = read(tmp_path / "crc/hook")
    assert len(crcs) == 11
    expected = [google_crc32c.value(part.numpy().tobytes()) for part in stored.split(16)]
    assert crcs[:10].tolist() == expected[:10]  # the last chunk is padded


def test_the_commit_record_lists_every_file_with_size_and_checksum(tmp_path: Path) -> None:
    _, records = write(tmp_path, layout_of())
    listed = {name: file for record in records for name, file in record["files"].items()}  # type: ignore[attr-defined]
    there = {str(p.relative_to(tmp_path)) for p in tmp_path.rglob("c/**/*") if p.is_file()}
    assert set(listed) == there
    for name, file in listed.items():
        content = (tmp_path / name).read_bytes()
        assert file == {"bytes": len(content), "crc32c": google_crc32c.value(content)}
    assert [record["rows"] for record in records] == [64, 64, 42]
