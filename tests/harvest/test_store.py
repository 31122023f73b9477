"""The store, read: its rows, and every refusal."""

import hashlib
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from saeflow.errors import BadInputError, SaeflowError
from saeflow.harvest import commits
from saeflow.harvest.store import Store, open_store, read_attributes

HOOK = "blocks.0.hook_resid_post"


@pytest.fixture
def copy(tiny_store: Path, tmp_path: Path) -> Path:
    """A copy of the store that a test may damage."""
    return Path(shutil.copytree(tiny_store, tmp_path / "copy"))


def edit(store: Path, change: Callable[[dict[str, object]], object]) -> None:
    """Change the store's own attributes in place."""
    root = store / "zarr.json"
    metadata = json.loads(root.read_text())
    change(metadata["attributes"]["saeflow"])
    root.write_text(json.dumps(metadata))


@st.composite
def runs_of(draw: st.DrawFn, n_rows: int, shard: int = 512) -> list[range]:
    """Some runs of rows, in any order, none across the border of a shard."""
    starts = draw(st.lists(st.integers(0, n_rows - 1), min_size=1, max_size=6))
    ends = [min(n_rows, (s // shard + 1) * shard, s + draw(st.integers(1, 600))) for s in starts]
    return [range(start, end) for start, end in zip(starts, ends, strict=True)]


@given(data=st.data())
def test_rows_are_what_zarr_reads(store: Store, data: st.DataObject) -> None:
    hook_point = data.draw(st.sampled_from(store.layout.hook_points))
    split = data.draw(st.sampled_from([store.train, store.held_out]))
    runs = data.draw(runs_of(split.n_rows))
    through_zarr = np.asarray(store.array(f"{split.folder}acts/{hook_point.name}")[:])
    expected = np.concatenate([through_zarr[run.start : run.stop] for run in runs])
    rows = store.rows(hook_point, split, runs)
    assert rows.dtype is torch.bfloat16
    assert np.array_equal(rows.view(torch.uint16).numpy(), expected)


def test_no_runs_are_no_rows(store: Store) -> None:
    assert store.rows(store.hook_point(HOOK), store.train, []).shape == (0, 32)


def _flip(file: Path, at: int) -> None:
    content = bytearray(file.read_bytes())
    content[at] ^= 1
    file.write_bytes(content)


@pytest.mark.parametrize(
    "damage",
    [
        lambda file: _flip(file, -1),
        lambda file: _flip(file, -20),
        lambda file: _flip(file, -13),
        lambda file: os.truncate(file, file.stat().st_size - 100),
        lambda file: os.truncate(file, 0),
        lambda file: file.write_bytes(b"\0" + file.read_bytes()),
        Path.unlink,
    ],
    ids=["checksum", "offset", "length", "cut", "empty", "shifted", "missing"],
)
def test_a_damaged_shard_is_refused_by_name(copy: Path, damage: Callable[[Path], object]) -> None:
    damage(copy / f"acts/{HOOK}/c/1/0")
    store = open_store(copy)
    hook_point = store.hook_point(HOOK)
    assert len(store.rows(hook_point, store.train, [range(512)])) == 512
    with pytest.raises(SaeflowError, match=rf"acts/{HOOK}/c/1/0 (is damaged|can't be opened)"):
        store.rows(hook_point, store.train, [range(512, 520)])


def test_a_shard_cut_after_it_was_opened_is_refused(copy: Path) -> None:
    store = open_store(copy)
    hook_point = store.hook_point(HOOK)
    store.rows(hook_point, store.train, [range(8)])
    os.truncate(copy / f"acts/{HOOK}/c/0/0", 64)
    with pytest.raises(SaeflowError, match=r"c/0/0 ends before row 7"):
        store.rows(hook_point, store.train, [range(8)])
    store.close()


def test_a_closed_store_opens_its_files_again(copy: Path) -> None:
    store = open_store(copy)
    hook_point = store.hook_point(HOOK)
    before = store.rows(hook_point, store.train, [range(5)])
    store.close()
    assert torch.equal(store.rows(hook_point, store.train, [range(5)]), before)
    store.close()


def test_a_hook_point_is_found_by_name_or_alone(store: Store) -> None:
    assert store.hook_point(HOOK).shape == (32,)
    with pytest.raises(
        BadInputError, match=r"several hook points: choose with --hook from blocks\.0"
    ):
        store.hook_point(None)
    with pytest.raises(BadInputError, match=r"does not hold .* blocks\.9: it holds blocks\.0"):
        store.hook_point("blocks.9")


def test_a_missing_store_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BadInputError, match="does not exist"):
        open_store(tmp_path / "nothing")


@pytest.mark.parametrize("content", [None, "{", "{}", "[]", '{"attributes": {"other": 1}}'])
def test_a_folder_that_is_no_store_is_refused(tmp_path: Path, content: str | None) -> None:
    if content is not None:
        (tmp_path / "zarr.json").write_text(content)
    with pytest.raises(BadInputError, match="is not a saeflow store: give the --out"):
        open_store(tmp_path)


def test_a_newer_format_is_refused(copy: Path) -> None:
    edit(copy, lambda attributes: attributes.update(format=2))
    with pytest.raises(BadInputError, match=r"of format 2, newer than .* \(1\): upgrade saeflow"):
        open_store(copy)


def test_an_incomplete_store_is_refused_with_its_progress(copy: Path) -> None:
    edit(copy, lambda attributes: attributes.update(state="writing"))
    manifest = copy / commits.MANIFEST
    records = json.loads(manifest.read_text())["shards"]
    manifest.unlink()
    for record in records[:2]:
        commits.append(copy, record)
    with pytest.raises(BadInputError, match=rf"incomplete \(2 of {len(records)} shards\): run the"):
        open_store(copy)


def test_a_store_whose_text_is_not_tokenised_is_refused(copy: Path) -> None:
    edit(copy, lambda a: (a.pop("layout"), a.update(state="tokenizing")))
    with pytest.raises(BadInputError, match="its text is not tokenised yet"):
        open_store(copy)


@pytest.mark.parametrize("key", ["layout", "state", "provenance", "manifest_sha256"])
def test_attributes_that_lack_something_are_refused(copy: Path, key: str) -> None:
    edit(copy, lambda attributes: attributes.pop(key))
    with pytest.raises(BadInputError, match=r"unreadable attributes|is incomplete"):
        open_store(copy)


def test_a_path_among_the_hook_points_is_refused(copy: Path) -> None:
    edit(copy, lambda a: a["layout"]["hook_points"][0].update(name="../../../etc"))  # type: ignore[index]
    with pytest.raises(BadInputError, match="is not a plain name"):
        open_store(copy)


def test_reading_attributes_of_nothing_is_nothing(tmp_path: Path) -> None:
    assert read_attributes(tmp_path) is None


def test_the_identity_is_the_hash_of_the_manifest(store: Store) -> None:
    manifest = (store.folder / commits.MANIFEST).read_bytes()
    assert store.identity == hashlib.sha256(manifest).hexdigest()
