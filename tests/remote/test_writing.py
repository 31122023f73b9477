"""Stores are harvested into buckets: object by object what a folder holds, whatever happens."""

import json
import os
import socket
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path
from shutil import rmtree
from typing import Any

import pytest

from saeflow.config import to_toml
from saeflow.errors import BadInputError, SaeflowError
from saeflow.harvest import mirror, remote_locks
from saeflow.harvest.config import HarvestConfig
from saeflow.harvest.models import load_model
from saeflow.harvest.remote import Remote, connect
from saeflow.harvest.run import HarvestResult, harvest_activations
from saeflow.harvest.store import open_store
from saeflow.location import Url

Options = Callable[..., HarvestConfig]
Objects = Callable[[str], dict[str, bytes]]


@pytest.fixture
def url(bucket: str) -> str:
    """Where the store goes."""
    return f"{bucket}/stores/new"


@pytest.fixture
def remote_config(tiny_config: Options, url: str, tmp_path: Path) -> Options:
    """`tiny_config`, into the bucket by way of a folder of its own."""

    def config(**changed: Any) -> HarvestConfig:
        return tiny_config(**{"out": url, "staging": tmp_path / "staging", **changed})

    return config


_whole: dict[str, bytes] = {}


@pytest.fixture
def whole(tiny_config: Options) -> dict[str, bytes]:
    """The files of the same store in a folder."""
    if not _whole:
        folder = harvest_activations(tiny_config()).store.folder
        for path in folder.rglob("*"):
            if path.is_file() and path.name != "lock":
                _whole[path.relative_to(folder).as_posix()] = path.read_bytes()
    return _whole


def test_a_bucket_gets_the_files_of_a_folder(
    remote_config: Options, objects: Objects, url: str, whole: dict[str, bytes]
) -> None:
    result = harvest_activations(remote_config())
    assert objects(url) == whole
    told = result.to_json()
    assert (told["store"], told["complete"]) == (url, True)
    assert told["bytes"] == sum(map(len, whole.values()))
    staging = remote_config().staging
    assert staging is not None
    assert not staging.exists()
    again = harvest_activations(remote_config())
    assert again.already_complete


class Killed(BaseException):
    """The end of a process, as far as one that goes on can show it."""


class Mortal:
    """Every change to a bucket is counted; at one of them the writer dies."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, dies_at: int | None = None) -> None:
        self.changes: list[str] = []
        self.dies_at = dies_at
        for name in ("put", "create", "replace", "delete"):
            monkeypatch.setattr(Remote, name, self.mortal(getattr(Remote, name)))

    def mortal(self, change: Callable[..., Any]) -> Callable[..., Any]:
        def changed(remote: Remote, what: Any, *rest: Any) -> Any:
            names = list(what) if change.__name__ == "delete" else [what]
            for name in names:  # objects are removed one by one: a writer may die between two
                self.changes.append(f"{change.__name__} {name}")
                if self.dies_at is not None and len(self.changes) > self.dies_at:
                    raise Killed
                answer = change(remote, [name] if change.__name__ == "delete" else name, *rest)
            return answer if names else None

        return changed


@pytest.fixture
def one_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """Requests in a fixed order, so that each of them is a place to die at."""
    monkeypatch.setattr(mirror, "_at_once", lambda request, items: list(map(request, items)))


@pytest.fixture
def loaded_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("saeflow.harvest.run.load_model", cache(load_model))


def without_locks(objects: dict[str, bytes]) -> dict[str, bytes]:
    """What a killed writer of a complete store may leave is its locks."""
    return {
        name: content
        for name, content in objects.items()
        if name != remote_locks.LOCK and not name.startswith(remote_locks.WRITERS)
    }


@pytest.mark.usefixtures("one_at_a_time", "loaded_once")
@pytest.mark.parametrize(
    ("first", "step"),
    [
        pytest.param(17, 27, id="some"),
        *(pytest.param(k, 5, id=f"all of part {k}", marks=pytest.mark.slow) for k in range(5)),
    ],
)
def test_a_writer_may_die_at_any_change_to_the_bucket(
    first: int,
    step: int,
    remote_config: Options,
    objects: Objects,
    bucket: str,
    whole: dict[str, bytes],
    tmp_path: Path,
) -> None:
    with pytest.MonkeyPatch.context() as patched:
        counted = Mortal(patched)
        harvest_activations(remote_config(out=f"{bucket}/counted"))
    places = range(first, len(counted.changes), step)
    assert {change.partition(" ")[0] for change in counted.changes} == {"create", "put", "delete"}
    survived = 0
    for place in places:
        config = remote_config(out=f"{bucket}/{place}")
        with pytest.MonkeyPatch.context() as patched:
            Mortal(patched, dies_at=place)
            with pytest.raises(Killed):
                harvest_activations(config)
        if survived % 2:
            rmtree(tmp_path / "staging", ignore_errors=True)  # goes on elsewhere
        harvest_activations(config)
        assert without_locks(objects(str(config.out))) == whole, counted.changes[place]
        survived += 1
    print(f"{survived} of {len(places)} places, of {len(counted.changes)} changes")
    assert survived == len(places)


@pytest.mark.usefixtures("loaded_once")
def test_a_harvest_goes_to_google_too(
    remote_config: Options, objects: Objects, gs_bucket: str, whole: dict[str, bytes]
) -> None:
    harvest_activations(remote_config(out=f"{gs_bucket}/store"))
    assert objects(f"{gs_bucket}/store") == whole


@pytest.mark.usefixtures("loaded_once")
def test_workers_share_a_bucket(
    remote_config: Options, objects: Objects, url: str, whole: dict[str, bytes], tmp_path: Path
) -> None:
    def harvest(rank: int) -> HarvestResult:
        config = remote_config(worker=f"{rank}/3", staging=tmp_path / str(rank % 2))
        return harvest_activations(config)

    first = harvest(1)
    assert not first.complete
    assert 0 < first.shards < first.shards_missing + first.shards == first.shards_total
    with pytest.raises(BadInputError, match="is incomplete"):
        open_store(url)
    assert harvest(1) == first  # whoever runs it again
    assert not harvest(0).complete
    assert harvest(2).complete
    assert objects(url) == whole


@pytest.mark.usefixtures("loaded_once")
def test_workers_share_a_bucket_at_the_same_time(
    remote_config: Options,
    objects: Objects,
    url: str,
    whole: dict[str, bytes],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(remote_locks, "_ASK_AGAIN", 0.02)
    # All are of one process here, so that no lock of the other may be taken for a dead one's.
    monkeypatch.setattr(os, "getpid", threading.get_ident)
    monkeypatch.setattr(os, "kill", lambda *_: None)
    ranks = range(2)
    with ThreadPoolExecutor(len(ranks)) as pool:
        configs = [remote_config(worker=f"{r}/2", staging=tmp_path / str(r)) for r in ranks]
        results = list(pool.map(harvest_activations, configs))
    assert any(result.complete for result in results)
    assert objects(url) == whole


@pytest.mark.usefixtures("loaded_once")
def test_little_lies_on_the_disk(
    remote_config: Options, whole: dict[str, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    staging = remote_config().staging
    assert staging is not None
    seen = []

    def measured(remote: Remote, folder: Path, record: dict[str, Any]) -> None:
        seen.append(len(list(staging.glob("**/acts/*/c/*/0"))))
        upload_shard(remote, folder, record)

    upload_shard = mirror.upload_shard
    monkeypatch.setattr(mirror, "upload_shard", measured)
    harvest_activations(remote_config())
    assert len(seen) == sum("acts" in name and "/c/" in name for name in whole) > 2
    assert max(seen) == 1


@pytest.mark.usefixtures("loaded_once")
def test_another_harvest_is_refused_until_told_to_overwrite(
    remote_config: Options, objects: Objects, url: str, whole: dict[str, bytes]
) -> None:
    harvest_activations(remote_config(seed=1))
    before = objects(url)
    with pytest.raises(BadInputError) as refusal:
        harvest_activations(remote_config())
    assert str(refusal.value) == (
        f"--out {url} holds a store made with other options (seed: 1 there, 0 now): "
        "name another folder, or throw it away with --overwrite"
    )
    assert objects(url) == before
    harvest_activations(remote_config(), overwrite=True)
    assert objects(url) == whole


@pytest.mark.usefixtures("loaded_once", "one_at_a_time")
def test_a_store_is_whole_until_the_text_of_the_new_one_is_read(
    remote_config: Options, objects: Objects, url: str
) -> None:
    harvest_activations(remote_config())
    before = objects(url)
    with pytest.raises(BadInputError, match="fewer than one shard"):
        harvest_activations(remote_config(shard_rows=2**20), overwrite=True)
    assert objects(url) == before


def test_a_bucket_that_holds_something_else_is_left_alone(
    remote_config: Options, objects: Objects, url: str
) -> None:
    connect(Url(url)).put("thesis/draft.tex", b"years")
    for overwrite in (False, True):
        with pytest.raises(BadInputError) as refusal:
            harvest_activations(remote_config(), overwrite=overwrite)
        assert str(refusal.value) == (
            f"--out {url} holds something else (thesis): name an empty or a new folder"
        )
    assert objects(url) == {"thesis/draft.tex": b"years"}


@pytest.mark.usefixtures("loaded_once")
def test_input_that_is_refused_leaves_nothing(
    remote_config: Options, objects: Objects, url: str
) -> None:
    with pytest.raises(BadInputError):
        harvest_activations(remote_config(hook=("blocks.9.hook_resid_post",)))
    assert objects(url) == {}


@pytest.mark.usefixtures("loaded_once")
@pytest.mark.parametrize(
    ("name", "rank", "count"),
    [
        (remote_locks.LOCK, 0, 1),
        (f"{remote_locks.WRITERS}/rank00000.json", 0, 1),
        (f"{remote_locks.WRITERS}/rank00002.json", 2, 4),
    ],
)
def test_a_second_writer_is_refused_and_told_of_the_first(
    name: str, rank: int, count: int, remote_config: Options, objects: Objects, url: str
) -> None:
    holder = {"rank": rank, "count": count, "host": "far-away", "pid": 7, "processes": "pid:[1]"}
    connect(Url(url)).put(name, json.dumps(holder).encode())
    with pytest.raises(BadInputError) as refusal:
        harvest_activations(remote_config())
    who = "process 7 on far-away" if count == 1 else "worker 2/4, process 7 on far-away"
    assert str(refusal.value) == (
        f"store {url} is being written by {who}: wait for it, or stop it; "
        f"if it is dead, remove {url}/{name} and run again"
    )
    assert set(objects(url)) == {name}


@pytest.mark.usefixtures("loaded_once")
def test_the_lock_of_a_dead_process_is_taken_over(
    remote_config: Options, objects: Objects, url: str, whole: dict[str, bytes]
) -> None:
    child = os.posix_spawn("/bin/true", ["true"], {})
    os.waitpid(child, 0)
    dead = {"rank": 0, "count": 1, "host": socket.gethostname(), "pid": child}
    processes = {"processes": str(Path("/proc/self/ns/pid").readlink())}
    connect(Url(url)).put(remote_locks.LOCK, json.dumps({**dead, **processes}).encode())
    harvest_activations(remote_config())
    assert objects(url) == whole


@pytest.mark.usefixtures("loaded_once")
def test_a_damaged_skeleton_is_not_gone_on_with(
    remote_config: Options, url: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    with monkeypatch.context() as patched:
        Mortal(patched, dies_at=60)
        with pytest.raises(Killed):
            harvest_activations(remote_config())
    connect(Url(url)).put("sequences/token/c/0/0", b"something else")
    with pytest.raises(SaeflowError, match=r"sequences/token/c/0/0 is missing or damaged: begin"):
        harvest_activations(remote_config(staging=tmp_path / "elsewhere"))


@pytest.mark.parametrize(
    ("out", "staging", "complaint"),
    [
        ("https://host/store", None, "can only be read: name a folder, or s3:// or gs://"),
        ("folder", "staging", "--staging is for a URL"),
        ("s3://bucket/store", "tests", "holds something else: name an empty or a new folder"),
    ],
)
def test_places_that_make_no_sense_are_refused(
    out: str, staging: str | None, complaint: str, tiny_config: Options, tmp_path: Path
) -> None:
    (tmp_path / "tests" / "mine").mkdir(parents=True)
    config = tiny_config(
        out=out if "://" in out else tmp_path / out,
        staging=None if staging is None else tmp_path / staging,
    )
    with pytest.raises(BadInputError) as refusal:
        harvest_activations(config)
    assert complaint in str(refusal.value)
    assert (tmp_path / "tests" / "mine").is_dir()


def test_the_command_line_harvests_into_a_bucket(
    remote_config: Options,
    url: str,
    run_cli: Callable[..., Any],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    config = tmp_path / "config.toml"
    config.write_text(to_toml(remote_config(staging=None)))
    done = run_cli("harvest", config=config)
    assert done.code == 0, done.err
    assert done.out.startswith(f"store {url} is complete: ")
    assert not any((tmp_path / "cache").rglob("*.json"))
    assert f"store {url} is complete already" in run_cli("harvest", config=config).out
    refused = run_cli("train", url, out="s3://bucket/run", d_sae=8)
    assert refused.refusal() == "saeflow: --out is a URL: give a folder"
