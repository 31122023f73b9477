"""Repair: what is damaged comes back from the source, byte for byte, or the reason is named."""

import errno
import json
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file, save_file

from saeflow.errors import BadInputError, SaeflowError
from saeflow.files import json_bytes, write_durably
from saeflow.harvest.again import Source
from saeflow.harvest.build import build_shard
from saeflow.harvest.config import HarvestConfig
from saeflow.harvest.finish import finish_store
from saeflow.harvest.layout import Layout
from saeflow.harvest.locks import main_lock
from saeflow.harvest.manifest import read_manifest
from saeflow.harvest.repair import repair_store
from saeflow.harvest.run import harvest_activations
from saeflow.harvest.verify import verify_store
from saeflow.harvest.workers import Worker

HOOK = "blocks.0.hook_resid_post"
SHARD = f"acts/{HOOK}/c/1/0"
ROOT, MANIFEST = "zarr.json", "_saeflow/manifest.json"
Options = Callable[..., HarvestConfig]
Contents = Callable[[Path], dict[str, str]]

OF_A_SHARD = [
    SHARD,
    f"heldout/acts/{HOOK}/c/0/0",
    f"crc/{HOOK}/c/1",
    f"norm/{HOOK}/c/1",
    f"stats/{HOOK}/shards/c/1/0/0",
    "token/c/1",
    "heldout/pos/c/0",
]
OF_THE_TEXT = ["sequences/token/c/0/0", "sequences/start/zarr.json", "heldout/sequences/start/c/0"]
OF_THE_STORE = [
    "heldout/zarr.json",
    f"acts/{HOOK}/zarr.json",
    f"stats/{HOOK}/zarr.json",
    f"stats/{HOOK}/std/c/0",
    f"stats/{HOOK}/shards/zarr.json",
    "sample/c/0",
    MANIFEST,
    ROOT,
]
"""What comes back without the source."""


@pytest.fixture(scope="module")
def home(tiny_model: Path, tiny_text: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a model, a text, and the stores that were harvested from them."""
    home = tmp_path_factory.mktemp("home")
    shutil.copytree(tiny_model, home / "model")
    shutil.copyfile(tiny_text, home / "text.jsonl")
    return home


@pytest.fixture(scope="module")
def original(home: Path, tiny_options: Options) -> Path:
    """A store of small shards. Don't write to it."""
    harvest_activations(
        tiny_options(
            model=str(home / "model"),
            dataset=str(home / "text.jsonl"),
            out=home / "store",
            tokens=600,
            shard_rows=96,
            held_out=0.4,
        )
    )
    return home / "store"


@pytest.fixture
def store(original: Path, tmp_path: Path) -> Path:
    """A copy that a test may damage."""
    return Path(shutil.copytree(original, tmp_path / "store"))


@pytest.fixture
def no_source(home: Path) -> Iterator[None]:
    """The model and the text are gone while a test runs."""
    home.rename(home.with_name("hidden"))
    yield
    home.with_name("hidden").rename(home)


def repair_all(store: Path, **source: Any) -> tuple[str, ...]:
    """Repair what is wrong with a store; which files that took."""
    files = repair_store(verify_store(store), Source(**source))
    assert verify_store(store).whole
    assert [entry.name for entry in store.parent.iterdir() if ".repair-" in entry.name] == []
    return files


def damage(file: Path) -> None:
    """Change one byte in the middle."""
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)


# It comes back.


@pytest.mark.parametrize("file", [*OF_A_SHARD, *OF_THE_TEXT])
def test_a_damaged_file_comes_back_from_the_source(
    original: Path, store: Path, contents: Contents, file: str
) -> None:
    damage(store / file)
    assert repair_all(store) == (file,)
    assert contents(store) == contents(original)


@pytest.mark.parametrize("file", OF_THE_STORE)
def test_what_the_store_itself_decides_comes_back_without_the_source(
    store: Path, contents: Contents, file: str, tmp_path: Path, no_source: None
) -> None:
    before = contents(store)
    (store / file).unlink() if file != MANIFEST else blank(store / file)
    assert repair_all(store) == (file,)
    assert contents(store) == before


def blank(file: Path) -> None:
    """Change a JSON file, but not what it says."""
    file.write_bytes(file.read_bytes().replace(b": ", b":\t", 1))


@pytest.mark.parametrize("byte", range(0, 1500, 200))
def test_any_byte_of_the_root_comes_back(
    original: Path, store: Path, contents: Contents, byte: int
) -> None:
    content = bytearray((store / ROOT).read_bytes())
    content[byte] ^= 1
    (store / ROOT).write_bytes(content)
    assert repair_all(store) == (ROOT,)
    assert contents(store) == contents(original)


def test_everything_at_once_comes_back(original: Path, store: Path, contents: Contents) -> None:
    damage(store / SHARD)
    os.truncate(store / f"heldout/acts/{HOOK}/c/0/0", 100)
    os.truncate(store / "token/c/3", 10**6)
    shutil.rmtree(store / "heldout" / "sequences")
    shutil.rmtree(store / "stats")
    (store / "seq/c/0").unlink()
    (store / "seq/c/0").mkdir()
    one, other = store / "pos/c/0", store / "pos/c/1"
    content = one.read_bytes()
    other.replace(one)
    other.write_bytes(content)
    (store / "doc/c/0.partial").write_bytes(b"left by a writer that was killed")
    (store / ROOT).unlink()
    blank(store / MANIFEST)
    repair_all(store)
    assert contents(store) == contents(original)


@pytest.mark.parametrize(
    "options",
    [{"dtype": "int8"}, {"codec": "zstd"}, {"pack": False}, {"order": "sequence"}],
    ids=str,
)
def test_stores_of_every_kind_come_back(
    tiny_config: Callable[..., HarvestConfig], contents: Contents, options: dict[str, Any]
) -> None:
    store = harvest_activations(tiny_config(**options)).store.path
    assert isinstance(store, Path)
    before = contents(store)
    shutil.rmtree(store / "acts" / HOOK / "c")
    shutil.rmtree(store / "heldout")
    shutil.rmtree(store / "sequences")
    shutil.rmtree(store / "quant", ignore_errors=True)
    repair_all(store)
    assert contents(store) == before


def test_only_damaged_files_of_a_shard_are_written(store: Path) -> None:
    untouched = (store / f"crc/{HOOK}/c/1").stat()
    damage(store / SHARD)
    repair_all(store)
    assert (store / f"crc/{HOOK}/c/1").stat().st_mtime_ns == untouched.st_mtime_ns
    assert (store / f"crc/{HOOK}/c/1").stat().st_ino == untouched.st_ino


def test_a_shard_needs_no_dataset(store: Path, home: Path) -> None:
    damage(store / SHARD)
    (home / "text.jsonl").rename(home / "aside")
    try:
        assert repair_all(store) == (SHARD,)
    finally:
        (home / "aside").rename(home / "text.jsonl")


def test_the_source_may_have_moved(
    original: Path, store: Path, home: Path, tmp_path: Path, contents: Contents
) -> None:
    shutil.copytree(home / "model", tmp_path / "model there")
    shutil.copyfile(home / "text.jsonl", tmp_path / "text.jsonl")
    damage(store / SHARD)
    damage(store / "sequences/token/c/0/0")
    moved = home.with_name("elsewhere")
    home.rename(moved)
    try:
        with pytest.raises(BadInputError, match=r"model folder .* does not exist"):
            repair_all(store)
        repair_all(store, model=str(tmp_path / "model there"), dataset=str(tmp_path / "text.jsonl"))
    finally:
        moved.rename(home)
    assert contents(store) == contents(original)


def test_foreign_files_are_left(store: Path) -> None:
    damage(store / SHARD)
    (store / "notes.txt").write_text("mine")
    files = repair_store(verify_store(store), Source())
    assert files == (SHARD,)
    (left,) = verify_store(store).problems
    assert (left.file, left.kind) == ("notes.txt", "foreign")
    assert (store / "notes.txt").read_text() == "mine"


@pytest.mark.parametrize("after", [0, 1, 2])
def test_an_interrupted_repair_can_be_run_again(
    original: Path, store: Path, contents: Contents, monkeypatch: pytest.MonkeyPatch, after: int
) -> None:
    def write_until_full(place: Path, parts: Any) -> None:
        if len(written) == after:
            place.with_name(f"{place.name}.partial").write_bytes(b"half of")
            raise OSError(errno.ENOSPC, "No space left on device", str(place))
        write_durably(place, parts)
        written.append(place)

    written: list[Path] = []
    for file in (SHARD, "token/c/1", "sample/c/0"):
        damage(store / file)
    with monkeypatch.context() as patched:
        patched.setattr("saeflow.harvest.repair.write_durably", write_until_full)
        with pytest.raises(OSError, match="No space left"):
            repair_all(store)
    assert sum(problem.kind == "damaged" for problem in verify_store(store).problems) == 3 - after
    repair_all(store)
    assert contents(store) == contents(original)


# It does not, and says why.


def refusal(store: Path, **source: Any) -> str:
    """Why a repair is refused; the store stays as it is."""
    before = {p: p.read_bytes() for p in store.rglob("*") if p.is_file()}
    with pytest.raises(SaeflowError) as refused:
        repair_store(verify_store(store), Source(**source))
    assert {p: p.read_bytes() for p in store.rglob("*") if p.is_file()} == before
    assert [entry.name for entry in store.parent.iterdir() if ".repair-" in entry.name] == []
    return str(refused.value)


def test_another_model_is_refused_with_both_sides(store: Path, home: Path, tmp_path: Path) -> None:
    shutil.copytree(home / "model", tmp_path / "model")
    weights = load_file(tmp_path / "model" / "model.safetensors")
    save_file({k: v + 1 for k, v in weights.items()}, tmp_path / "model" / "model.safetensors")
    damage(store / SHARD)
    provenance = json.loads((store / ROOT).read_bytes())["attributes"]["saeflow"]["provenance"]
    told = refusal(store, model=str(tmp_path / "model"))
    there = provenance["model"]["weights_sha256"]
    assert f"was made from another source (model.weights_sha256: '{there}' there, " in told
    assert told.endswith("name the one it was made from with --model and --dataset")


def test_another_dataset_is_refused_where_the_text_is_damaged(store: Path, tmp_path: Path) -> None:
    (tmp_path / "other.jsonl").write_text('{"text": "something else"}\n')
    damage(store / "sequences/token/c/0/0")
    told = refusal(store, dataset=str(tmp_path / "other.jsonl"))
    assert "was made from another source (dataset_sha256: " in told


def test_a_machine_that_computes_otherwise_is_refused(
    store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def build_otherwise(*args: Any, **options: Any) -> Any:
        record = build_shard(*args, **options)
        record["files"][SHARD]["crc32c"] ^= 1
        return record

    monkeypatch.setattr("saeflow.harvest.repair.build_shard", build_otherwise)
    damage(store / SHARD)
    told = refusal(store)
    assert told.startswith(f"train shard 1 comes out differently here (files.{SHARD}.crc32c: ")
    assert told.endswith(
        "repair the store on the machine and with the versions that harvested it; "
        "its files are left as they are"
    )


def test_other_versions_are_named_where_a_shard_comes_out_differently(
    store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("saeflow.harvest.provenance.version", lambda name: "0.0")
    monkeypatch.setattr("saeflow.harvest.repair.differences", lambda there, now: ["something"])
    damage(store / SHARD)
    assert "(something; saeflow " in refusal(store)


def test_a_lost_manifest_is_refused(store: Path) -> None:
    damage(store / MANIFEST)
    while read_manifest(store) is not None:
        damage(store / MANIFEST)
    assert "put _saeflow/manifest.json back from a copy" in refusal(store)
    shutil.rmtree(store / "_saeflow")
    assert "put _saeflow/manifest.json back from a copy" in refusal(store)


def test_a_manifest_of_another_store_is_refused(
    store: Path, tiny_config: Callable[..., HarvestConfig], tmp_path: Path
) -> None:
    other = harvest_activations(tiny_config(out=tmp_path / "other")).store.path
    shutil.copyfile(str(other / MANIFEST), store / MANIFEST)
    assert "the root and the manifest of store" in refusal(store)


@pytest.mark.parametrize("put", ["folder", "link", "parent"])
def test_what_stands_in_the_way_is_not_removed(store: Path, tmp_path: Path, put: str) -> None:
    place = store / "token/c/1"
    place.unlink()
    if put == "folder":
        place.mkdir()
        (place / "mine").touch()
    elif put == "link":
        place.symlink_to(tmp_path / "nothing")
    else:
        shutil.rmtree(place.parent)
        place.parent.touch()
    assert "is in the way (a " in refusal(store)


def test_a_store_that_is_being_written_is_refused(store: Path) -> None:
    damage(store / SHARD)
    with main_lock(store, Worker()), pytest.raises(BadInputError, match="is being written by"):
        repair_all(store)
    repair_all(store)


def test_code_of_the_model_is_not_run_unasked(store: Path, home: Path) -> None:
    change_provenance(store, lambda model: model.update(trust_remote_code=True))
    damage(store / SHARD)
    assert "brings code of its own: repair with --trust-remote-code" in refusal(store)
    assert repair_all(store, trust_remote_code=True) == (SHARD,)


def test_imported_rows_can_not_be_made_again(store: Path, no_source: None) -> None:
    change_provenance(store, lambda model: model.update(dict.fromkeys(model), name="unknown"))
    damage(store / "sample/c/0")
    repair_all(store)
    damage(store / SHARD)
    assert "was not harvested from a source model, so its rows can't be made again" in refusal(
        store
    )


def change_provenance(store: Path, change: Callable[[dict[str, Any]], None]) -> None:
    """Finish the store anew with another provenance."""
    root = json.loads((store / ROOT).read_bytes())
    attributes = root["attributes"]["saeflow"]
    change(attributes["provenance"]["model"])
    del attributes["manifest_sha256"]
    finish_store(
        store, Layout.from_attributes(attributes["layout"]), {**attributes, "state": "writing"}
    )
    assert json_bytes(json.loads((store / ROOT).read_bytes())) == (store / ROOT).read_bytes()
