"""A harvest that was cut short, and run again, leaves the bytes of one that never was.

Whatever cut it short: SIGKILL, SIGINT, SIGTERM or a full disk, at any operation on
the store's files or at any moment between two, once or again and again; and however
many workers it had before and after. The harvests are real processes, forked by
`harness/forked_harvests.py`. A part of it all runs every time; the whole, with

    pytest -m slow -s tests/test_interrupted_harvest.py
"""

import contextlib
import hashlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from queue import SimpleQueue
from typing import Any

import numpy as np
import pytest
import zarr

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
            [sys.executable, "-P", Path(__file__).parent / "harness/forked_harvests.py"],
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


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Forty documents of the built-in text, 500 characters of each."""
    from saeflow.harvest.builtin import builtin_documents

    file = tmp_path_factory.mktemp("interrupted") / "text.jsonl"
    lines = [json.dumps({"text": text[:500]}) for text in islice(builtin_documents(), 40)]
    file.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return file


@pytest.fixture(scope="module")
def server(text: Path) -> Iterator[Server]:
    with contextlib.closing(Server(text)) as server:
        yield server


@pytest.fixture(scope="module")
def whole(server: Server, tmp_path_factory: pytest.TempPathFactory) -> Whole:
    out = tmp_path_factory.mktemp("interrupted") / "whole"
    running = server.start(out)
    began = running.until_tokenizing()
    end = running.wait()
    seconds = time.monotonic() - began
    assert end.code == 0, running.log.read_text()
    tree = tree_of(out)
    assert "acts/blocks.1.hook_resid_post/c/2/0" in tree
    assert "heldout/acts/blocks.1.hook_resid_post/c/0/0" in tree
    return Whole(server, out, tree, end.operation, seconds)


def test_two_uninterrupted_harvests_are_byte_identical(whole: Whole, tmp_path: Path) -> None:
    whole.server.finish(tmp_path / "store")
    assert tree_of(tmp_path / "store") == whole.tree


def test_no_row_is_lost_and_none_is_repeated(whole: Whole) -> None:
    """So it is in every store here, since all of them are the same bytes."""
    root = zarr.open_group(whole.store, mode="r")
    about: Any = root.attrs["saeflow"]
    splits = about["layout"]["splits"]
    for folder, split in (("", splits["train"]), ("heldout/", splits["heldout"])):
        sequence, position = (np.asarray(root[f"{folder}{name}"]) for name in ("seq", "pos"))
        rows = set(zip(sequence.tolist(), position.tolist(), strict=True))
        assert rows == {(s, p) for s in range(split["n_sequences"]) for p in range(1, 33)}
        assert len(sequence) == len(rows) == split["n_rows"]


# Killed at any moment.


def test_kill_at_some_random_moments(whole: Whole, tmp_path: Path) -> None:
    assert _survived_moments(whole, tmp_path, 4) == 4


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_kill_at_200_random_moments(whole: Whole, tmp_path: Path) -> None:
    assert _survived_moments(whole, tmp_path, 200) == 200


def _survived_moments(whole: Whole, folder: Path, count: int) -> int:
    """Kill at random moments, spread over a harvest's time; how many came out as they should."""
    draw, met = random.Random(7), Counter[str]()
    survived = 0
    for number in range(count):
        out = folder / str(number)
        met[_kill_after(whole, out, whole.seconds * (number + draw.random()) / count)] += 1
        survived += whole.server.run(out).code == 0 and tree_of(out) == whole.tree
        shutil.rmtree(out)
    print(f"{survived} of {count} byte-identical after kill -9 at a random moment; {dict(met)}")
    return survived


def _kill_after(whole: Whole, out: Path, delay: float) -> str:
    """Kill a harvest some seconds after its store appeared; earlier, should it end before that."""
    while True:
        running = whole.server.start(out)
        running.until_tokenizing()
        time.sleep(delay)
        if running.kill().code == -signal.SIGKILL:
            return state_of(out)
        shutil.rmtree(out)
        delay *= 0.7


def test_one_harvest_killed_again_and_again(whole: Whole, tmp_path: Path) -> None:
    draw = random.Random(8)
    out, kills = tmp_path / "store", 0
    while state_of(out) != "complete":
        before = committed(out)
        running = whole.server.start(out)
        until_committed(out, before)
        time.sleep(draw.random() * 0.05)
        kills += running.kill().code == -signal.SIGKILL
    whole.server.finish(out)
    assert tree_of(out) == whole.tree
    print(f"byte-identical after {kills} kills of one harvest")


# Cut short at an operation on a file.


@pytest.mark.parametrize("kind", KINDS)
def test_cut_short_at_some_operations(whole: Whole, tmp_path: Path, kind: str) -> None:
    """One where the lock is taken, some of the skeleton and of shards, and the last one."""
    points = [4, *(round(whole.operations * part) for part in (0.3, 0.7, 0.99))]
    assert _survived(whole, tmp_path, _torn_by_half(points, kind)) == len(points)


@pytest.mark.slow
@pytest.mark.timeout(7200)
@pytest.mark.parametrize("kind", KINDS)
def test_cut_short_at_every_operation(whole: Whole, tmp_path: Path, kind: str) -> None:
    points = list(range(1, whole.operations + 1))
    assert _survived(whole, tmp_path, _torn_by_half(points, kind)) == whole.operations


def test_kill_of_the_resumed_harvest_too(whole: Whole, tmp_path: Path) -> None:
    early, late = whole.operations // 4, whole.in_shards
    cuts = [Cut(early, again=12), Cut(late, again=3), Cut(late, again=60)]
    assert _survived(whole, tmp_path, cuts) == len(cuts)


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_kill_of_the_resumed_harvest_at_its_first_operations(whole: Whole, tmp_path: Path) -> None:
    draw = random.Random(10)
    cuts = [Cut(draw.randint(1, whole.operations), again=again) for again in range(1, 61, 3)]
    assert _survived(whole, tmp_path, cuts) == len(cuts) == 20


def _torn_by_half(points: list[int], kind: str) -> list[Cut]:
    draw = random.Random(11)
    return [Cut(point, kind, tear=kind == "SIGKILL" and draw.random() < 0.5) for point in points]


def _survived(whole: Whole, folder: Path, cuts: Sequence[Cut]) -> int:
    """Cut harvests short, finish them, compare; how many came out as they should."""
    with _servers(whole, len(os.sched_getaffinity(0)) if len(cuts) > 50 else 1) as apply:
        lost = [
            loss
            for loss in apply(lambda server, job: _loss(whole, server, folder, *job), cuts)
            if loss
        ]
    survived = len(cuts) - len(lost)
    kind = f"{cuts[0].kind}, twice," if cuts[0].again else cuts[0].kind
    print(f"{survived} of {len(cuts)} byte-identical after {kind} at a file operation")
    print(*lost, sep="\n")
    return survived


def _loss(whole: Whole, server: Server, folder: Path, number: int, cut: Cut) -> str:
    """What went wrong with one harvest that was cut short, or nothing."""
    out = folder / str(number)
    end = _cut_short(server, out, cut)
    told = f"{cut.kind} at {end.operation}, {end.name}: exit code {end.code}"
    # An error may also come where it does no harm, and be none then.
    whole_all_the_same = cut.kind == "ENOSPC" and end.code == 0 and state_of(out) == "complete"
    right = end.code == KINDS[cut.kind] or whole_all_the_same
    if cut.again:
        end = server.run(out, end_at=cut.again, kind=cut.kind)
        told += f", then at {end.operation}, {end.name}: exit code {end.code}"
    code = server.run(out).code
    if not right or code != 0 or tree_of(out) != whole.tree:
        return f"{told}, at last {code}; {Path(f'{out}.log').read_text()[-3000:]}"
    shutil.rmtree(out)
    return ""


def _cut_short(server: Server, out: Path, cut: Cut) -> End:
    """Cut a harvest short at an operation; an earlier one, should it take fewer this time.

    It may, by a few: zarr makes folders in several threads, which get in each other's way.
    """
    for at in range(cut.at, 0, -1):
        end = server.run(out, end_at=at, kind=cut.kind, tear=cut.tear)
        if end.operation >= at:
            return end
        shutil.rmtree(out)
    raise AssertionError(cut)


@contextlib.contextmanager
def _servers(whole: Whole, count: int) -> Iterator[Callable[..., Any]]:
    """Something like `map` over numbered jobs, by so many servers at a time."""
    free: SimpleQueue[Server] = SimpleQueue()

    def apply(function: Callable[[Server, Any], Any], jobs: Sequence[Any]) -> list[Any]:
        def one(job: Any) -> Any:
            server = free.get()
            try:
                return function(server, job)
            finally:
                free.put(server)

        with ThreadPoolExecutor(count) as executor:
            return list(executor.map(one, enumerate(jobs)))

    with contextlib.ExitStack() as closing:
        free.put(whole.server)
        for _ in range(count - 1):
            free.put(closing.enter_context(contextlib.closing(Server(whole.server.text))))
        yield apply


@pytest.mark.parametrize("end_at", [20, 90])
def test_kill_while_a_store_is_thrown_away(whole: Whole, tmp_path: Path, end_at: int) -> None:
    out = tmp_path / "store"
    whole.server.finish(out)
    assert whole.server.run(out, "--overwrite", end_at=end_at).code == -signal.SIGKILL
    whole.server.finish(out)
    assert tree_of(out) == whole.tree


def test_a_log_line_cut_short_is_built_again(whole: Whole, tmp_path: Path) -> None:
    out = tmp_path / "store"
    whole.server.run(out, end_at=whole.in_shards)
    log = out / LOGS / "rank00000.jsonl"
    os.truncate(log, log.stat().st_size - 40)
    whole.server.finish(out)
    assert tree_of(out) == whole.tree


@pytest.mark.parametrize(
    "number", [signal.SIGINT, pytest.param(signal.SIGTERM, marks=pytest.mark.slow)]
)
def test_signal_to_the_command(
    number: signal.Signals, whole: Whole, text: Path, tmp_path: Path
) -> None:
    for out in (tmp_path / "store", tmp_path / "another try"):
        process = subprocess.Popen(
            [sys.executable, "-m", "saeflow", *command(text, out)],
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, **ENVIRONMENT},
            # A shell starts its background jobs, and so what they start, deaf to SIGINT.
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        )
        until_committed(out)
        process.send_signal(number)
        told = process.communicate()[1]
        if process.returncode:  # else it had come to its end before
            break
    assert process.returncode == KINDS[number.name], told
    assert "Traceback" not in told
    assert state_of(out).startswith("writing")
    whole.server.finish(out)
    assert tree_of(out) == whole.tree


# A full disk.


def test_a_full_disk(whole: Whole, tmp_path: Path) -> None:
    """The kernel's own: a file that is to be written is the device that is always full."""
    out = tmp_path / "store"
    whole.server.run(out, end_at=whole.in_shards)
    path = out / "heldout/acts/blocks.1.hook_resid_post/c/0/0"
    path.parent.mkdir(parents=True)
    partial = path.with_name("0.partial")
    partial.symlink_to("/dev/full")
    running = whole.server.start(out)
    assert running.wait().code == 1
    assert running.last_line() == (
        f"saeflow: no space left on the disk of {path}: make room, then run again"
    )
    partial.unlink()
    whole.server.finish(out)
    assert tree_of(out) == whole.tree


# Many writers.


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
    first.until_tokenizing()
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
