"""Who may write to a store: one harvest's workers together, and nobody beside them."""

import os
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from saeflow.errors import BadInputError
from saeflow.harvest.locks import main_lock, refuse_others, worker_lock
from saeflow.harvest.workers import Worker

ONLY = Worker()

HOLDER = """
import pathlib, sys
from saeflow.harvest.locks import main_lock, worker_lock
from saeflow.harvest.workers import parse_worker
lock = {"main": main_lock, "own": worker_lock}[sys.argv[1]]
with lock(pathlib.Path(sys.argv[2]), parse_worker(sys.argv[3])):
    print("locked", flush=True)
    sys.stdin.read()
"""


@contextmanager
def holder(lock: str, store: Path, worker: str) -> Iterator["subprocess.Popen[str]"]:
    """Another process that holds a store's main lock, or a worker's own."""
    with subprocess.Popen(
        [sys.executable, "-c", HOLDER, lock, str(store), worker],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "locked\n"
        yield process
        process.kill()


def test_a_second_writer_is_refused_twenty_times_until_the_first_one_is_killed(
    tmp_path: Path,
) -> None:
    store = tmp_path / "store"
    refused = 0
    with holder("main", store, "0/1") as first:
        for _ in range(20):
            with pytest.raises(BadInputError) as refusal, main_lock(store, ONLY):
                pass
            refused += str(refusal.value) == (
                f"store {store} is being written by process {first.pid} on "
                f"{socket.gethostname()}: wait for it, or stop it"
            )
        first.kill()
        first.wait()
        with main_lock(store, ONLY):
            pass
    print(f"{refused} of 20 tries refused, the holder named")
    assert refused == 20


def test_a_second_writer_in_the_same_process_is_refused(tmp_path: Path) -> None:
    with (
        main_lock(tmp_path, ONLY),
        pytest.raises(BadInputError, match=f"process {os.getpid()} on "),
        main_lock(tmp_path, ONLY),
    ):
        pass


def test_the_lock_is_given_back_after_an_error(tmp_path: Path) -> None:
    with pytest.raises(KeyError), main_lock(tmp_path, ONLY):
        raise KeyError
    with main_lock(tmp_path, ONLY):
        pass


def test_a_lock_that_nobody_holds_names_nobody(tmp_path: Path) -> None:
    with main_lock(tmp_path, ONLY):
        assert str(os.getpid()) in (tmp_path / "_saeflow/lock").read_text()
    assert (tmp_path / "_saeflow/lock").read_bytes() == b""


def test_workers_of_one_harvest_wait_for_the_main_lock(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with holder("main", tmp_path, "0/2") as first:
        threading.Timer(0.3, first.kill).start()
        with main_lock(tmp_path, Worker(1, 2)):
            pass
    told = capsys.readouterr().err
    assert told == (
        f"waiting for worker 0/2, process {first.pid} on {socket.gethostname()}, "
        f"which holds {tmp_path}/_saeflow/lock\n"
    )


@pytest.mark.parametrize("worker", [Worker(0, 2), Worker(1, 3), ONLY], ids=str)
def test_the_main_lock_is_not_waited_for_behind_another_harvest(
    tmp_path: Path, worker: Worker
) -> None:
    with (
        holder("main", tmp_path, "0/2"),
        pytest.raises(BadInputError, match="is being written by worker 0/2, process "),
        main_lock(tmp_path, worker),
    ):
        pass


def test_a_worker_that_wants_to_complete_the_store_waits_for_anyone(tmp_path: Path) -> None:
    with holder("main", tmp_path, "0/1") as first:
        threading.Timer(0.3, first.kill).start()
        with main_lock(tmp_path, Worker(1, 2), patient=True):
            pass


def test_a_lock_whose_folder_was_thrown_away_is_made_anew(tmp_path: Path) -> None:
    """As when the input of the first worker is refused while the second one waits."""
    store = tmp_path / "store"
    with holder("main", store, "0/2") as first:
        (store / "_saeflow/lock").unlink()
        with main_lock(store, Worker(1, 2)):
            assert (store / "_saeflow/lock").exists()
        assert first.poll() is None


def test_a_holder_that_does_not_say_who_it_is(tmp_path: Path) -> None:
    with holder("main", tmp_path, "0/2"):
        (tmp_path / "_saeflow/lock").write_bytes(b"")
        with (
            pytest.raises(BadInputError, match="is being written by another process: wait for it"),
            main_lock(tmp_path, Worker(1, 2)),
        ):
            pass


def test_workers_of_the_same_number_work_side_by_side(tmp_path: Path) -> None:
    with holder("own", tmp_path, "0/2"), main_lock(tmp_path, Worker(1, 2)):
        refuse_others(tmp_path, Worker(1, 2), alone=False)
        with worker_lock(tmp_path, Worker(1, 2)):
            pass


@pytest.mark.parametrize(
    ("worker", "advice"),
    [
        (Worker(0, 2), "wait for it, or stop it"),
        (Worker(1, 3), "wait for it, or stop it, or be one of its 2 workers"),
        (ONLY, "wait for it, or stop it, or be one of its 2 workers"),
    ],
    ids=["the same", "of another number", "the only one"],
)
def test_a_worker_is_refused_beside_one_it_cannot_work_with(
    tmp_path: Path, worker: Worker, advice: str
) -> None:
    with holder("own", tmp_path, "0/2") as other:
        with pytest.raises(BadInputError) as refusal:
            refuse_others(tmp_path, worker, alone=False)
        assert f"worker 0/2, process {other.pid} on " in str(refusal.value)
        assert str(refusal.value).endswith(f": {advice}")
        other.kill()
        other.wait()
        refuse_others(tmp_path, worker, alone=False)


def test_a_store_is_not_thrown_away_under_a_worker(tmp_path: Path) -> None:
    with holder("own", tmp_path, "0/2"), pytest.raises(BadInputError, match="worker 0/2"):
        refuse_others(tmp_path, Worker(1, 2), alone=True)
