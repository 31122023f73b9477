"""Stores behind URLs are opened, read, trained on and scored as those in folders are."""

import json
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from saeflow.config import load_config, to_toml
from saeflow.errors import BadInputError, SaeflowError
from saeflow.harvest.config import HarvestConfig
from saeflow.harvest.remote import connect
from saeflow.harvest.run import harvest_activations
from saeflow.harvest.store import open_store
from saeflow.location import Url
from saeflow.train.choose import choose_order
from saeflow.train.config import TrainConfig
from saeflow.train.fill import IN_FLIGHT, Share, make_filler
from saeflow.train.folder import find_sae, load_sae

Upload = Callable[[Path, str], str]

_uploaded: list[str] = []


@pytest.fixture
def tiny_url(tiny_store: Path, bucket: str, upload: Upload) -> str:
    """A copy of `tiny_store` in a bucket: the same for all tests. Don't write to it."""
    if not _uploaded:
        _uploaded.append(upload(tiny_store, f"{bucket}/stores/tiny"))
    return _uploaded[0]


def assert_read_alike(url: str, folder: Path) -> None:
    """All that is read of a store is the same from both places."""
    ours, theirs = open_store(url), open_store(folder)
    assert ours.identity == theirs.identity
    for hook_point in ours.layout.hook_points:
        found, expected = (s.statistics(hook_point) for s in (ours, theirs))
        np.testing.assert_equal(found, expected)
        for split in ours.layout.splits.values():
            whole = [split.shard(k) for k in range(split.n_shards)]
            for runs in (whole, [range(3, 9), range(split.n_rows - 5, split.n_rows)]):
                rows = [store.rows(hook_point, split, runs) for store in (ours, theirs)]
                torch.testing.assert_close(*rows, rtol=0, atol=0)
    assert (ours.sequences(ours.held_out, 0, 3) == theirs.sequences(theirs.held_out, 0, 3)).all()


def test_a_store_in_a_bucket_reads_like_its_folder(tiny_url: str, tiny_store: Path) -> None:
    assert_read_alike(tiny_url, tiny_store)


@pytest.mark.parametrize("changed", [{"dtype": "int8"}, {"codec": "crc32c"}, {"codec": "zstd"}])
def test_every_precision_and_codec_reads_like_its_folder(
    changed: dict[str, Any],
    tiny_config: Callable[..., HarvestConfig],
    bucket: str,
    upload: Upload,
) -> None:
    folder = harvest_activations(tiny_config(**changed)).store.path
    assert isinstance(folder, Path)
    assert_read_alike(upload(folder, bucket), folder)


def test_a_web_server_is_asked_only_for_what_is_needed(web: Any, tiny_store: Path) -> None:
    for path in tiny_store.rglob("*"):
        if path.is_file():
            web.objects[f"st/{path.relative_to(tiny_store).as_posix()}"] = path.read_bytes()
    store = open_store(f"{web.url}/st")
    hook_point = store.layout.hook_points[0]
    store.rows(hook_point, store.train, [range(3, 9), range(600, 610), range(10, 11)])
    width = 2 * hook_point.d_in
    shards = [f"st/acts/{hook_point.name}/c/{k}/0" for k in (0, 1)]
    body = 512 * width
    assert web.requests == [
        "GET st/zarr.json",
        f"HEAD {shards[0]}",
        f"GET {shards[0]} bytes={body}-{body + 19}",  # its index
        f"GET {shards[0]} bytes={3 * width}-{9 * width - 1}",
        f"HEAD {shards[1]}",
        f"GET {shards[1]} bytes={body}-{body + 19}",
        f"GET {shards[1]} bytes={88 * width}-{98 * width - 1}",
        f"GET {shards[0]} bytes={10 * width}-{11 * width - 1}",
    ]


def test_a_window_is_read_with_many_requests_in_flight(web: Any, tiny_store: Path) -> None:
    for path in tiny_store.rglob("*"):
        if path.is_file():
            web.objects[f"st/{path.relative_to(tiny_store).as_posix()}"] = path.read_bytes()
    store = open_store(f"{web.url}/st")
    hook_point = store.layout.hook_points[0]
    array = store.activations(hook_point, store.train)
    order = choose_order(
        store.layout, store.train, hook_point, batch_size=64, seed=0, remote=store.remote
    )
    web.delay = 0.02
    target = memoryview(bytearray(64 * array.width))
    with closing(make_filler([array], order, Share(64), last_step=0)) as filler:
        filler.begin(0, [target])
    rows = store.rows(hook_point, store.train, order.runs(0, 64))
    assert bytes(target) == rows.view(torch.uint8).numpy().tobytes()
    assert web.most_at_once >= IN_FLIGHT // 2


def test_where_no_store_is_the_url_is_named(bucket: str) -> None:
    with pytest.raises(BadInputError) as refusal:
        open_store(f"{bucket}/nothing")
    assert str(refusal.value) == f"there is no saeflow store at {bucket}/nothing: check the URL"


@pytest.mark.parametrize(
    ("damage", "told"),
    [
        (lambda content: content[:-3], "is damaged or not laid out as format 1"),
        (lambda content: content[:-30] + content[-10:], "is damaged or not laid out as format 1"),
        (lambda content: b"", "is damaged or not laid out as format 1"),
        (None, "can't be read: the object does not exist"),
    ],
)
def test_damage_is_found_as_in_a_folder(
    damage: Callable[[bytes], bytes] | None, told: str, web: Any, tiny_store: Path
) -> None:
    for path in tiny_store.rglob("*"):
        if path.is_file():
            web.objects[f"st/{path.relative_to(tiny_store).as_posix()}"] = path.read_bytes()
    store = open_store(f"{web.url}/st")
    hook_point = store.layout.hook_points[0]
    name = f"st/acts/{hook_point.name}/c/1/0"
    content = web.objects.pop(name)
    if damage is not None:
        web.objects[name] = damage(content)
    store.rows(hook_point, store.train, [range(10)])
    with pytest.raises(SaeflowError, match=told) as found:
        store.rows(hook_point, store.train, [range(600, 610)])
    assert f"{web.url}/{name}" in str(found.value)


def test_a_missing_chunk_is_an_error_and_not_the_fill_value(
    tiny_store: Path, bucket: str, upload: Upload
) -> None:
    connect(Url(upload(tiny_store, bucket))).delete(["sequences/token/c/0/0"])
    store = open_store(bucket)
    with pytest.raises(SaeflowError, match="sequences/token/c/0/0 is missing"):
        store.sequences(store.train, 0, 2)


def test_an_incomplete_store_is_refused(web: Any, tiny_store: Path) -> None:
    root = (tiny_store / "zarr.json").read_text()
    web.objects["st/zarr.json"] = root.replace('"complete"', '"writing"').encode()
    with pytest.raises(BadInputError, match=r"is incomplete \(not all of its \d+ shards are there"):
        open_store(f"{web.url}/st")


def test_options_keep_a_url_as_it_is(tmp_path: Path) -> None:
    flags = {"store": "s3://bucket/store", "out": tmp_path, "d_sae": 8}
    config = load_config(TrainConfig, None, flags)
    assert config.store == "s3://bucket/store"
    (tmp_path / "config.toml").write_text(to_toml(config))
    assert load_config(TrainConfig, tmp_path / "config.toml", {}) == config
    local = load_config(TrainConfig, None, {**flags, "store": "folder"})
    assert local.store == Path("folder")


@pytest.mark.parametrize("reader", ["thread", "process"])
def test_the_same_sae_comes_of_a_bucket_and_of_its_folder(
    reader: str, tiny_url: str, tiny_store: Path, tmp_path: Path, run_cli: Callable[..., Any]
) -> None:
    options = {"hook": "blocks.0.hook_resid_post", "d_sae": 64, "k": 4, "batch_size": 64}
    options |= {"device": "cpu", "window_rows": 2048, "tokens": 3200, "reader": reader}
    runs = {"bucket": tiny_url, "folder": tiny_store}
    for name, store in runs.items():
        trained = run_cli("train", store, out=tmp_path / name, **options)
        assert trained.code == 0, trained.err
    again = run_cli("train", tiny_url, out=tmp_path / "bucket", **options)
    assert "was trained already" in again.out
    found = [load_sae(find_sae(tmp_path / name)) for name in runs]
    weights = [sae.parameters.W_dec for sae in found]
    torch.testing.assert_close(*weights, rtol=0, atol=0)


def test_an_sae_is_scored_on_the_held_out_text_of_its_bucket(
    tiny_store: Path, bucket: str, upload: Upload, tmp_path: Path, run_cli: Callable[..., Any]
) -> None:
    tiny_url, run = upload(tiny_store, bucket), tmp_path / "run"
    hook = {"hook": "blocks.0.hook_resid_post"}
    trained = run_cli("train", tiny_url, out=run, d_sae=64, tokens=3200, device="cpu", **hook)
    assert trained.code == 0, trained.err
    scored = run_cli("evaluate", run, tokens=400, device="cpu")
    assert scored.code == 0, scored.err
    scores = json.loads(next(run.rglob("scores.json")).read_text())
    assert scores["text"]["source"] == tiny_url
    connect(Url(tiny_url)).delete(["zarr.json"])
    scored = run_cli("evaluate", run, tokens=400, device="cpu", out=tmp_path / "scores")
    assert f"store {tiny_url} is gone: documents come from" in scored.err


def test_a_store_in_a_bucket_is_described(
    tiny_url: str, tiny_store: Path, run_cli: Callable[..., Any]
) -> None:
    described = [run_cli("info", place, "--json") for place in (tiny_url, tiny_store)]
    ours, theirs = (json.loads(outcome.out) for outcome in described)
    assert (ours["store"], theirs["store"]) == (tiny_url, str(tiny_store))
    for key in ("identity", "bytes", "provenance", "layout", "splits", "sample_rows"):
        assert ours[key] == theirs[key], key


@pytest.mark.parametrize("command", ["verify", "import"])
def test_what_takes_only_a_folder_says_so(
    command: str, tiny_store: Path, tmp_path: Path, run_cli: Callable[..., Any]
) -> None:
    if command == "verify":
        refused = run_cli("verify", "s3://bucket/store")
    else:
        (tmp_path / "rows.npy").touch()
        refused = run_cli("import", tmp_path / "rows.npy", out="s3://bucket/store")
    assert "bucket/store" in refused.refusal()
    assert "folder" in refused.refusal()
