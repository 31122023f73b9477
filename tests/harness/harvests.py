"""Real harvests in processes of their own, to be cut short: begun, waited for, compared."""

import contextlib
import hashlib
import json
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from processes import End, Running, Server

LOCK = "_saeflow/lock"
LOGS = "_saeflow/log"


class Harvests:
    """The same harvest, over and over: `server` forks a process for each."""

    def __init__(self, text: Path) -> None:
        self.text, self._server = text, Server("forked_harvests.py")

    def start(self, out: Path, *options: str, worker: str | None = None, **watched: Any) -> Running:
        """Begin a harvest, with options besides; the rest are those of `forked.watch`."""
        log = Path(f"{out}.log" if worker is None else f"{out}.{worker.replace('/', 'of')}.log")
        given = (*options, *(("--worker", worker) if worker else ()))
        return self._server.start([*command(self.text, out), *given], out, log, **watched)

    def run(self, out: Path, *options: str, **more: Any) -> End:
        return self.start(out, *options, **more).wait()

    def finish(self, out: Path) -> None:
        """Run a harvest to its end."""
        running = self.start(out)
        assert running.wait().code == 0, running.log.read_text()

    def workers(self, out: Path, count: int) -> list[Running]:
        """Begin a harvest with some workers at the same time."""
        return [self.start(out, worker=f"{rank}/{count}") for rank in range(count)]

    def close(self) -> None:
        self._server.close()


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

    server: Harvests
    store: Path
    tree: dict[str, str]
    operations: int
    seconds: float

    @property
    def in_shards(self) -> int:
        """An operation when some shards are committed, and some still to be built."""
        return round(self.operations * 0.65)


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


def until_tokenizing(store: Path) -> float:
    """Wait until a store says that it is there; the moment when it did."""
    while not (store / "zarr.json").exists():
        time.sleep(0.001)
    return time.monotonic()


def committed(store: Path) -> int:
    """Bytes in the logs: they grow with every shard."""
    sizes = 0
    with contextlib.suppress(FileNotFoundError):  # the store may just become complete
        for log in (store / LOGS).glob("*.jsonl"):
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
