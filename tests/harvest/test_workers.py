"""Which worker a process is, and what its share is."""

import pytest

from saeflow.errors import BadInputError
from saeflow.harvest.workers import Worker, choose_worker, parse_worker

TORCHRUN = {"RANK": "5", "WORLD_SIZE": "8", "LOCAL_RANK": "1"}
SRUN = {"SLURM_PROCID": "2", "SLURM_STEP_NUM_TASKS": "3", "SLURM_LOCALID": "0"}


@pytest.mark.parametrize(
    ("environment", "worker"),
    [
        ({}, Worker(0, 1)),
        (TORCHRUN, Worker(5, 8, 1)),
        (SRUN, Worker(2, 3, 0)),
        ({**SRUN, **TORCHRUN}, Worker(5, 8, 1)),
        ({"RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0"}, Worker(0, 1)),
        ({"SLURM_PROCID": "0", "SLURM_STEP_NUM_TASKS": "1"}, Worker(0, 1)),
        ({"SLURM_PROCID": "0", "SLURM_NTASKS": "4"}, Worker(0, 1)),
        ({"RANK": "1", "WORLD_SIZE": "2"}, Worker(1, 2)),
        ({"WORLD_SIZE": "2"}, Worker(0, 1)),
    ],
    ids=[
        "alone", "torchrun", "srun", "torchrun in srun", "torchrun of one", "srun of one",
        "a batch script", "no local rank", "no rank",
    ],
)  # fmt: skip
def test_a_worker_from_the_environment(environment: dict[str, str], worker: Worker) -> None:
    assert choose_worker(None, environment) == worker


def test_the_option_wins_over_the_environment() -> None:
    assert choose_worker("1/2", TORCHRUN) == Worker(1, 2)


@pytest.mark.parametrize("text", ["4/4", "1", "-1/4", "1/0", "0/0", "a/b", "1/4/2", "", "1 / 4"])
def test_what_is_no_share(text: str) -> None:
    with pytest.raises(BadInputError, match=f"--worker {text} is no share: give i/n"):
        parse_worker(text)


@pytest.mark.parametrize(
    ("changed", "told"),
    [
        ({"RANK": "x"}, "RANK is 'x', which is no number"),
        ({"WORLD_SIZE": "many"}, "WORLD_SIZE is 'many', which is no number"),
        ({"RANK": "8"}, "RANK=8 is not below WORLD_SIZE=8"),
    ],
)
def test_an_environment_without_sense(changed: dict[str, str], told: str) -> None:
    with pytest.raises(BadInputError, match=told):
        choose_worker(None, {**TORCHRUN, **changed})


@pytest.mark.parametrize("count", [1, 2, 3, 7, 20])
def test_the_shares_of_all_workers_are_all_shards_once(count: int) -> None:
    shards = list(range(13))
    shares = [Worker(rank, count).share(shards) for rank in range(count)]
    assert sorted(shard for share in shares for shard in share) == shards
    assert all(shard % count == rank for rank, share in enumerate(shares) for shard in share)
