"""A harvest that was killed, and run again, leaves the bytes of one that never was.

The interpreter, torch and transformer-lens take ten seconds to start, so most
harvests here are forked from a process that has them imported (this file, run as
a script): a real `saeflow harvest` in a process of its own, and a real kill, at a
second apiece. The forked process can also count the operations on its store's
files, and kill itself at any one of them.
"""

import contextlib
import hashlib
import json
import mmap
import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import pytest

LOCK = "_saeflow/lock"
LOG = "_saeflow/log/rank00000.jsonl"
ENVIRONMENT = {
    "OMP_NUM_THREADS": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "HF_HUB_OFFLINE": "1",
    "HF_DATASETS_OFFLINE": "1",
}
REQUIRED = {signal.SIGKILL: -9, signal.SIGTERM: 143, signal.SIGINT: 130}
"""How the command has to end when it gets a signal while it harvests."""


@dataclass(frozen=True)
class End:
    """How a forked harvest ended: its exit code, and the last operation on its store."""

    code: int
    operation: int
    name: str


class Running:
    """A harvest on its way into `out`."""

    def __init__(self, server: "Server", out: Path, pid: int) -> None:
        self._server, self.out, self.pid = server, out, pid

    def until_tokenizing(self) -> float:
        """Wait until the store says that it is there; the moment when it did."""
        while not (self.out / "zarr.json").exists():
            time.sleep(0.001)
        return time.monotonic()

    def wait(self) -> End:
        return End(**self._server.answer())

    def kill(self) -> End:
        with contextlib.suppress(ProcessLookupError):  # it may just have come to its end
            os.kill(self.pid, signal.SIGKILL)
        return self.wait()


class Server:
    """The process that has everything imported, and forks a harvest for each request."""

    def __init__(self, text: Path) -> None:
        self._text = text
        self._process = subprocess.Popen(
            [sys.executable, "-P", __file__],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, **ENVIRONMENT},
        )
        assert self.answer() == {"ready": True}

    def start(self, out: Path, *options: str, kill_at: int = 0, tear: bool = False) -> Running:
        """Begin a harvest, with options besides; `kill_at` and `tear` are those of `_watch`."""
        argv = [*command(self._text, out), *options]
        request = {"argv": argv, "out": str(out), "kill_at": kill_at, "tear": tear}
        assert self._process.stdin is not None
        print(json.dumps(request), file=self._process.stdin, flush=True)
        return Running(self, out, self.answer()["pid"])

    def run(self, out: Path, *options: str, kill_at: int = 0, tear: bool = False) -> End:
        return self.start(out, *options, kill_at=kill_at, tear=tear).wait()

    def finish(self, out: Path) -> None:
        """Run a harvest to its end."""
        end = self.run(out)
        assert end.code == 0, Path(f"{out}.log").read_text()

    def answer(self) -> dict[str, Any]:
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
        tree: what it left, as `tree_of` gives it.
        operations: how many operations on the store's files it took.
        seconds: from the appearance of the store to the end.
    """

    server: Server
    tree: dict[str, str]
    operations: int
    seconds: float


@dataclass(frozen=True)
class Kills:
    """At which operation a harvest is killed, at which the resumed one (0: not at all), how."""

    at: int
    again: int = 0
    tear: bool = False


def command(text: Path, out: Path) -> list[str]:
    """The arguments of every harvest here: seven shards of a hook point, in two splits."""
    options = {
        "model": "builtin",
        "dataset": text,
        "hook": "blocks.1.hook_resid_post",
        "out": out,
        "held-out": 0.3,
        "tokens": 3200,
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


def state_of(store: Path) -> str:
    """How far a store is, read as anyone can read it."""
    state = json.loads((store / "zarr.json").read_text())["attributes"]["saeflow"]["state"]
    log = store / LOG
    commits = len(log.read_bytes().splitlines()) if log.exists() else 0
    return f"writing, {commits} shards" if state == "writing" else str(state)


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Forty documents of the built-in text, 500 characters of each."""
    from saeflow.harvest.builtin import builtin_documents

    file = tmp_path_factory.mktemp("interrupted") / "text.jsonl"
    lines = [json.dumps({"text": text[:500]}) for text in islice(builtin_documents(), 40)]
    file.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return file


@pytest.fixture(scope="module")
def whole(text: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Whole]:
    server = Server(text)
    out = tmp_path_factory.mktemp("interrupted") / "whole"
    running = server.start(out)
    began = running.until_tokenizing()
    end = running.wait()
    seconds = time.monotonic() - began
    assert end.code == 0, Path(f"{out}.log").read_text()
    tree = tree_of(out)
    assert "acts/blocks.1.hook_resid_post/c/2/0" in tree
    assert "heldout/acts/blocks.1.hook_resid_post/c/1/0" in tree
    yield Whole(server, tree, end.operation, seconds)
    server.close()


def test_two_uninterrupted_harvests_are_byte_identical(whole: Whole, tmp_path: Path) -> None:
    whole.server.finish(tmp_path / "store")
    assert tree_of(tmp_path / "store") == whole.tree


def test_kill_at_ten_random_moments(whole: Whole, tmp_path: Path) -> None:
    draw = random.Random(7)
    met: Counter[str] = Counter()
    for tenth in range(10):
        out = tmp_path / str(tenth)
        met[_kill_after(whole, out, whole.seconds * (tenth + draw.random()) / 10)] += 1
        whole.server.finish(out)
        assert tree_of(out) == whole.tree, tenth
    print(f"10 of 10 byte-identical after kill -9; killed in state {dict(met)}")


def _kill_after(whole: Whole, out: Path, delay: float) -> str:
    """Kill a harvest some seconds after its store appeared; earlier, should it end before that."""
    while True:
        running = whole.server.start(out)
        running.until_tokenizing()
        time.sleep(delay)
        if running.kill().code == -signal.SIGKILL:
            return state_of(out)
        out.rename(f"{out}-ended-{delay}")
        delay *= 0.7


def test_one_harvest_killed_again_and_again(whole: Whole, tmp_path: Path) -> None:
    draw = random.Random(8)
    out, log, kills = tmp_path / "store", tmp_path / "store" / LOG, 0
    while not (out / "zarr.json").exists() or state_of(out) != "complete":
        before = log.stat().st_size if log.exists() else 0
        running = whole.server.start(out)
        running.until_tokenizing()
        while not _moved_on(log, before) and state_of(out) != "complete":
            time.sleep(0.001)
        time.sleep(draw.random() * 0.05)
        kills += running.kill().code == -signal.SIGKILL
    whole.server.finish(out)
    assert tree_of(out) == whole.tree
    print(f"byte-identical after {kills} kills of one harvest")


def _moved_on(log: Path, before: int) -> bool:
    return log.exists() and log.stat().st_size > before


def test_kill_at_some_operations(whole: Whole, tmp_path: Path) -> None:
    step = (whole.operations - 1) / 9
    points = sorted({*range(1, 9), *(1 + round(step * tenth) for tenth in range(10))})
    assert _survived(whole, tmp_path, _torn_by_half(points)) == len(points)


def test_kill_of_the_resumed_harvest_too(whole: Whole, tmp_path: Path) -> None:
    middle = whole.operations // 2
    kills = [Kills(100, 12), Kills(120, 40), Kills(middle, 3), Kills(middle, 60)]
    assert _survived(whole, tmp_path, kills) == len(kills)


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_kill_at_every_operation(whole: Whole, tmp_path: Path) -> None:
    points = list(range(1, whole.operations + 1))
    assert _survived(whole, tmp_path, _torn_by_half(points)) == whole.operations


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_kill_of_the_resumed_harvest_at_its_first_operations(whole: Whole, tmp_path: Path) -> None:
    draw = random.Random(10)
    kills = [Kills(draw.randint(1, whole.operations), again) for again in range(1, 61)]
    assert _survived(whole, tmp_path, kills) == len(kills)


def _torn_by_half(points: list[int]) -> list[Kills]:
    draw = random.Random(11)
    return [Kills(point, tear=draw.random() < 0.5) for point in points]


def _survived(whole: Whole, folder: Path, kills: list[Kills]) -> int:
    """Kill at file operations, finish the harvest, compare; how many came out as they should."""
    lost = []
    for number, kill in enumerate(kills):
        out = folder / str(number)
        ends = [whole.server.run(out, kill_at=kill.at, tear=kill.tear)]
        if kill.again:
            ends.append(whole.server.run(out, kill_at=kill.again))
        code = whole.server.run(out).code
        if code != 0 or tree_of(out) != whole.tree:
            told = Path(f"{out}.log").read_text().splitlines()[-1:]
            lost.append(f"{[end.name for end in ends]}: exit code {code}, {told}")
    survived = len(kills) - len(lost)
    print(f"{survived} of {len(kills)} byte-identical after kill -9 at a file operation")
    print(*lost, sep="\n")
    return survived


@pytest.mark.parametrize("kill_at", [20, 90])
def test_kill_while_a_store_is_thrown_away(whole: Whole, tmp_path: Path, kill_at: int) -> None:
    out = tmp_path / "store"
    whole.server.finish(out)
    assert whole.server.run(out, "--overwrite", kill_at=kill_at).code == -signal.SIGKILL
    whole.server.finish(out)
    assert tree_of(out) == whole.tree


def test_a_log_line_cut_short_is_built_again(whole: Whole, tmp_path: Path) -> None:
    out = tmp_path / "store"
    running = whole.server.start(out)
    while not _moved_on(out / LOG, 0):
        time.sleep(0.001)
    running.kill()
    os.truncate(out / LOG, (out / LOG).stat().st_size - 40)
    whole.server.finish(out)
    assert tree_of(out) == whole.tree


@pytest.mark.parametrize("number", REQUIRED, ids=lambda number: signal.Signals(number).name)
def test_signal_to_the_command(
    number: signal.Signals, whole: Whole, text: Path, tmp_path: Path
) -> None:
    out = tmp_path / "store"
    process = subprocess.Popen(
        [sys.executable, "-m", "saeflow", *command(text, out)],
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, **ENVIRONMENT},
    )
    while not _moved_on(out / LOG, 0) and process.poll() is None:
        time.sleep(0.001)
    process.send_signal(number)
    told = process.communicate()[1]
    assert process.returncode == REQUIRED[number], told
    assert "Traceback" not in told
    assert state_of(out).startswith("writing")
    whole.server.finish(out)
    assert tree_of(out) == whole.tree


# What follows runs in the server and in the processes that it forks.


def _serve() -> None:
    import datasets  # noqa: F401  # imported once for all the forks

    from saeflow.harvest.models import ModelSpec, load_model

    load_model(ModelSpec(name="builtin"))  # loads the modules of the model's architecture
    note = mmap.mmap(-1, 4096)  # shared with the forked process, so it outlives a kill
    _answer({"ready": True})
    for line in sys.stdin:
        request = json.loads(line)
        note[:] = bytes(4096)
        pid = os.fork()
        if pid == 0:
            os._exit(_harvest(request, note))
        _answer({"pid": pid})
        _, status = os.waitpid(pid, 0)
        count, name = json.loads(note[:].rstrip(b"\0") or b'[0, ""]')
        _answer({"code": os.waitstatus_to_exitcode(status), "operation": count, "name": name})


def _answer(value: dict[str, Any]) -> None:
    print(json.dumps(value), flush=True)


def _harvest(request: dict[str, Any], note: mmap.mmap) -> int:
    """One harvest in the forked process; what it says goes to a file beside the store."""
    import torch

    from saeflow.cli import main

    # Makes torch's thread pool anew, which two threads at once can't after a fork (torch 2.13).
    torch.set_num_threads(1)
    log = os.open(f"{request['out']}.log", os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    os.dup2(log, 1)
    os.dup2(log, 2)
    _watch(request["out"], note, request["kill_at"], tear=request["tear"])
    sys.argv = ["saeflow", *request["argv"]]
    try:
        main()
    except SystemExit as stop:
        return stop.code if isinstance(stop.code, int) else int(stop.code is not None)
    return 0


def _watch(store: str, note: mmap.mmap, kill_at: int, *, tear: bool) -> None:
    """Count the operations that change files under a store, and kill this process at one.

    The kill comes before the operation. Where that is the renaming of a temporary
    file and `tear` is set, half of the file is cut off first, as if the kill had come
    while it was written.
    """
    count, killed = 0, False

    def hook(event: str, args: tuple[Any, ...]) -> None:
        nonlocal count, killed
        path = _changed(event, args)
        if killed or path is None or not f"{path}/".startswith(f"{store}/"):
            return
        count += 1
        told = json.dumps([count, f"{event} {os.path.relpath(path, store)}"]).encode()
        note[:] = told.ljust(len(note), b"\0")
        if count == kill_at:
            killed = True
            if tear and event == "os.rename" and path.endswith(".partial"):
                os.truncate(path, os.path.getsize(path) // 2)  # noqa: PTH202
            os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(hook)


_WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC
_FOLDER_ARGUMENT = {"os.rename": 2, "os.remove": 1, "os.rmdir": 1, "os.mkdir": 2}
"""Where the descriptor of the folder stands that a relative path is relative to."""


def _changed(event: str, args: tuple[Any, ...]) -> str | None:
    """The path of the file that an audit event is about to change, if it is about to."""
    if event == "os.truncate" or (event == "open" and args[2] & _WRITING):
        folder = -1
    elif event in _FOLDER_ARGUMENT:
        folder = args[_FOLDER_ARGUMENT[event]]
    else:
        return None
    if isinstance(args[0], int):
        return os.readlink(f"/proc/self/fd/{args[0]}")  # noqa: PTH115
    path = os.fsdecode(args[0])
    return os.path.join(os.readlink(f"/proc/self/fd/{folder}"), path) if folder >= 0 else path  # noqa: PTH115, PTH118


if __name__ == "__main__":
    _serve()
