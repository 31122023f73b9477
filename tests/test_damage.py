"""The promise about damage: none of it is silent.

Run with `-s` to see the figures.
"""

import hashlib
import shutil
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from saeflow.harvest.config import HarvestConfig
from saeflow.harvest.manifest import read_manifest
from saeflow.harvest.run import harvest_activations
from saeflow.harvest.verify import check_file, verify_store, walk

HOOK = "blocks.0.hook_resid_post"
SHARD = f"acts/{HOOK}/c/1/0"
ROOT, MANIFEST = "zarr.json", "_saeflow/manifest.json"
Options = Callable[..., HarvestConfig]
ROWS, CHUNK, WIDTH = 60, 4, 64
"""Rows of a shard and of a chunk, and bytes of a row."""

KINDS = (
    SHARD,
    f"heldout/acts/{HOOK}/c/0/0",
    f"crc/{HOOK}/c/1",
    f"norm/{HOOK}/c/1",
    f"stats/{HOOK}/shards/c/1/0/0",
    "token/c/1",
    "doc/c/1",
    "seq/c/1",
    "pos/c/1",
    "sequences/token/c/0/0",
    "sequences/document/c/0",
    "sequences/start/c/0",
    "sample/c/0",
    f"stats/{HOOK}/mean/c/0",
    f"stats/{HOOK}/zarr.json",
    f"acts/{HOOK}/zarr.json",
    "heldout/zarr.json",
    MANIFEST,
    ROOT,
)
"""One file of every kind that a store has."""


@pytest.fixture(scope="module")
def original(tiny_options: Options, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store with many small shards, 15 chunks in each. Don't write to it."""
    out = tmp_path_factory.mktemp("original") / "store"
    harvest_activations(tiny_options(out=out, tokens=400, shard_rows=ROWS, held_out=0.4))
    return out


@pytest.fixture
def store(original: Path, tmp_path: Path) -> Path:
    """A copy that a test may damage."""
    return Path(shutil.copytree(original, tmp_path / "store"))


def tree(folder: Path) -> dict[str, str]:
    """Every file of a folder as the sha256 of its bytes."""
    files = sorted(p for p in folder.rglob("*") if p.is_file())
    return {str(p.relative_to(folder)): hashlib.sha256(p.read_bytes()).hexdigest() for p in files}


def flip(file: Path, offset: int) -> None:
    with file.open("r+b") as opened:
        opened.seek(offset)
        byte = opened.read(1)[0]
        opened.seek(offset)
        opened.write(bytes([byte ^ 0x01]))


@pytest.fixture(scope="module")
def seen() -> Iterator[Callable[[str, bool], bool]]:
    """Count what was tried, and pass on whether it was noticed; the figures come at the end."""
    tried: dict[str, list[bool]] = {}

    def note(what: str, noticed: bool) -> bool:
        tried.setdefault(what, []).append(noticed)
        return noticed

    yield note
    for what, noticed in tried.items():
        print(f"\n{what}: {noticed.count(False)} silent of {len(noticed):,}", end="")
    total = [noticed for all_of_it in tried.values() for noticed in all_of_it]
    print(f"\ndamage: {total.count(False)} silent of {len(total):,}")


# Nothing is silent.


def test_every_byte_of_a_shard_flipped_in_turn_is_named_with_its_rows(
    store: Path, seen: Callable[[str, bool], bool]
) -> None:
    manifest = read_manifest(store)
    assert manifest is not None
    content, body = (store / SHARD).read_bytes(), ROWS * WIDTH
    for offset in range(len(content)):
        flip(store / SHARD, offset)
        found = check_file(store, manifest, {}, manifest.files[SHARD])
        assert seen("bytes of one shard flipped", bool(found))
        (problem,) = found
        assert (problem.array, problem.split, problem.shard) == (f"acts/{HOOK}", "train", 1)
        assert (problem.file, problem.kind) == (SHARD, "damaged")
        chunk = offset // (CHUNK * WIDTH)
        first = ROWS + CHUNK * chunk
        expected = (first, first + CHUNK - 1) if offset < body else (ROWS, 2 * ROWS - 1)
        assert problem.rows == expected
        assert problem.chunks == ((chunk, chunk) if offset < body else None)
        flip(store / SHARD, offset)
    assert check_file(store, manifest, {}, manifest.files[SHARD]) == []


def test_bytes_all_over_the_store_flipped_are_named_by_the_command(
    store: Path, run_cli: Callable[..., Any], seen: Callable[[str, bool], bool]
) -> None:
    files = [name for name in tree(store) if name != "_saeflow/lock"]
    for file in files:
        size = (store / file).stat().st_size
        for offset in (size // 3, size - 1):
            flip(store / file, offset)
            outcome = run_cli("verify", store)
            assert seen("two bytes of each file flipped, the command run", outcome.code == 1)
            assert outcome.out.startswith(f"{file} is damaged")
            flip(store / file, offset)


@pytest.mark.parametrize("file", [ROOT, MANIFEST])
def test_bytes_of_the_root_and_the_manifest_flipped(
    store: Path, file: str, seen: Callable[[str, bool], bool]
) -> None:
    size = (store / file).stat().st_size
    for offset in range(0, size, -(-size // 50)):
        flip(store / file, offset)
        (problem,) = verify_store(store).problems
        assert seen(f"bytes of {file} flipped", problem.file == file)
        flip(store / file, offset)


@pytest.mark.parametrize("file", KINDS)
def test_a_file_cut_short_in_16_ways(
    store: Path, file: str, seen: Callable[[str, bool], bool]
) -> None:
    manifest, content = read_manifest(store), (store / file).read_bytes()
    assert manifest is not None
    for part in range(16):
        (store / file).write_bytes(content[: len(content) * part // 16])
        if file in manifest.files:
            found = check_file(store, manifest, {}, manifest.files[file])
        else:
            found = list(verify_store(store).problems)
        assert seen("truncations", file in {problem.file for problem in found})


@pytest.mark.parametrize("file", KINDS)
def test_a_file_replaced_by_what_it_is_not(
    store: Path, file: str, tmp_path: Path, seen: Callable[[str, bool], bool]
) -> None:
    content = (store / file).read_bytes()

    def noticed(what: str) -> bool:
        found = verify_store(store).problems
        return seen(what, file in {problem.file for problem in found})

    (store / file).write_bytes(content + b"\0")
    assert noticed("files made longer")
    (store / file).write_bytes(content[::-1])
    assert noticed("files filled with something else")
    (store / file).unlink()
    assert noticed("files deleted")
    (store / file).mkdir()
    assert noticed("folders in place of files")
    (store / file).rmdir()
    (tmp_path / "outside").write_bytes(content)
    (store / file).symlink_to(tmp_path / "outside")
    assert noticed("links in place of files")


def test_any_two_files_swapped(store: Path, seen: Callable[[str, bool], bool]) -> None:
    contents = {file: (store / file).read_bytes() for file in KINDS}
    pairs = list(pairwise(KINDS))
    shards = [(SHARD, SHARD.replace("/1/", "/2/")), ("pos/c/0", "pos/c/1")]
    contents |= {file: (store / file).read_bytes() for pair in shards for file in pair}
    for one, other in [*pairs, *shards]:
        (store / one).write_bytes(contents[other])
        (store / other).write_bytes(contents[one])
        found = {problem.file for problem in verify_store(store).problems}
        assert seen("swaps", {one, other} <= found or MANIFEST in found)
        (store / one).write_bytes(contents[one])
        (store / other).write_bytes(contents[other])
    assert verify_store(store).whole


def test_foreign_things_in_every_folder(store: Path, seen: Callable[[str, bool], bool]) -> None:
    manifest = read_manifest(store)
    assert manifest is not None
    folders = [store, *sorted(p for p in store.rglob("*") if p.is_dir())]
    for place in [folder / "foreign" for folder in folders]:
        for make, remove in (
            (Path.touch, Path.unlink),
            (Path.mkdir, Path.rmdir),
            (lambda path: path.symlink_to(store), Path.unlink),
        ):
            make(place)
            found = [(p.file, p.kind) for p in walk(store, manifest).problems]
            assert seen("foreign files, folders and links", found != [])
            assert found == [(place.relative_to(store).as_posix(), "foreign")]
            remove(place)
