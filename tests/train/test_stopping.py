"""SIGTERM and SIGINT are noted; the second one ends at once."""

import os
import signal
import threading

import pytest

from saeflow.train.stopping import Stopping, watching


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_the_first_signal_is_noted(number: signal.Signals, code: int) -> None:
    with watching() as stopping:
        os.kill(os.getpid(), number)
        assert stopping.signal == number
    with pytest.raises((SystemExit, KeyboardInterrupt)) as left:
        stopping.leave()
    assert code == (left.value.code if isinstance(left.value, SystemExit) else 130)


def test_the_second_one_does_what_it_always_does() -> None:
    signal.signal(signal.SIGINT, signal.default_int_handler)
    with watching():
        os.kill(os.getpid(), signal.SIGINT)
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)


def test_afterwards_signals_are_as_before() -> None:
    before = signal.getsignal(signal.SIGTERM)
    with watching():
        assert signal.getsignal(signal.SIGTERM) != before
    assert signal.getsignal(signal.SIGTERM) == before


def test_in_another_thread_training_works_too() -> None:
    found: list[Stopping] = []

    def work() -> None:
        with watching() as stopping:
            found.append(stopping)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert found[0].signal is None
