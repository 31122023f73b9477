"""Commands in processes of their own, to be cut short: begun, waited for, many at a time."""

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from queue import SimpleQueue
from typing import Any, Protocol, TypeVar

ENVIRONMENT = {
    "OMP_NUM_THREADS": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "HF_HUB_OFFLINE": "1",
    "HF_DATASETS_OFFLINE": "1",
}
KINDS = {"SIGKILL": -9, "SIGINT": 130, "SIGTERM": 143, "ENOSPC": 1}
"""What cuts a command short, and the exit code that it has to have then."""


@dataclass(frozen=True)
class End:
    """How a forked command ended: its exit code, and the last operation that was counted."""

    code: int
    operation: int
    name: str


@dataclass(frozen=True)
class Cut:
    """What cuts a command short, at which operation, and the resumed one (0: not at all).

    `tear` and `of` are those of `forked.watch`.
    """

    at: int
    kind: str = "SIGKILL"
    again: int = 0
    tear: bool = False
    of: str = "files"


class Running:
    """A command on its way into `out`; what it says stands in `log`."""

    def __init__(self, server: "Server", out: Path, log: Path, pid: int) -> None:
        self._server, self.out, self.log, self.pid = server, out, log, pid

    def wait(self) -> End:
        return End(**self._server.ask({"wait": self.pid}))

    def kill(self) -> End:
        with contextlib.suppress(ProcessLookupError):  # it may just have come to its end
            os.kill(self.pid, signal.SIGKILL)
        return self.wait()

    def until_stopped(self) -> None:
        """Wait until a SIGSTOP has come."""
        while Path(f"/proc/{self.pid}/stat").read_text().rsplit(")")[1].split()[0] != "T":
            time.sleep(0.001)

    def last_line(self) -> str:
        return (self.log.read_text().splitlines() or [""])[-1]


class Server:
    """The process that forks a command for each request; `script` says which."""

    def __init__(self, script: str) -> None:
        self._process = subprocess.Popen(
            [sys.executable, Path(__file__).parent / script],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, **ENVIRONMENT},
        )
        assert self._answer() == {"ready": True}

    def start(
        self,
        argv: Sequence[str],
        out: Path,
        log: Path,
        *,
        end_at: int = 0,
        kind: str = "SIGKILL",
        tear: bool = False,
        of: str = "files",
    ) -> Running:
        """Begin a command; the named ones are those of `forked.watch`."""
        request = {
            "argv": list(argv),
            "out": str(out),
            "log": str(log),
            "end_at": end_at,
            "kind": kind,
            "tear": tear,
            "of": of,
        }
        return Running(self, out, log, self.ask({"start": request})["pid"])

    def ask(self, request: dict[str, Any]) -> dict[str, Any]:
        assert self._process.stdin is not None
        print(json.dumps(request), file=self._process.stdin, flush=True)
        return self._answer()

    def _answer(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        answer: dict[str, Any] = json.loads(self._process.stdout.readline())
        return answer

    def close(self) -> None:
        self._process.communicate()


class Closable(Protocol):
    """What makes use of a `Server`."""

    def close(self) -> None: ...


User = TypeVar("User", bound=Closable)


@contextlib.contextmanager
def shared_out(first: User, another: Callable[[], User], jobs: int) -> Iterator[Callable[..., Any]]:
    """Something like `map` over numbered jobs, by a server a core where there are many of them.

    Args:
        first: one that makes use of a server.
        another: makes one more.
        jobs: how many there will be.
    """
    count = len(os.sched_getaffinity(0)) if jobs > 50 else 1
    free: SimpleQueue[User] = SimpleQueue()

    def apply(function: Callable[[User, Any], Any], jobs: Sequence[Any]) -> list[Any]:
        def one(job: Any) -> Any:
            user = free.get()
            try:
                return function(user, job)
            finally:
                free.put(user)

        with ThreadPoolExecutor(count) as executor:
            return list(executor.map(one, enumerate(jobs)))

    with contextlib.ExitStack() as closing:
        free.put(first)
        for _ in range(count - 1):
            free.put(closing.enter_context(contextlib.closing(another())))
        yield apply


def cut_short(start: Callable[..., Running], out: Path, cut: Cut) -> End:
    """Cut a command short at an operation; an earlier one, should it take fewer this time.

    It may, by a few, where folders are made in several threads, which get in each other's way.
    """
    for at in range(cut.at, 0, -1):
        end = start(out, end_at=at, kind=cut.kind, tear=cut.tear, of=cut.of).wait()
        if end.operation >= at:
            return end
        shutil.rmtree(out)
    raise AssertionError(cut)
