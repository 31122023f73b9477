"""SIGTERM and SIGINT ask a run to stop: it does so between two steps, and saves first."""

import sys
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from signal import SIGINT, SIGTERM, Signals, getsignal
from signal import signal as set_handler
from types import FrameType

from saeflow import console

_SIGNALS = (SIGTERM, SIGINT)


@dataclass
class Stopping:
    """Whether a run was asked to stop.

    Attributes:
        signal: that asked; None if none did.
    """

    signal: Signals | None = None

    def leave(self) -> None:
        """End the process as the signal would have.

        Raises:
            KeyboardInterrupt: after SIGINT.
            SystemExit: after SIGTERM, with 143.
        """
        assert self.signal is not None
        if self.signal == SIGINT:
            raise KeyboardInterrupt
        sys.exit(128 + self.signal)


@contextmanager
def watching() -> Iterator[Stopping]:
    """Note SIGTERM and SIGINT instead of ending at once; the second one ends at once.

    In a thread that is not the main one, where Python has no signals, nothing is noted.
    """
    stopping = Stopping()
    if threading.current_thread() is not threading.main_thread():
        yield stopping
        return
    before = {number: getsignal(number) for number in _SIGNALS}

    def note(number: int, frame: FrameType | None) -> None:  # noqa: ARG001  # signal's own
        stopping.signal = Signals(number)
        console.say(f"{stopping.signal.name}: saving a checkpoint, then stopping")
        _restore(before)

    for number in _SIGNALS:
        set_handler(number, note)
    try:
        yield stopping
    finally:
        _restore(before)


def _restore(handlers: Mapping[Signals, object]) -> None:
    for number, handler in handlers.items():
        set_handler(number, handler)  # type: ignore[arg-type]  # as getsignal gave it
