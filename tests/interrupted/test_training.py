"""A run that was cut short, and run again, leaves the bytes of one that never was.

Whatever cut it short: SIGKILL, SIGINT, SIGTERM or a full disk, at any step or at any
operation on the run's files (they are opened, written, flushed, renamed and removed),
once or twice. A part of it all runs every time; the whole, as `test_cut_short.py` says.
"""

import contextlib
import functools
import os
import random
import re
import shutil
import signal
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest
from processes import KINDS, Cut, End, cut_short, shared_out
from trainings import (
    BATCH,
    CHECKPOINT_EVERY,
    N_STEPS,
    VARIANTS,
    Trainings,
    Whole,
    checkpoints_of,
    contents_of,
    is_complete,
    last_logged,
)

WholeOf = Callable[[str], Whole]


@pytest.fixture(scope="module")
def trainings(tiny_store: Path) -> Iterator[Trainings]:
    with contextlib.closing(Trainings(tiny_store)) as trainings:
        yield trainings


@pytest.fixture(scope="module")
def whole_of(trainings: Trainings, tmp_path_factory: pytest.TempPathFactory) -> WholeOf:
    """The run of a variant that all others of it are held against."""

    @functools.cache
    def whole(variant: str) -> Whole:
        out = tmp_path_factory.mktemp("trainings") / "whole"
        running = trainings.start(variant, out)
        end = running.wait()
        assert end.code == 0, running.log.read_text()
        assert is_complete(out, variant)
        assert last_logged(out) == N_STEPS
        return Whole(trainings, variant, contents_of(out), end.operation)

    return whole


def test_two_uninterrupted_runs_are_byte_identical(whole_of: WholeOf, tmp_path: Path) -> None:
    whole = whole_of("topk")
    whole.trainings.finish("topk", tmp_path / "run")
    assert contents_of(tmp_path / "run") == whole.contents


def test_latents_are_resampled_here(whole_of: WholeOf, tmp_path: Path) -> None:
    whole = whole_of("relu, resampler")
    whole.trainings.run("relu, resampler", tmp_path / "run", "--resample-threshold=0")
    weights = "sae/blocks.0.hook_resid_post-relu-48/sae_weights.safetensors"
    assert contents_of(tmp_path / "run")[weights] != whole.contents[weights]


# Cut short at a step.


@pytest.mark.parametrize("variant", ["topk", "jumprelu, warm-ups", "relu, resampler"])
def test_kill_at_a_step(whole_of: WholeOf, tmp_path: Path, variant: str) -> None:
    assert _survived(whole_of(variant), tmp_path, [Cut(33, of=BATCH)]) == 1


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("variant", VARIANTS)
def test_kill_at_every_step(whole_of: WholeOf, tmp_path: Path, variant: str) -> None:
    cuts = [Cut(step, of=BATCH) for step in range(1, N_STEPS + 1)]
    assert _survived(whole_of(variant), tmp_path, cuts) == N_STEPS == 60


@pytest.mark.parametrize("kind", ["SIGTERM", "SIGINT"])
@pytest.mark.parametrize(
    "steps", [[24], pytest.param(range(1, N_STEPS + 1), marks=pytest.mark.slow)], ids=["one", "all"]
)
def test_a_signal_is_heeded_after_the_step(
    whole_of: WholeOf, tmp_path: Path, kind: str, steps: Sequence[int]
) -> None:
    """And that step has its checkpoint: see `_unheeded`."""
    cuts = [Cut(step, kind, of=BATCH) for step in steps]
    assert _survived(whole_of("topk"), tmp_path, cuts) == len(cuts)


def test_kill_of_the_resumed_run_too(whole_of: WholeOf, tmp_path: Path) -> None:
    assert _survived(whole_of("relu, resampler"), tmp_path, [Cut(17, again=12, of=BATCH)]) == 1


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("variant", VARIANTS)
def test_kill_of_the_resumed_run_at_20_random_steps(
    whole_of: WholeOf, tmp_path: Path, variant: str
) -> None:
    """Some fall before its first checkpoint, some after it."""
    draw = random.Random(13)
    cuts = [Cut(draw.randint(2, 40), again=draw.randint(1, 20), of=BATCH) for _ in range(20)]
    assert _survived(whole_of(variant), tmp_path, cuts) == 20


# Cut short at an operation on a file.


@pytest.mark.parametrize("kind", KINDS)
def test_cut_short_at_some_operations(whole_of: WholeOf, tmp_path: Path, kind: str) -> None:
    """In a checkpoint, and at the renaming of the SAE's folder."""
    whole = whole_of("topk")
    points = [whole.operations // 2, whole.operations - 9][: 2 if kind == "SIGKILL" else 1]
    cuts = [Cut(point, kind, tear=kind == "SIGKILL") for point in points]
    assert _survived(whole, tmp_path, cuts) == len(cuts)


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("variant", VARIANTS)
def test_kill_at_every_operation(whole_of: WholeOf, tmp_path: Path, variant: str) -> None:
    whole = whole_of(variant)
    points = list(range(1, whole.operations + 1))
    draw = random.Random(11)
    cuts = [Cut(point, tear=draw.random() < 0.5) for point in points]
    assert _survived(whole, tmp_path, cuts) == whole.operations


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "SIGKILL"])
def test_cut_short_at_every_operation(whole_of: WholeOf, tmp_path: Path, kind: str) -> None:
    whole = whole_of("topk")
    cuts = [Cut(point, kind) for point in range(1, whole.operations + 1)]
    assert _survived(whole, tmp_path, cuts) == whole.operations


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_kill_of_the_resumed_run_at_its_first_operations(whole_of: WholeOf, tmp_path: Path) -> None:
    draw, whole = random.Random(14), whole_of("topk")
    cuts = [Cut(draw.randint(1, whole.operations), again=again) for again in range(1, 61)]
    assert _survived(whole, tmp_path, cuts) == 60


def _survived(whole: Whole, folder: Path, cuts: Sequence[Cut]) -> int:
    """Cut runs short, finish them, compare; how many came out as they should."""
    trainings = whole.trainings
    with shared_out(trainings, lambda: Trainings(trainings.store), len(cuts)) as apply:
        lost = [
            loss
            for loss in apply(lambda server, job: _loss(whole, server, folder, *job), cuts)
            if loss
        ]
    survived, first = len(cuts) - len(lost), cuts[0]
    how = f"{first.kind}, twice," if first.again else first.kind
    where = "a step" if first.of == BATCH else "a file operation"
    print(f"{whole.variant}: {survived} of {len(cuts)} byte-identical after {how} at {where}")
    print(*lost, sep="\n")
    return survived


def _loss(whole: Whole, trainings: Trainings, folder: Path, number: int, cut: Cut) -> str:
    """What went wrong with one run that was cut short, or nothing."""
    out = folder / str(number)
    log = Path(f"{out}.log")
    start = functools.partial(trainings.start, whole.variant)
    end = cut_short(start, out, cut)
    told = f"{cut.kind} at {end.operation}, {end.name}: exit code {end.code}"
    found = _unheeded(whole, out, cut, end) or _steps_lost(whole, out)
    if cut.again:
        end = start(out, end_at=cut.again, kind=cut.kind, of=cut.of).wait()
        told += f", then at {end.operation}, {end.name}: exit code {end.code}"
        found = found or _steps_lost(whole, out)
    code = start(out).wait().code
    if found or code != 0 or contents_of(out) != whole.contents:
        others = [k for k, v in contents_of(out).items() if whole.contents.get(k) != v]
        return f"{told}; {found}; at last {code}, other {others}; {log.read_text()[-3000:]}"
    shutil.rmtree(out)
    log.unlink()
    return ""


def _unheeded(whole: Whole, out: Path, cut: Cut, end: End) -> str:
    """What is not right about how a run ended, or nothing."""
    said = Path(f"{out}.log").read_text()
    if end.code == 0 and cut.kind != "SIGKILL" and is_complete(out, whole.variant):
        return ""  # an error may come where it does no harm, a signal when all is done
    if end.code != KINDS[cut.kind]:
        return "another exit code"
    if "Traceback" in said:
        return "a traceback"
    place = rf"saeflow: no space left on the disk of {re.escape(str(out))}[^:]*: make room, .*\n"
    if cut.kind == "ENOSPC" and not re.search(place + r"\Z", said):
        return "not the line that it should be"
    noted = cut.of == BATCH or "saving a checkpoint, then stopping" in said
    if noted and cut.kind in ("SIGTERM", "SIGINT"):
        stopped = re.search(r"stopped after step (\d+): run it again", said)
        if stopped is None or int(stopped[1]) not in checkpoints_of(out):
            return "no checkpoint of the step"
    return ""


def _steps_lost(whole: Whole, out: Path) -> str:
    """Whether more is lost than what came after the last checkpoint but one, or nothing."""
    if is_complete(out, whole.variant):
        return ""
    expected = (last_logged(out) - 1) // CHECKPOINT_EVERY * CHECKPOINT_EVERY - CHECKPOINT_EVERY
    newest = max(checkpoints_of(out), default=0)
    return "" if newest >= expected else f"only a checkpoint of step {newest}"


# Other ways in which a run may be left.


def test_a_second_signal_ends_it_at_once(whole_of: WholeOf, tmp_path: Path) -> None:
    whole, out = whole_of("topk"), tmp_path / "run"
    running = whole.trainings.start("topk", out, end_at=30, kind="SIGSTOP", of=BATCH)
    running.until_stopped()
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGCONT):
        os.kill(running.pid, number)
    assert running.wait().code in (130, 143)
    assert checkpoints_of(out) == [21, 28]
    whole.trainings.finish("topk", out)
    assert contents_of(out) == whole.contents


@pytest.mark.parametrize(
    "points", [[6], pytest.param(range(1, 15), marks=pytest.mark.slow)], ids=["one", "all"]
)
@pytest.mark.parametrize("kept", ["checkpoints", "SAEs"])
def test_kill_while_a_run_is_thrown_away(
    whole_of: WholeOf, tmp_path: Path, points: Sequence[int], kept: str
) -> None:
    """What is left of it never counts as a run."""
    whole = whole_of("topk")
    before = tmp_path / "before"
    whole.trainings.run("topk", before, end_at=30 if kept == "checkpoints" else 0, of=BATCH)
    for point in points:
        out = tmp_path / str(point)
        shutil.copytree(before, out)
        for path in (out / "config.toml", *out.glob("sae/*/cfg.json")):
            path.write_text(path.read_text().replace(str(before), str(out)))
        end = whole.trainings.run("topk", out, "--overwrite", end_at=point)
        assert end.code == -signal.SIGKILL
        whole.trainings.finish("topk", out)
        assert contents_of(out) == whole.contents, end


def test_a_line_cut_short_is_written_again(whole_of: WholeOf, tmp_path: Path) -> None:
    whole, out = whole_of("topk"), tmp_path / "run"
    whole.trainings.run("topk", out, end_at=27, of=BATCH)
    assert last_logged(out) == 25
    metrics = out / "metrics.jsonl"
    os.truncate(metrics, metrics.stat().st_size - 40)
    whole.trainings.finish("topk", out)
    assert contents_of(out) == whole.contents


def test_a_second_run_into_the_folder_is_refused(whole_of: WholeOf, tmp_path: Path) -> None:
    whole, out = whole_of("topk"), tmp_path / "run"
    first = whole.trainings.start("topk", out, end_at=30, kind="SIGSTOP", of=BATCH)
    first.until_stopped()
    before = contents_of(out)
    for options in ((), ("--overwrite",), ("--k=5",)):
        first.log.write_text("")
        second = whole.trainings.start("topk", out, *options)
        assert second.wait().code == 2
        assert second.log.read_text() == (
            f"saeflow: --out {out}: another saeflow train is at it: "
            "wait for it, or name another folder\n"
        )
    assert contents_of(out) == before
    os.kill(first.pid, signal.SIGCONT)
    assert first.wait().code == 0
    assert contents_of(out) == whole.contents


def test_a_full_disk(whole_of: WholeOf, tmp_path: Path) -> None:
    """The kernel's own: a file that is to be written is the device that is always full."""
    whole, out = whole_of("topk"), tmp_path / "run"
    whole.trainings.run("topk", out, end_at=30, of=BATCH)
    partial = out / "config.toml.partial"
    partial.symlink_to("/dev/full")
    running = whole.trainings.start("topk", out)
    assert running.wait().code == 1
    assert running.last_line() == (
        f"saeflow: no space left on the disk of {out / 'config.toml'}: make room, then run again"
    )
    partial.unlink()
    whole.trainings.finish("topk", out)
    assert contents_of(out) == whole.contents
