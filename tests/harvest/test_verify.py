"""Verifying a store: what is wrong is named, where it is, and nothing else is."""

import errno
import hashlib
import json
import os
import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from saeflow.errors import BadInputError
from saeflow.files import json_bytes
from saeflow.harvest.config import HarvestConfig
from saeflow.harvest.finish import write_root
from saeflow.harvest.manifest import complete_attributes, read_manifest, seal
from saeflow.harvest.run import harvest_activations
from saeflow.harvest.verify import check_file, verify_store

HOOK = "blocks.0.hook_resid_post"
SHARD = f"acts/{HOOK}/c/1/0"
MANIFEST = "_saeflow/manifest.json"
Options = Callable[..., HarvestConfig]
CODECS = ("bytes", "crc32c", "zstd")


@pytest.fixture(scope="module")
def stores(tiny_options: Options, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A small store for each codec: shards of 96 rows in three chunks. Don't write to them."""
    made = {}
    for codec in CODECS:
        made[codec] = tmp_path_factory.mktemp("stores") / codec
        harvest_activations(
            tiny_options(out=made[codec], tokens=600, shard_rows=96, held_out=0.4, codec=codec)
        )
    return made


@pytest.fixture
def store(stores: dict[str, Path], tmp_path: Path) -> Path:
    """A store that a test may damage."""
    return Path(shutil.copytree(stores["bytes"], tmp_path / "store"))


@pytest.fixture
def forbid(monkeypatch: pytest.MonkeyPatch) -> Callable[[Path], None]:
    """Make the system refuse to open a path, as it does for all but root without permissions."""

    def refuse(path: Path) -> None:
        for name in ("open", "scandir"):
            monkeypatch.setattr(os, name, partial(refused, getattr(os, name), path))

    def refused(real: Callable[..., Any], path: Path, opened: Any, *args: Any, **rest: Any) -> Any:
        if opened == path:
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(opened))
        return real(opened, *args, **rest)

    return refuse


def told(store: Path) -> list[str]:
    """The lines that `saeflow verify` prints."""
    return [str(problem) for problem in verify_store(store).problems]


def flip(file: Path, offset: int) -> None:
    """Change one byte."""
    with file.open("r+b") as opened:
        opened.seek(offset)
        byte = opened.read(1)[0]
        opened.seek(offset)
        opened.write(bytes([byte ^ 0x5A]))


# A store that is whole.


@pytest.mark.parametrize("codec", CODECS)
def test_a_store_as_it_was_harvested_is_whole(stores: dict[str, Path], codec: str) -> None:
    found = verify_store(stores[codec])
    files = [p for p in stores[codec].rglob("*") if p.is_file() and p.name != "lock"]
    assert found.whole
    assert found.files == len(files)
    assert found.bytes == sum(p.stat().st_size for p in files)


def test_what_it_finds_is_public() -> None:
    import saeflow

    assert saeflow.verify_store is verify_store


# Damage inside a shard of activations.


@pytest.mark.parametrize("codec", CODECS)
@pytest.mark.parametrize("chunk", [0, 1, 2])
def test_a_damaged_chunk_is_named_with_its_rows(
    stores: dict[str, Path], tmp_path: Path, codec: str, chunk: int
) -> None:
    store = Path(shutil.copytree(stores[codec], tmp_path / "store"))
    body = (store / SHARD).stat().st_size - 52  # the index of three chunks, and its checksum
    flip(store / SHARD, body * (2 * chunk + 1) // 6)
    rows = f"rows {96 + 32 * chunk} to {96 + 32 * chunk + 31}"
    assert told(store) == [
        f"{SHARD} is damaged: array acts/{HOOK}, train shard 1, chunk {chunk}, {rows}"
    ]


def test_neighbouring_chunks_are_one_line(store: Path) -> None:
    flip(store / SHARD, 0)
    flip(store / SHARD, 32 * 64)
    assert told(store) == [
        f"{SHARD} is damaged: array acts/{HOOK}, train shard 1, chunks 0 to 1, rows 96 to 159"
    ]


def test_chunks_that_lie_apart_are_two_lines(store: Path) -> None:
    flip(store / SHARD, 0)
    flip(store / SHARD, 2 * 32 * 64)
    assert [line.partition("shard 1, ")[2] for line in told(store)] == [
        "chunk 0, rows 96 to 127",
        "chunk 2, rows 160 to 191",
    ]


def test_damage_to_the_index_concerns_the_whole_shard(store: Path) -> None:
    flip(store / SHARD, (store / SHARD).stat().st_size - 30)
    assert told(store) == [
        (
            f"{SHARD} is damaged: array acts/{HOOK}, train shard 1, the index of its chunks, "
            "rows 96 to 191"
        )
    ]


def test_a_cut_shard_names_the_chunks_that_are_gone(store: Path) -> None:
    size = (store / SHARD).stat().st_size
    os.truncate(store / SHARD, 32 * 64 + 5)
    first, second = told(store)
    start = f"{SHARD} is truncated (2,053 bytes of {size:,}): array acts/{HOOK}, train shard 1, "
    assert second == f"{start}chunks 1 to 2, rows 128 to 191"
    assert first == f"{start}the index of its chunks, rows 96 to 191"


def test_without_a_whole_list_of_checksums_it_is_the_whole_shard(store: Path) -> None:
    flip(store / SHARD, 0)
    flip(store / f"crc/{HOOK}/c/1", 0)
    assert told(store) == [
        f"{SHARD} is damaged: array acts/{HOOK}, train shard 1, rows 96 to 191",
        f"crc/{HOOK}/c/1 is damaged: array crc/{HOOK}, train shard 1, rows 96 to 191",
    ]


@given(data=st.data(), codec=st.sampled_from(CODECS))
def test_any_damaged_bytes_are_where_they_are_said_to_be(
    stores: dict[str, Path], tmp_path_factory: pytest.TempPathFactory, data: Any, codec: str
) -> None:
    manifest = read_manifest(stores[codec])
    assert manifest is not None
    store = tmp_path_factory.mktemp("drawn")
    for file in (SHARD, f"crc/{HOOK}/c/1"):
        (store / file).parent.mkdir(parents=True)
        shutil.copyfile(stores[codec] / file, store / file)
    size = (store / SHARD).stat().st_size
    spots = data.draw(st.sets(st.integers(0, size - 1), min_size=1, max_size=3))
    for spot in spots:
        flip(store / SHARD, spot)
    found = check_file(store, manifest, {}, manifest.files[SHARD])
    assert {problem.file for problem in found} == {SHARD}
    in_index = max(spots) >= size - 52
    assert in_index == any(problem.part != "chunks" for problem in found)
    if codec == "bytes":
        expected = {spot // (32 * 64) for spot in spots if spot < size - 52}
        named = [p.chunks for p in found if p.chunks is not None]
        assert {chunk for a, b in named for chunk in range(a, b + 1)} == expected


# Whole files.


def test_the_rows_of_the_last_shard_end_with_the_split(store: Path) -> None:
    manifest = read_manifest(store)
    assert manifest is not None
    n_rows = manifest.layout.splits["train"].n_rows
    last = manifest.layout.splits["train"].n_shards - 1
    (store / f"token/c/{last}").unlink()
    assert told(store) == [
        (
            f"token/c/{last} is missing: array token, train shard {last}, "
            f"rows {96 * last} to {n_rows - 1}"
        )
    ]


def test_held_out_shards_are_named_as_such(store: Path) -> None:
    (store / "heldout/pos/c/0").unlink()
    (line,) = told(store)
    assert line.startswith("heldout/pos/c/0 is missing: array heldout/pos, heldout shard 0, rows 0")


def test_two_swapped_shards_name_each_other(store: Path) -> None:
    other = SHARD.replace("/1/", "/0/")
    (store / SHARD).rename(store / "aside")
    (store / other).rename(store / SHARD)
    (store / "aside").rename(store / other)
    assert told(store) == [
        (
            f"{other} is swapped (it holds what {SHARD} should): "
            f"array acts/{HOOK}, train shard 0, rows 0 to 95"
        ),
        (
            f"{SHARD} is swapped (it holds what {other} should): "
            f"array acts/{HOOK}, train shard 1, rows 96 to 191"
        ),
    ]


def test_an_empty_file_is_truncated(store: Path) -> None:
    (store / "token/c/0").write_bytes(b"")
    assert told(store) == [
        "token/c/0 is truncated (0 bytes of 384): array token, train shard 0, rows 0 to 95"
    ]


def test_a_file_that_is_too_long_is_not_read_to_its_end(store: Path) -> None:
    os.truncate(store / "token/c/0", 2**43)  # a hole of eight terabytes
    assert "is too long (8,796,093,022,208 bytes of 384)" in told(store)[0]


def test_damaged_metadata_names_its_array(store: Path) -> None:
    flip(store / f"acts/{HOOK}/zarr.json", 20)
    assert told(store) == [f"acts/{HOOK}/zarr.json is damaged: array acts/{HOOK}"]


def test_a_folder_where_a_file_should_be(store: Path) -> None:
    (store / SHARD).unlink()
    (store / SHARD).mkdir()
    assert told(store) == [
        (
            f"{SHARD} is not a file (a folder where a file should be): "
            f"array acts/{HOOK}, train shard 1, rows 96 to 191"
        )
    ]


def test_a_file_where_a_folder_should_be_hides_what_was_below(store: Path) -> None:
    shutil.rmtree(store / "token/c")
    (store / "token/c").write_text("in the way")
    first, *others = told(store)
    assert first == "token/c is not a file (a file where a folder should be)"
    assert others[0].startswith("token/c/0 is unreadable (behind token/c): array token, train")


def test_a_file_that_can_not_be_read(store: Path, forbid: Callable[[Path], None]) -> None:
    forbid(store / SHARD)
    assert told(store)[0].startswith(f"{SHARD} is unreadable (Permission denied): array acts/")


def test_a_folder_that_can_not_be_read(store: Path, forbid: Callable[[Path], None]) -> None:
    forbid(store / "token/c")
    first, *others = told(store)
    assert first == "token/c is unreadable (Permission denied)"
    assert others[0].startswith("token/c/0 is unreadable (behind token/c): array token, train")


@pytest.mark.parametrize("file", ["zarr.json", "_saeflow/manifest.json"])
def test_a_store_that_this_user_may_not_read_is_not_called_damaged(
    store: Path, forbid: Callable[[Path], None], file: str
) -> None:
    forbid(store / file)
    with pytest.raises(BadInputError, match=rf"can't be read \({file}: Permission denied\)"):
        verify_store(store)


def test_a_pipe_is_not_waited_for(store: Path) -> None:
    (store / SHARD).unlink()
    os.mkfifo(store / SHARD)
    assert told(store)[0].startswith(f"{SHARD} is not a file (a special file where a file should")


# What does not belong there.


def test_foreign_files_and_folders_are_named_once(store: Path) -> None:
    (store / "notes.txt").write_text("mine")
    (store / "acts" / "backup" / "deep").mkdir(parents=True)
    (store / "acts" / "backup" / "deep" / "file").write_text("mine too")
    (store / "token" / "c" / "99").write_bytes(b"0123")
    assert told(store) == [
        "acts/backup is foreign (folder)",
        "notes.txt is foreign",
        "token/c/99 is foreign",
    ]


def test_links_are_named_and_not_followed(store: Path, tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    shutil.copytree(store / "seq", outside)
    shutil.move(store / SHARD, tmp_path / "moved")
    shutil.rmtree(store / "seq")
    (store / SHARD).symlink_to(tmp_path / "moved")
    (store / "seq").symlink_to(outside)
    (store / "more").symlink_to("/")
    lines = told(store)
    assert "more is foreign (link)" in lines
    assert "seq is not a file (a link where a folder should be)" in lines
    assert any(line.startswith("seq/c/0 is unreadable (behind seq): array seq") for line in lines)
    assert any(line.startswith(f"{SHARD} is not a file (a link where a file") for line in lines)


def test_what_an_interrupted_writer_left_is_told_from_foreign_files(store: Path) -> None:
    (store / "token/c/1.partial").write_bytes(b"half")
    (store / "own.partial").write_bytes(b"not saeflow's")
    assert told(store) == [
        "own.partial is foreign",
        "token/c/1.partial is left over (a writer was interrupted)",
    ]


# The manifest and the root.


def test_a_lost_manifest_is_named(store: Path) -> None:
    (store / MANIFEST).unlink()
    assert told(store) == [f"{MANIFEST} is missing (without it nothing else can be checked)"]


def test_a_lost_root_is_named_and_the_rest_is_still_read(store: Path) -> None:
    (store / "zarr.json").unlink()
    flip(store / SHARD, 0)
    assert [line.partition(":")[0] for line in told(store)] == [
        f"{SHARD} is damaged",
        "zarr.json is missing",
    ]


def test_a_root_of_another_store_is_seen(store: Path, stores: dict[str, Path]) -> None:
    shutil.copyfile(stores["zstd"] / "zarr.json", store / "zarr.json")
    assert told(store) == ["zarr.json is damaged"]


def test_a_manifest_of_another_store_is_seen(store: Path, stores: dict[str, Path]) -> None:
    shutil.copyfile(stores["zstd"] / MANIFEST, store / MANIFEST)
    assert "zarr.json is damaged" in told(store)


def test_a_manifest_nested_too_deeply_is_damaged(store: Path) -> None:
    (store / MANIFEST).write_text('{"a":' * 100_000)
    assert told(store) == [f"{MANIFEST} is damaged (without it nothing else can be checked)"]


def reseal(store: Path, change: Callable[[dict[str, Any]], None]) -> None:
    """Change the manifest, and let it and the root vouch for the change."""
    content = json.loads((store / MANIFEST).read_bytes())
    change(content)
    files, shards = content.pop("files"), content.pop("shards")
    del content["content_sha256"]
    sealed = seal(content, files, shards)
    (store / MANIFEST).write_bytes(json_bytes(sealed))
    digest = hashlib.sha256((store / MANIFEST).read_bytes()).hexdigest()
    write_root(store, complete_attributes(sealed, digest))


@pytest.mark.parametrize(
    "path",
    [
        "../x",
        "/etc/passwd",
        "a/../../x",
        "a//b",
        "./a",
        "a\\b",
        "a\0b",
        "",
        "_saeflow/x",
        "zarr.json",
    ],
)
@pytest.mark.parametrize("where", ["files", "shards"])
def test_paths_that_lead_out_of_the_store_are_refused(store: Path, path: str, where: str) -> None:
    def change(content: dict[str, Any]) -> None:
        files = content["files"] if where == "files" else content["shards"][0]["files"]
        files[path] = {"bytes": 1, "crc32c": 0}

    reseal(store, change)
    with pytest.raises(BadInputError, match="which is no file of a store: don't use the store"):
        verify_store(store)


@pytest.mark.parametrize(
    "change",
    [
        lambda content: content["shards"].pop(),
        lambda content: content["shards"].append(content["shards"][0]),
        lambda content: content["shards"][0].update(rows=1),
        lambda content: content["shards"][0].update(shard="0"),
        lambda content: content["shards"][0].pop("files"),
        lambda content: content["files"].update(content["shards"][0]["files"]),
        lambda content: content["files"].update({"a": 5}),
        lambda content: content["layout"].update(rows_per_shard="many"),
    ],
)
def test_a_manifest_whose_parts_do_not_fit_is_refused(
    store: Path, change: Callable[[dict[str, Any]], None]
) -> None:
    reseal(store, change)
    with pytest.raises(BadInputError, match="a manifest that saeflow did not write"):
        verify_store(store)


def test_a_newer_format_is_refused(store: Path) -> None:
    reseal(store, lambda content: content.update(format=2))
    with pytest.raises(BadInputError, match=r"is of format 2, newer .*: upgrade saeflow"):
        verify_store(store)


@pytest.mark.parametrize("state", ["tokenizing", "writing"])
def test_an_incomplete_store_is_refused(store: Path, state: str) -> None:
    root = json.loads((store / "zarr.json").read_bytes())
    write_root(store, {**root["attributes"]["saeflow"], "state": state})
    with pytest.raises(BadInputError, match="is incomplete"):
        verify_store(store)


def test_no_store_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BadInputError, match="does not exist"):
        verify_store(tmp_path / "none")
    with pytest.raises(BadInputError, match="is not a saeflow store"):
        verify_store(tmp_path)
