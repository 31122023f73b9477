"""A harvest that was cut short, and run again, leaves the bytes of one that never was.

Whatever cut it short: SIGKILL, SIGINT, SIGTERM or a full disk, at any operation on
the store's files or at any moment between two, once or again and again. A part of it
all, and of `test_workers.py` beside it, runs every time; the whole, with

    pytest -n 0 -m slow -s tests/interrupted
"""

import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr
from harvests import (
    LOGS,
    Harvests,
    Whole,
    command,
    committed,
    state_of,
    tree_of,
    until_committed,
    until_tokenizing,
)
from processes import ENVIRONMENT, KINDS, Cut, cut_short, shared_out


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
        until_tokenizing(out)
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
    server, text = whole.server, whole.server.text
    with shared_out(server, lambda: Harvests(text), len(cuts)) as apply:
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


def _loss(whole: Whole, server: Harvests, folder: Path, number: int, cut: Cut) -> str:
    """What went wrong with one harvest that was cut short, or nothing."""
    out = folder / str(number)
    end = cut_short(server.start, out, cut)
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
