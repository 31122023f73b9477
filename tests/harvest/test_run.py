"""A whole harvest: run twice, run with other options, run by two at once, planned."""

import dataclasses
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import google_crc32c
import pytest
import zarr

from saeflow.errors import BadInputError
from saeflow.harvest import commits
from saeflow.harvest.config import HarvestConfig
from saeflow.harvest.run import harvest_activations
from saeflow.harvest.store import open_store

Options = Callable[..., HarvestConfig]
Contents = Callable[[Path], dict[str, str]]

HOLDER = """
import sys, pathlib
from saeflow.harvest.locks import main_lock
from saeflow.harvest.workers import Worker
with main_lock(pathlib.Path(sys.argv[1]), Worker()):
    print("locked", flush=True)
    sys.stdin.read()
"""


def test_a_second_run_changes_no_file(tiny_config: Options, contents: Contents) -> None:
    first = harvest_activations(tiny_config())
    before = contents(first.store.folder)
    second = harvest_activations(tiny_config())
    assert (first.already_complete, second.already_complete) == (False, True)
    assert contents(second.store.folder) == before


def test_two_fresh_runs_are_byte_identical(
    tiny_config: Options, contents: Contents, tmp_path: Path
) -> None:
    folders = [
        harvest_activations(tiny_config(out=tmp_path / name)).store.folder for name in ("a", "b")
    ]
    one, other = map(contents, folders)
    assert len(one) > 20
    assert one == other


@pytest.mark.parametrize(
    ("option", "value", "key"),
    [
        ("seed", 1, "seed: 0 there, 1 now"),
        ("context_size", 9, "context_size: 17 there, 9 now"),
        ("tokens", 999, "tokens: 1600 there, 999 now"),
        ("hook", ("blocks.1.hook_resid_post",), "hook: "),
        ("dtype", "float32", "dtype: 'bfloat16' there, 'float32' now"),
        ("model_dtype", "bfloat16", "model.dtype: "),
        ("model", "builtin", "model.weights_sha256: "),
        ("dataset", "builtin", "dataset: "),
        ("held_out", 0.1, "held_out: 0.2 there, 0.1 now"),
    ],
)
def test_a_changed_option_is_refused_by_its_name(
    tiny_config: Options, tiny_store: Path, option: str, value: Any, key: str
) -> None:
    stored: dict[str, Any] = {
        "tokens": None,
        "out": tiny_store,
        "hook": open_store(tiny_store).provenance["hook"],
    }
    config = tiny_config(**{**stored, "hook": tuple(stored["hook"])})
    assert harvest_activations(config).already_complete
    changed = dataclasses.replace(config, **{option: value})
    with pytest.raises(BadInputError) as refusal:
        harvest_activations(changed)
    assert key.replace("1600", "None") in str(refusal.value)
    assert "--overwrite" in str(refusal.value)


def test_changed_text_is_not_taken_for_the_old_one(
    tiny_config: Options, tiny_text: Path, tmp_path: Path
) -> None:
    text = tmp_path / "text.jsonl"
    text.write_bytes(tiny_text.read_bytes())
    harvest_activations(tiny_config(dataset=str(text)))
    text.write_text(json.dumps({"text": "something else"}) + "\n")
    with pytest.raises(BadInputError, match="dataset"):
        harvest_activations(tiny_config(dataset=str(text)))


def test_where_the_store_lies_and_what_runs_it_is_no_difference(
    tiny_config: Options, tmp_path: Path
) -> None:
    harvest_activations(tiny_config())
    moved = (tmp_path / "store").rename(tmp_path / "moved")
    assert harvest_activations(tiny_config(out=moved, device="auto")).already_complete


def test_overwrite_replaces_the_store(tiny_config: Options) -> None:
    harvest_activations(tiny_config())
    result = harvest_activations(tiny_config(seed=1), overwrite=True)
    assert not result.already_complete
    assert open_store(result.store.path).layout.seed == 1


def test_overwrite_of_what_cannot_be_harvested_leaves_the_store(
    tiny_config: Options, contents: Contents
) -> None:
    before = contents(harvest_activations(tiny_config()).store.folder)
    with pytest.raises(BadInputError, match="does not exist"):
        harvest_activations(tiny_config(hook=("blocks.9.hook_resid_post",)), overwrite=True)
    assert contents(Path(tiny_config().out)) == before


@pytest.mark.parametrize("content", ["a file", "something else"])
def test_overwrite_never_throws_away_what_is_no_store(tiny_config: Options, content: str) -> None:
    out = Path(tiny_config().out)
    if content == "a file":
        out.write_text("precious")
    else:
        out.mkdir()
        (out / "precious.txt").write_text("precious")
    with pytest.raises(BadInputError, match=r"is a file|holds something else \(precious"):
        harvest_activations(tiny_config(), overwrite=True)
    assert out.exists()


@pytest.mark.parametrize("existing", ["none", "complete"])
def test_a_second_writer_is_refused(tiny_config: Options, existing: str) -> None:
    out = Path(tiny_config().out)
    if existing == "complete":
        harvest_activations(tiny_config())
    with subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(out)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "locked\n"
        with pytest.raises(BadInputError, match=f"being written by process {holder.pid} on"):
            harvest_activations(tiny_config(), overwrite=existing == "complete")
        assert out.exists()
        holder.kill()
    assert harvest_activations(tiny_config()).store.train.n_rows


def test_an_interrupted_run_is_continued(
    tiny_config: Options, contents: Contents, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    expected = contents(harvest_activations(tiny_config(out=tmp_path / "whole")).store.folder)
    given = commits.append

    def interrupt(store: Path, record: commits.Record, rank: int) -> None:
        if record["shard"] == 1:
            raise KeyboardInterrupt
        given(store, record, rank)

    monkeypatch.setattr(commits, "append", interrupt)
    with pytest.raises(KeyboardInterrupt):
        harvest_activations(tiny_config())
    monkeypatch.undo()
    with pytest.raises(BadInputError, match="incomplete"):
        open_store(tiny_config().out)
    assert contents(harvest_activations(tiny_config()).store.folder) == expected


def test_a_run_without_held_out_text(tiny_config: Options) -> None:
    store = harvest_activations(tiny_config(held_out=0.0)).store
    assert store.held_out.n_rows == 0
    assert store.train.n_rows == 1600
    assert store.array("heldout/token").shape == (0,)


@pytest.mark.filterwarnings("ignore:Object at _saeflow is not recognized")  # zarr's, of our log
def test_the_whole_store_opens_in_plain_zarr(tiny_store: Path) -> None:
    group = zarr.open_group(tiny_store, mode="r")
    assert group.attrs["saeflow"]["state"] == "complete"  # type: ignore[call-overload,index]
    arrays = {
        name for name, member in group.members(max_depth=None) if isinstance(member, zarr.Array)
    }
    for hook in ("blocks.0.hook_resid_post", "blocks.1.attn.hook_z"):
        assert {
            f"acts/{hook}",
            f"heldout/acts/{hook}",
            f"crc/{hook}",
            f"stats/{hook}/mean",
        } <= arrays
    assert {"token", "doc", "seq", "pos", "sequences/token", "heldout/sequences/token"} <= arrays


def test_the_manifest_lists_every_file_but_itself_and_the_root(tiny_store: Path) -> None:
    manifest = json.loads((tiny_store / commits.MANIFEST).read_text())
    listed = {**manifest["files"]}
    for shard in manifest["shards"]:
        assert not set(listed) & set(shard["files"])
        listed.update(shard["files"])
    own = {"zarr.json", "_saeflow/manifest.json", "_saeflow/lock"}
    there = {str(p.relative_to(tiny_store)) for p in tiny_store.rglob("*") if p.is_file()}
    assert set(listed) == there - own
    for name, file in listed.items():
        content = (tiny_store / name).read_bytes()
        assert file == {"bytes": len(content), "crc32c": google_crc32c.value(content)}


def test_the_provenance_says_what_made_the_store(tiny_store: Path, tiny_model: Path) -> None:
    provenance = open_store(tiny_store).provenance
    assert provenance["model"]["name"] == str(tiny_model)
    assert provenance["model"]["device"] == "cpu"
    assert {"saeflow", "torch", "transformers", "transformer-lens"} <= set(provenance["versions"])
    assert provenance["context_size"] == 17
