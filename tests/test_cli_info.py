"""`saeflow info` as its users meet it: tables, one JSON object, and one line for bad input."""

import json
import shutil
from collections.abc import Callable
from itertools import count
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

import saeflow
from saeflow.harvest import filling
from saeflow.harvest import run as harvest_run
from saeflow.harvest.config import HarvestConfig
from saeflow.harvest.run import harvest_activations
from saeflow.harvest.store import open_store

Run = Callable[..., Any]


@pytest.fixture
def copied(tiny_store: Path, tmp_path: Path) -> Path:
    """A store that a test may damage."""
    return shutil.copytree(tiny_store, tmp_path / "copied")


@pytest.fixture
def stopped(
    tiny_config: Callable[..., HarvestConfig], monkeypatch: pytest.MonkeyPatch
) -> Callable[..., Path]:
    """What a harvest leaves when a function of its modules fails at its n-th call."""

    def run(module: ModuleType, name: str, at: int) -> Path:
        config = tiny_config()
        before, calls = getattr(module, name), count()

        def fail(*arguments: Any, **options: Any) -> Any:
            if next(calls) == at:
                raise RuntimeError("stopped")
            return before(*arguments, **options)

        with monkeypatch.context() as patched:
            patched.setattr(module, name, fail)
            with pytest.raises(RuntimeError, match="stopped"):
                harvest_activations(config)
        return Path(config.out)

    return run


def test_the_tables_tell_what_a_store_is_from_and_how_much_it_holds(
    run_cli: Run, tiny_store: Path, tiny_model: Path
) -> None:
    store = open_store(tiny_store)
    outcome = run_cli("info", tiny_store)
    assert outcome.code == 0
    assert outcome.err == ""
    told = outcome.out
    size = sum(p.stat().st_size for p in tiny_store.rglob("*") if p.is_file())
    first = f"{tiny_store}: complete, {size:,} bytes, identity {store.identity[:12]}"
    assert told.splitlines()[0] == first
    flat = " ".join(told.split())
    assert f"│ rows │ {store.train.n_rows:,} │ {store.held_out.n_rows:,} │" in flat
    assert f"│ shards │ {store.train.n_shards} │ {store.held_out.n_shards} │" in flat
    assert str(store.provenance["model"]["weights_sha256"])[:12] in told
    assert "bfloat16, codec bytes, rows permuted" in told
    assert "17 tokens, packed, BOS 0, separator 1" in told
    for line in ("norm at 50, 75, 95 %", "massive rows", "same-document mates", "by arithmetic"):
        assert line in told
    for hook_point in store.layout.hook_points:
        assert hook_point.name in told


def test_json_is_one_object_with_everything(run_cli: Run, tiny_store: Path) -> None:
    store = open_store(tiny_store)
    told = json.loads(run_cli("info", tiny_store, "--json").out)
    assert told["store"] == str(tiny_store)
    assert (told["complete"], told["to_do"]) == (True, None)
    assert told["identity"] == store.identity
    assert told["bytes"] == sum(p.stat().st_size for p in tiny_store.rglob("*") if p.is_file())
    assert told["provenance"] == store.provenance
    assert told["layout"] == store.layout.to_attributes()
    assert told["splits"]["train"]["rows"] == store.train.n_rows
    assert told["splits"]["heldout"]["documents"] == store.held_out.n_documents
    assert told["text"]["documents_read"] == 120
    assert told["sample_rows"] == store.train.n_rows
    found = told["hook_points"]["blocks.1.attn.hook_z"]
    assert (found["d_in"], found["shape"]) == (32, [4, 8])
    assert set(found["figures"]["norm_quantiles"]) >= {"0.01", "0.5", "0.999", "1.0"}
    assert found["mixing"]["mates"] == pytest.approx(found["mixing"]["expected"], rel=0.1)


def test_in_python_it_is_one_call(tiny_store: Path) -> None:
    info = saeflow.store_info(tiny_store)
    assert isinstance(info, saeflow.StoreInfo)
    assert info.splits["train"].rows == open_store(tiny_store).train.n_rows
    figures = info.hook_points[0].figures
    assert figures is not None
    assert figures.norm_quantiles[0.5] > 0
    mixing = info.mixing[info.hook_points[0].name]
    assert mixing is not None
    assert mixing.ideal < mixing.expected


def test_a_store_whose_harvest_was_stopped(run_cli: Run, stopped: Callable[..., Path]) -> None:
    out = stopped(filling, "write_shard", 2)
    outcome = run_cli("info", out)
    assert outcome.code == 0
    line = outcome.out.splitlines()[0]
    assert line.startswith(f"{out}: incomplete (2 of 4 shards), ")
    assert line.endswith(" bytes: run the same saeflow harvest again, it continues")
    assert "│ shards │ 2 of 3 │ 0 of 1 │" in " ".join(outcome.out.split())
    told = json.loads(run_cli("info", out, "--json").out)
    assert (told["complete"], told["state"], told["identity"]) == (False, "writing", None)
    assert told["splits"]["train"]["shards_built"] == 2
    (hook_point,) = told["hook_points"].values()
    assert (hook_point["figures"], hook_point["mixing"]) == (None, None)
    built = out / "acts/blocks.0.hook_resid_post/c"
    assert hook_point["bytes"] > sum(p.stat().st_size for p in built.rglob("*") if p.is_file())


def test_a_store_whose_text_was_not_read_to_its_end(
    run_cli: Run, stopped: Callable[..., Path]
) -> None:
    out = stopped(harvest_run, "make_plan", 0)
    assert "incomplete (its text is not tokenised yet)" in run_cli("info", out).out
    told = json.loads(run_cli("info", out, "--json").out)
    assert (told["state"], told["layout"], told["hook_points"]) == ("tokenizing", None, {})
    assert told["provenance"]["context_size"] == 17


def test_a_store_that_does_not_know_its_documents(run_cli: Run, copied: Path) -> None:
    """As stores of imported activations are: no document of a row, no contexts."""
    change(copied, packing=None, row_values=["token"])
    outcome = run_cli("info", copied)
    assert outcome.code == 0
    flat = " ".join(outcome.out.split())
    assert "│ documents │ unknown │ unknown │" in flat
    assert "│ contexts │ unknown │" in flat
    assert "│ read in │ unknown │ unknown │" in flat
    told = json.loads(run_cli("info", copied, "--json").out)
    assert told["splits"]["train"]["documents"] is None
    assert all(h["mixing"] is None for h in told["hook_points"].values())


def change(store: Path, **layout: object) -> None:
    """Change what a store's root says of its layout."""
    root = json.loads((store / "zarr.json").read_text())
    root["attributes"]["saeflow"]["layout"].update(layout)
    (store / "zarr.json").write_text(json.dumps(root))


def test_square_brackets_in_a_path_are_shown_as_they_are(run_cli: Run, copied: Path) -> None:
    odd = copied.rename(copied.with_name("[bold]a :smile: store"))
    assert run_cli("info", odd).out.startswith(f"{odd}: complete")


# Refusals.


def test_a_store_that_is_not_there(run_cli: Run) -> None:
    line = run_cli("info", "/no/such/store").refusal()
    assert line == (
        "saeflow: store /no/such/store does not exist: check the path, or run saeflow harvest"
    )


def test_a_folder_that_is_no_store(run_cli: Run, tmp_path: Path) -> None:
    assert f"{tmp_path} is not a saeflow store" in run_cli("info", tmp_path).refusal()


def test_a_file(run_cli: Run, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("text")
    assert "file does not exist: check the path" in run_cli("info", tmp_path / "file").refusal()


@pytest.mark.parametrize("state", ["complete", "writing"])
def test_a_store_of_a_newer_format(run_cli: Run, copied: Path, state: str) -> None:
    root = copied / "zarr.json"
    text = root.read_text().replace('"format": 1', '"format": 2')
    root.write_text(text.replace('"state": "complete"', f'"state": "{state}"'))
    assert "is of format 2, newer than this saeflow reads (1)" in run_cli("info", copied).refusal()


@pytest.mark.parametrize("state", ["complete", "writing"])
def test_attributes_without_sense(run_cli: Run, copied: Path, state: str) -> None:
    change(copied, dtype="int3")
    root = copied / "zarr.json"
    root.write_text(root.read_text().replace('"state": "complete"', f'"state": "{state}"'))
    assert "has unreadable attributes: " in run_cli("info", copied).refusal()


@pytest.mark.parametrize("name", ["stats/blocks.0.hook_resid_post/std", "sample", "doc/c"])
def test_a_part_that_is_gone(run_cli: Run, copied: Path, name: str) -> None:
    shutil.rmtree(copied / name)
    outcome = run_cli("info", copied)
    assert outcome.code == 1
    assert "Traceback" not in outcome.err
    assert outcome.err.startswith("saeflow: ")
    assert str(copied) in outcome.err
