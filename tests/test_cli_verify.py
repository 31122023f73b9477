"""`saeflow verify` as its users meet it."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from saeflow.harvest.config import HarvestConfig
from saeflow.harvest.run import harvest_activations

HOOK = "blocks.0.hook_resid_post"
SHARD = f"acts/{HOOK}/c/1/0"
Run = Callable[..., Any]
Options = Callable[..., HarvestConfig]


@pytest.fixture(scope="module")
def original(tiny_options: Options, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small store. Don't write to it."""
    out = tmp_path_factory.mktemp("original") / "store"
    harvest_activations(tiny_options(out=out, tokens=400, shard_rows=96, held_out=0.05))
    return out


@pytest.fixture
def store(original: Path, tmp_path: Path) -> Path:
    """A copy that a test may damage."""
    return Path(shutil.copytree(original, tmp_path / "store"))


def damage(store: Path) -> None:
    content = bytearray((store / SHARD).read_bytes())
    content[0] ^= 1
    (store / SHARD).write_bytes(content)


DAMAGED = f"{SHARD} is damaged: array acts/{HOOK}, train shard 1, chunk 0, rows 96 to 127"


def test_a_whole_store_is_one_line(run_cli: Run, original: Path) -> None:
    outcome = run_cli("verify", original)
    files = [p for p in original.rglob("*") if p.is_file() and p.name != "lock"]
    size = sum(p.stat().st_size for p in files)
    assert outcome.code == 0
    assert outcome.out == f"store {original} is whole: {len(files)} files, {size:,} bytes\n"
    assert outcome.err == ""


def test_each_problem_is_a_line_and_the_summary_goes_to_stderr(run_cli: Run, store: Path) -> None:
    damage(store)
    (store / "notes.txt").touch()
    outcome = run_cli("verify", store)
    assert outcome.code == 1
    assert outcome.out == f"{DAMAGED}\nnotes.txt is foreign\n"
    assert outcome.err == (
        f"store {store} has 2 problems: run saeflow verify {store} --repair, "
        "and take away what is foreign\n"
    )


def test_problems_in_json(run_cli: Run, store: Path) -> None:
    damage(store)
    outcome = run_cli("verify", store, "--json")
    found = json.loads(outcome.out)
    assert outcome.code == 1
    assert found["whole"] is False
    assert found["repaired"] == []
    assert found["problems"] == [
        {
            "file": SHARD,
            "kind": "damaged",
            "array": f"acts/{HOOK}",
            "split": "train",
            "shard": 1,
            "part": "chunks",
            "chunks": [0, 0],
            "rows": [96, 127],
        }
    ]


def test_a_whole_store_in_json(run_cli: Run, original: Path) -> None:
    outcome = run_cli("verify", original, "--json")
    assert outcome.code == 0
    found = json.loads(outcome.out)
    assert found["store"] == str(original)
    assert (found["whole"], found["problems"], found["repaired"]) == (True, [], [])


def test_a_repair_names_the_damage_and_ends_with_a_whole_store(run_cli: Run, store: Path) -> None:
    damage(store)
    outcome = run_cli("verify", store, "--repair")
    assert outcome.code == 0
    first, second = outcome.out.splitlines()
    assert first == DAMAGED
    assert second.startswith(f"store {store} is whole: ")
    assert second.endswith(" bytes, 1 repaired")
    assert run_cli("verify", store).code == 0


def test_a_repair_in_json(run_cli: Run, store: Path) -> None:
    damage(store)
    outcome = run_cli("verify", store, "--repair", "--json")
    found = json.loads(outcome.out)
    assert outcome.code == 0
    assert (found["whole"], found["problems"], found["repaired"]) == (True, [], [SHARD])


def test_a_repair_leaves_foreign_files_and_says_so(run_cli: Run, store: Path) -> None:
    (store / "notes.txt").touch()
    outcome = run_cli("verify", store, "--repair")
    assert outcome.code == 1
    assert outcome.out == "notes.txt is foreign\n"
    assert outcome.err == f"store {store} has one problem: take away what is foreign\n"
    assert (store / "notes.txt").is_file()


def test_a_repair_of_a_whole_store_does_nothing(run_cli: Run, original: Path) -> None:
    assert run_cli("verify", original, "--repair", model="nowhere").code == 0


def test_a_repair_without_the_source_is_refused(run_cli: Run, store: Path) -> None:
    damage(store)
    outcome = run_cli("verify", store, "--repair", model="./nowhere")
    assert outcome.code == 2
    assert outcome.out == f"{DAMAGED}\n"
    assert outcome.err == (
        "saeflow: model folder ./nowhere does not exist: check the path, "
        "or say with --model where it is\n"
    )


def test_options_of_a_repair_are_not_dropped_in_silence(run_cli: Run, original: Path) -> None:
    told = run_cli("verify", original, model="elsewhere").refusal()
    assert told.endswith("--model, --dataset and --trust-remote-code are for --repair: add that")


@pytest.mark.parametrize("state", ["tokenizing", "writing"])
def test_an_incomplete_store_is_refused(run_cli: Run, store: Path, state: str) -> None:
    root = (store / "zarr.json").read_text()
    (store / "zarr.json").write_text(root.replace('"complete"', f'"{state}"'))
    assert "is incomplete" in run_cli("verify", store).refusal()


def test_what_is_no_store_is_refused(run_cli: Run, tmp_path: Path) -> None:
    assert "is not a saeflow store" in run_cli("verify", tmp_path).refusal()
    assert "does not exist" in run_cli("verify", tmp_path / "none").refusal()
    assert "is remote: copy it to a folder" in run_cli("verify", "s3://bucket/store").refusal()
