"""Any number of workers, killed or not, leave the bytes that one harvest leaves.

A part runs every time; the whole, as `test_cut_short.py` says.
"""

import random
import shutil
import signal
import time
from pathlib import Path

import pytest
from harvests import Whole, committed, state_of, tree_of, until_committed, until_tokenizing


@pytest.mark.parametrize("tries", [3, pytest.param(20, marks=pytest.mark.slow)])
def test_a_second_writer_is_refused_and_its_holder_named(
    whole: Whole, tmp_path: Path, tries: int
) -> None:
    out = tmp_path / "store"
    first = whole.server.start(out, end_at=whole.in_shards, kind="SIGSTOP")
    first.until_stopped()
    refused = 0
    for _ in range(tries):
        second = whole.server.start(out)
        refused += (
            second.wait().code == 2
            and f"is being written by process {first.pid} on " in second.last_line()
        )
    print(f"{refused} of {tries} second writers refused, the first one named")
    assert refused == tries
    assert whole.server.run(out, "--overwrite").code == 2
    first.kill()
    whole.server.finish(out)
    assert tree_of(out) == whole.tree


@pytest.mark.parametrize("count", [1, 2, 4, pytest.param(7, marks=pytest.mark.slow)])
def test_any_number_of_workers_leave_the_same_bytes(
    whole: Whole, tmp_path: Path, count: int
) -> None:
    """Seven workers are two more than there are shards."""
    out = tmp_path / "store"
    workers = whole.server.workers(out, count)
    assert [worker.wait().code for worker in workers] == [0] * count
    assert tree_of(out) == whole.tree
    told = [worker.last_line() for worker in workers]
    assert any(f"store {out} is complete" in line for line in told)
    print(f"{count} workers byte-identical to one")


def test_a_worker_that_is_not_the_last_one_says_what_is_left(whole: Whole, tmp_path: Path) -> None:
    out = tmp_path / "store"
    lines = []
    for rank in (1, 2, 0):
        worker = whole.server.start(out, worker=f"{rank}/3")
        assert worker.wait().code == 0
        lines.append(worker.last_line())
    assert lines[:2] == [
        f"worker 1/3 has done its 2 shards of store {out}; 3 of 5 are still other workers'",
        f"worker 2/3 has done its 1 shards of store {out}; 2 of 5 are still other workers'",
    ]
    assert lines[2].startswith(f"store {out} is complete: ")
    assert tree_of(out) == whole.tree


def test_a_worker_that_was_killed_is_run_again(whole: Whole, tmp_path: Path) -> None:
    out = tmp_path / "store"
    first = whole.server.start(out, worker="0/2", end_at=whole.in_shards)
    until_tokenizing(out)
    second = whole.server.start(out, worker="1/2")
    assert (first.wait().code, second.wait().code) == (-signal.SIGKILL, 0)
    assert state_of(out).startswith("writing")
    assert whole.server.run(out, worker="0/2").code == 0
    assert tree_of(out) == whole.tree


def test_another_worker_than_those_at_work_is_refused(whole: Whole, tmp_path: Path) -> None:
    out = tmp_path / "store"
    first = whole.server.start(out, worker="0/2", end_at=whole.in_shards, kind="SIGSTOP")
    first.until_stopped()
    for worker in ("0/2", "1/3", None):
        refused = whole.server.start(out, worker=worker)
        assert refused.wait().code == 2
        assert f"is being written by worker 0/2, process {first.pid} on" in refused.last_line()
    assert whole.server.run(out, worker="1/2").code == 0
    first.kill()
    whole.server.finish(out)
    assert tree_of(out) == whole.tree


def test_a_harvest_is_resumed_with_other_numbers_of_workers(whole: Whole, tmp_path: Path) -> None:
    out = tmp_path / "store"
    for count in (4, 2, 1):
        before = committed(out)
        workers = whole.server.workers(out, count)
        until_committed(out, before)
        for worker in workers:
            worker.kill()
    assert [worker.wait().code for worker in whole.server.workers(out, 3)] == [0] * 3
    assert tree_of(out) == whole.tree


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_40_harvests_whose_workers_are_killed_at_random_moments(
    whole: Whole, tmp_path: Path
) -> None:
    draw, survived = random.Random(12), 0
    for number in range(40):
        out = tmp_path / str(number)
        for _ in range(3):
            workers = whole.server.workers(out, draw.choice([1, 2, 3, 4]))
            for worker in workers:
                time.sleep(draw.random() * whole.seconds / 2)
                worker.kill()
        count = draw.choice([1, 2, 3, 4])
        codes = [worker.wait().code for worker in whole.server.workers(out, count)]
        survived += codes == [0] * count and tree_of(out) == whole.tree
        shutil.rmtree(out)
    print(f"{survived} of 40 byte-identical after three rounds of killed workers")
    assert survived == 40
