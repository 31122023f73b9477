"""A shard is written while the next one is gathered: one behind, never two."""

import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from saeflow.harvest.overlap import Background, background

WRITING = """
import pathlib, sys, time
from saeflow.harvest.overlap import background

def write(seconds, file):
    time.sleep(seconds)
    file.write_text("whole")

with background() as writer:
    writer.start(lambda: write(float(sys.argv[1]), pathlib.Path(sys.argv[2])))
    print("writing", flush=True)
    time.sleep(60)
"""


def test_a_job_runs_while_the_block_goes_on() -> None:
    begun, gathered = threading.Event(), threading.Event()

    def write() -> None:
        begun.set()
        assert gathered.wait(10)

    with background() as writer:
        writer.start(write)
        assert begun.wait(10)
        gathered.set()


def test_jobs_run_one_after_another_and_have_ended_when_the_block_is_left() -> None:
    running = threading.Lock()
    done: list[int] = []

    def write(number: int) -> None:
        with running:
            done.append(number)

    with background() as writer:
        for number in range(50):
            writer.start(lambda number=number: write(number))  # type: ignore[misc]  # mypy: lambda with default
            assert len(done) >= number  # only this one may still run
    assert done == list(range(50))


def fail() -> None:
    raise OSError(28, "No space left on device", "shard")


def test_an_error_of_the_last_job_is_raised_at_the_end() -> None:
    with pytest.raises(OSError, match="shard"), background() as writer:
        writer.start(fail)


def test_an_error_is_raised_before_the_next_job() -> None:
    with background() as writer, pytest.raises(OSError, match="shard"):
        _start_both(writer)


def _start_both(writer: Background) -> None:
    writer.start(fail)
    writer.start(lambda: pytest.fail("began after an error"))


def test_an_error_is_raised_while_the_next_shard_is_gathered() -> None:
    with background() as writer:
        writer.start(fail)
        with pytest.raises(OSError, match="shard"):
            _gather_for_ever(writer)


def _gather_for_ever(writer: Background) -> None:
    while True:  # each round a batch
        writer.check()


def test_a_check_does_not_wait() -> None:
    end = threading.Event()
    with background() as writer:
        writer.start(lambda: assert_set(end))
        writer.check()
        end.set()


def assert_set(event: threading.Event) -> None:
    assert event.wait(10)


def test_an_error_in_the_block_waits_for_the_job() -> None:
    done, failed = [], threading.Event()

    def write() -> None:
        failed.wait(10)
        done.append(True)

    def gather() -> None:
        with background() as writer:
            writer.start(write)
            threading.Timer(0.1, failed.set).start()
            raise KeyError

    with pytest.raises(KeyError):
        gather()
    assert done == [True]


def write_elsewhere(seconds: float, file: Path) -> "subprocess.Popen[str]":
    """A process that writes a file in the background for some seconds, and is at it already."""
    process = subprocess.Popen(
        [sys.executable, "-c", WRITING, str(seconds), str(file)],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "writing\n"
    return process


def test_a_signal_lets_the_job_end(tmp_path: Path) -> None:
    with write_elsewhere(0.5, tmp_path / "file") as process:
        process.send_signal(signal.SIGINT)
        process.wait()
        assert (tmp_path / "file").read_text() == "whole"


def test_a_second_signal_ends_the_process_at_once(tmp_path: Path) -> None:
    with write_elsewhere(1000, tmp_path / "file") as process:
        process.send_signal(signal.SIGINT)
        with pytest.raises(subprocess.TimeoutExpired):
            process.wait(0.5)
        process.send_signal(signal.SIGTERM)
        assert process.wait() == -signal.SIGTERM
    assert not (tmp_path / "file").exists()


def test_signals_are_as_they_were_after_an_error() -> None:
    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyError), background():
        raise KeyError
    assert signal.getsignal(signal.SIGINT) == before
