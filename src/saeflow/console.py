"""What people see: progress, warnings and tables on stderr; results for machines on stdout."""

import json
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

_PLAIN_LINE_EVERY = 30.0
"""Seconds between progress lines where stderr is a file or a pipe."""


def stderr() -> Console:
    """A console on the present stderr."""
    return Console(stderr=True, highlight=False, soft_wrap=True)


def say(message: str) -> None:
    """One line of narration."""
    print(message, file=sys.stderr, flush=True)


def warn(message: str) -> None:
    """One line about something that went on, but that the user should know."""
    say(f"warning: {message}")


@contextmanager
def to_stdout() -> Iterator[None]:
    """While it lasts, results are printed: the system's errors are of stdout, and say so."""
    try:
        yield
    except OSError as error:
        error.filename = error.filename or "stdout"
        raise


def show(result: Any) -> None:
    """One line of a result, on stdout."""
    with to_stdout():
        print(result)


def print_json(value: Any) -> None:
    """One JSON object on stdout, and nothing else there."""
    show(json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False))


class Meter:
    """A bar on a terminal, a line every half minute elsewhere."""

    def __init__(self, what: str, total: int, unit: str) -> None:
        self._what, self._total, self._unit = what, total, unit
        self._started = self._spoken = time.monotonic()
        self._start_count = self._count = 0
        self._progress: Progress | None = None
        self._task = TaskID(0)
        if sys.stderr.isatty():
            columns = (
                TextColumn("{task.description}"),
                BarColumn(),
                TextColumn("{task.fields[rate]}"),
            )
            self._progress = Progress(
                *columns, TimeRemainingColumn(), console=stderr(), transient=True
            )
            self._task = self._progress.add_task(what, total=total, rate="")
            self._progress.start()

    def resume_at(self, count: int) -> None:
        """Say what an earlier run had done, so that the rate counts only this one."""
        self._start_count = self._count = count

    def advance(self, count: int, note: str = "") -> None:
        """`count` units more are done."""
        self._count += count
        now = time.monotonic()
        rate = (self._count - self._start_count) / max(now - self._started, 1e-9)
        told = f"{self._count:,}/{self._total:,} {self._unit}, {rate:,.0f}/s"
        told += f", {note}" if note else ""
        if self._progress is not None:
            self._progress.update(self._task, completed=self._count, rate=told)
        elif now - self._spoken > _PLAIN_LINE_EVERY:
            self._spoken = now
            left = (self._total - self._count) / max(rate, 1e-9)
            say(f"{self._what}: {told}, {left:,.0f} s left")

    def close(self) -> None:
        """Take the bar away."""
        if self._progress is not None:
            self._progress.stop()


@contextmanager
def meter(what: str, total: int, unit: str) -> Iterator[Meter]:
    """A `Meter` that is closed at the end, also after an error."""
    shown = Meter(what, total, unit)
    try:
        yield shown
    finally:
        shown.close()
