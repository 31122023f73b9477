"""Real training runs in processes of their own, to be cut short: begun, waited for, compared."""

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from processes import End, Running, Server

BATCH = "saeflow.batch"
"""The audit event of a batch that is handed out."""

N_STEPS, CHECKPOINT_EVERY = 60, 7
VARIANTS: dict[str, dict[str, Any]] = {
    "topk": {"k": 4},
    "jumprelu, warm-ups": {
        "arch": "jumprelu",
        "target-l0": 6.0,
        "warm-up": 0.3,
        "sparsity-warm-up": 0.6,
        "schedule": "cosine",
    },
    "relu, resampler": {
        "arch": "relu",
        "resample": True,
        "resample-every": 640,
        "resample-window": 384,
        "resample-rows": 256,
        "resample-threshold": 0.2,
    },
    "a sweep": {"sweep": "k=2,4", "ema": 0.9},
}
"""What is trained."""


class Trainings:
    """The same runs, over and over: a server forks a process for each."""

    def __init__(self, store: Path) -> None:
        self.store, self._server = store, Server("forked_trainings.py")

    def start(self, variant: str, out: Path, *options: str, **watched: Any) -> Running:
        """Begin a run, with options besides; the rest are those of `forked.watch`."""
        argv = [*command(self.store, out, variant), *options]
        return self._server.start(argv, out, Path(f"{out}.log"), **watched)

    def run(self, variant: str, out: Path, *options: str, **watched: Any) -> End:
        return self.start(variant, out, *options, **watched).wait()

    def finish(self, variant: str, out: Path) -> None:
        """Run to the end."""
        running = self.start(variant, out)
        assert running.wait().code == 0, running.log.read_text()

    def close(self) -> None:
        self._server.close()


@dataclass(frozen=True)
class Whole:
    """A run that was never interrupted.

    Attributes:
        trainings: runs the same elsewhere.
        variant: what was trained.
        contents: what it left, as `contents_of` gives it.
        operations: how many operations on the run's files it took.
    """

    trainings: Trainings
    variant: str
    contents: dict[str, bytes] = field(repr=False)
    operations: int


def command(store: Path, out: Path, variant: str) -> list[str]:
    """The arguments of a run: 60 steps, with a checkpoint after every seventh."""
    options = {
        "hook": "blocks.0.hook_resid_post",
        "out": out,
        "d-sae": 48,
        "batch-size": 64,
        "tokens": 64 * N_STEPS,
        "dead-after": 600,
        "log-every": 5,
        "evaluate-every": 20,
        "evaluate-rows": 256,
        "checkpoint-every": CHECKPOINT_EVERY,
        "device": "cpu",
        **VARIANTS[variant],
    }
    flags = [
        f"--{name}" if value is True else f"--{name}={value}" for name, value in options.items()
    ]
    return ["train", str(store), *flags]


def contents_of(run: Path) -> dict[str, bytes]:
    """What is in a run's folder, but for how fast it was; without the folder's name in it."""
    return {
        str(path.relative_to(run)): path.read_bytes().replace(str(run).encode(), b"RUN")
        if path.is_file() and path.name != "speed.jsonl"
        else b""
        for path in sorted(run.rglob("*"))
    }


def checkpoints_of(run: Path) -> list[int]:
    """The steps of which there are checkpoints."""
    return sorted(int(p.name) for p in (run / "checkpoints").glob("*") if p.name.isdecimal())


def is_complete(run: Path, variant: str) -> bool:
    """Whether all its SAEs are there."""
    found = [cfg for cfg in run.glob("sae/*/cfg.json") if not cfg.match("*.partial/*")]
    return len(found) == (2 if "sweep" in VARIANTS[variant] else 1)


def last_logged(run: Path) -> int:
    """The step of the last whole line of metrics.jsonl; 0 if there is none."""
    metrics = run / "metrics.jsonl"
    lines = metrics.read_text().split("\n")[:-1] if metrics.exists() else []
    step: int = json.loads(lines[-1])["step"] if lines else 0
    return step
