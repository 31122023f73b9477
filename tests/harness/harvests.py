"""Real harvests in processes of their own, to be cut short: begun, waited for, compared."""

import contextlib
import hashlib
import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

LOCK = "_saeflow/lock"
LOGS = "_saeflow/log"
ENVIRONMENT = {
    "OMP_NUM_THREADS": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "HF_HUB_OFFLINE": "1",
    "HF_DATASETS_OFFLINE": "1",
}
KINDS = {"SIGKILL": -9, "SIGINT": 130, "SIGTERM": 143, "ENOSPC": 1}
"""What cuts a harvest short, and the exit code that it has to have then."""


@dataclass(frozen=True)
class End:
    """How a forked harvest ended: its exit code, and the last operation on its store."""

    code: int
    operation: int
    name: str


class Running:
    """A harvest on its way into `out`; what it says stands in `log`."""

    def __init__(self, server: "Server", out: Path, log: Path, pid: int) -> None:
        self._server, self.out, self.log, self.pid = server, out, log, pid

    def until_tokenizing(self) -> float:
        """Wait until the store says that it is there; the moment when it did."""
        while not (self.out / "zarr.json").exists():
            time.sleep(0.001)
        return time.monotonic()

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
    """The process that forks a harvest for each request."""

    def __init__(self, text: Path) -> None:
        self.text = text
        self._process = subprocess.Popen(
            [sys.executable, "-P", Path(__file__).parent / "forked_harvests.py"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, **ENVIRONMENT},
        )
        assert self._answer() == {"ready": True}

    def start(
        self,
        out: Path,
        *options: str,
        worker: str | None = None,
        end_at: int = 0,
        kind: str = "SIGKILL",
        tear: bool = False,
    ) -> Running:
        """Begin a harvest, with options besides; the last three are those of `watch`."""
        log = Path(f"{out}.log" if worker is None else f"{out}.{worker.replace('/', 'of')}.log")
        given = (*options, *(("--worker", worker) if worker else ()))
        request = {
            "argv": [*command(self.text, out), *given],
            "out": str(out),
            "log": str(log),
            "end_at": end_at,
            "kind": kind,
            "tear": tear,
        }
        return Running(self, out, log, self.ask({"start": request})["pid"])

    def run(self, out: Path, *options: str, **more: Any) -> End:
        return self.start(out, *options, **more).wait()

    def finish(self, out: Path) -> None:
        """Run a harvest to its end."""
        running = self.start(out)
        assert running.wait().code == 0, running.log.read_text()

    def workers(self, out: Path, count: int) -> list[Running]:
        """Begin a harvest with some workers at the same time."""
        return [self.start(out, worker=f"{rank}/{count}") for rank in range(count)]

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


@dataclass(frozen=True)
class Whole:
    """The harvest that was never interrupted.

    Attributes:
        server: runs the same harvest elsewhere.
        store: its folder.
        tree: what it left, as `tree_of` gives it.
        operations: how many operations on the store's files it took.
        seconds: from the appearance of the store to the end.
    """

    server: Server
    store: Path
    tree: dict[str, str]
    operations: int
    seconds: float

    @property
    def in_shards(self) -> int:
        """An operation when some shards are committed, and some still to be built."""
        return round(self.operations * 0.65)


@dataclass(frozen=True)
class Cut:
    """What cuts a harvest short, at which operation, and the resumed one (0: not at all)."""

    at: int
    kind: str = "SIGKILL"
    again: int = 0
    tear: bool = False


def command(text: Path, out: Path) -> list[str]:
    """The arguments of every harvest here: five shards of a hook point, in two splits."""
    options = {
        "model": "builtin",
        "dataset": text,
        "hook": "blocks.1.hook_resid_post",
        "out": out,
        "held-out": 0.3,
        "tokens": 2200,
        "context-size": 33,
        "batch-size": 4,
        "shard-rows": 512,
        "device": "cpu",
    }
    return ["harvest", *(str(part) for name, v in options.items() for part in (f"--{name}", v))]


def tree_of(store: Path) -> dict[str, str]:
    """sha256 of every file, empty for folders and for the lock, whose content means nothing."""
    tree = {}
    for path in sorted(store.rglob("*")):
        name = str(path.relative_to(store))
        counts = path.is_file() and name != LOCK
        tree[name] = hashlib.sha256(path.read_bytes()).hexdigest() if counts else ""
    return tree


def committed(store: Path) -> int:
    """Bytes in the logs: they grow with every shard."""
    sizes = 0
    for log in (store / LOGS).glob("*.jsonl"):
        with contextlib.suppress(FileNotFoundError):  # the store may just become complete
            sizes += log.stat().st_size
    return sizes


def until_committed(store: Path, before: int = 0) -> None:
    """Wait until the logs have grown, or the store is complete."""
    while committed(store) <= before and state_of(store) != "complete":
        time.sleep(0.001)


def state_of(store: Path) -> str:
    """How far a store is, read as anyone can read it."""
    if not (store / "zarr.json").exists():
        return "nothing yet"
    state = json.loads((store / "zarr.json").read_text())["attributes"]["saeflow"]["state"]
    commits = sum(len(log.read_bytes().splitlines()) for log in (store / LOGS).glob("*.jsonl"))
    return f"writing, {commits} shards" if state == "writing" else str(state)
