"""`saeflow harvest --worker i/n` as its users meet it."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from saeflow.devices import share_gpus
from saeflow.errors import BadInputError
from saeflow.harvest.config import HarvestConfig
from saeflow.harvest.run import harvest_activations
from saeflow.harvest.store import open_store

Run = Callable[..., Any]


@pytest.fixture
def harvest(run_cli: Run, tiny_model: Path, tiny_text: Path, tmp_path: Path) -> Run:
    """Run `saeflow harvest` into `tmp_path / "store"`, four shards; keywords are flags."""

    def run(*more: object, **flags: object) -> Any:
        given = {
            "model": tiny_model,
            "dataset": tiny_text,
            "hook": "blocks.0.hook_resid_post",
            "out": tmp_path / "store",
            "context_size": 17,
            "tokens": 800,
            "held_out": 0,
            "shard_rows": 200,
            "device": "cpu",
            **flags,
        }
        return run_cli("harvest", *more, **given)

    return run


def test_each_worker_says_what_is_left_and_the_last_one_what_is_there(
    harvest: Run, tmp_path: Path
) -> None:
    first = harvest(worker="1/2")
    assert first.code == 0
    assert first.out == (
        f"worker 1/2 has done its 2 shards of store {tmp_path / 'store'}; "
        "2 of 4 are still other workers'\n"
    )
    assert harvest(worker="0/2").out.startswith(f"store {tmp_path / 'store'} is complete: ")
    assert "is complete already" in harvest(worker="1/2").out


def test_what_is_left_in_json(harvest: Run, tmp_path: Path) -> None:
    assert json.loads(harvest("--json", worker="2/3").out) == {
        "store": str(tmp_path / "store"),
        "complete": False,
        "worker": "2/3",
        "shards": 1,
        "shards_missing": 3,
        "shards_total": 4,
    }
    assert json.loads(harvest("--json").out)["complete"] is True


def test_a_worker_with_nothing_left_to_build_ends_at_once(
    harvest: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    line = harvest(worker="1/2").out
    monkeypatch.setattr("saeflow.harvest.run.load_model", lambda spec: pytest.fail("loaded"))
    assert harvest(worker="1/2").out == line


def test_torchruns_environment_makes_a_worker(
    harvest: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in {"RANK": "3", "WORLD_SIZE": "4", "LOCAL_RANK": "3"}.items():
        monkeypatch.setenv(name, value)
    assert harvest().out.startswith("worker 3/4 has done its 1 shards of store ")


def test_a_store_that_waits_for_a_worker_is_not_read(harvest: Run, tmp_path: Path) -> None:
    harvest(worker="0/2")
    with pytest.raises(BadInputError, match=r"is incomplete \(2 of 4 shards\)"):
        open_store(tmp_path / "store")


def test_the_result_of_a_worker_is_not_a_store(tiny_config: Callable[..., HarvestConfig]) -> None:
    result = harvest_activations(tiny_config(worker="0/2"))
    assert not result.complete
    with pytest.raises(BadInputError, match="is incomplete"):
        result.store  # noqa: B018  # the property raises


def test_the_share_is_not_part_of_what_made_the_store(harvest: Run, tmp_path: Path) -> None:
    harvest(worker="0/2")
    harvest(worker="1/2")
    assert "worker" not in open_store(tmp_path / "store").provenance


@pytest.mark.parametrize("worker", ["2/2", "1", "x/y"])
def test_what_is_no_share(harvest: Run, worker: str, tmp_path: Path) -> None:
    line = harvest(worker=worker).refusal()
    assert line == f"saeflow: --worker {worker} is no share: give i/n with i from 0 to n - 1"
    assert not (tmp_path / "store").exists()


def test_one_of_several_workers_does_not_overwrite(harvest: Run, tmp_path: Path) -> None:
    harvest(worker="0/2")
    line = harvest("--overwrite", worker="1/2").refusal()
    assert line == (
        "saeflow: --overwrite as worker 1/2 would throw away what the others build: "
        f"remove {tmp_path / 'store'}, then start the workers without it"
    )


def test_a_worker_with_other_options_is_refused(harvest: Run) -> None:
    harvest(worker="0/2")
    assert "(seed: 0 there, 1 now)" in harvest(worker="1/2", seed=1).refusal()


def test_the_rest_of_a_store_needs_space_too(
    harvest: Run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    harvest(worker="0/4")
    monkeypatch.setattr(
        "shutil.disk_usage", lambda path: type("Usage", (), {"free": 1000, "total": 0, "used": 0})
    )
    line = harvest(worker="1/4").refusal()
    assert line.startswith("saeflow: the rest of the store takes ")
    assert line.endswith(f"{tmp_path / 'store'} has 1,000 free: make room, then run again")
    monkeypatch.undo()
    assert harvest().code == 0


def test_each_process_of_a_machine_has_a_gpu_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    assert [share_gpus(number) for number in (0, 3, 5)] == ["cuda:0", "cuda:3", "cuda:1"]
