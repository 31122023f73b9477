"""What a run says of itself while it trains: `metrics.jsonl`, `speed.jsonl`, and who else listens.

A line of metrics.jsonl is of one SAE at one step; docs/training.md has its fields.
It depends on the options and the store alone, so that a resumed run's file is the
same, to the byte, as one that was never interrupted. How fast it went is in
speed.jsonl instead.
"""

import json
import os
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO

from saeflow.config import require
from saeflow.files import naming
from saeflow.train.config import TrainConfig
from saeflow.train.loggers import Loggers, open_loggers

METRICS, SPEED = "metrics.jsonl", "speed.jsonl"
MEAN = "mean"
"""Under which name the mean over all SAEs of a run is."""

_NO_MEAN = {"lr"}


@dataclass(frozen=True)
class Journal:
    """The open files of a run, and its loggers."""

    metrics: TextIO
    speed: TextIO
    loggers: Loggers

    def write(self, step: int, rows: int, figures: Mapping[str, Mapping[str, float]]) -> None:
        """Lines of one step: of each SAE, and of their mean if there are several.

        Args:
            step: steps done.
            rows: rows trained on.
            figures: of each SAE, by its name.
        """
        lines = {**figures, MEAN: _mean(figures)} if len(figures) > 1 else figures
        for sae, values in lines.items():
            line = {"step": step, "rows": rows, "sae": sae, **values}
            self.metrics.write(json.dumps(line) + "\n")
            self.loggers.log(sae, step, values)
        with naming(Path(self.metrics.name)):
            self.metrics.flush()

    def write_speed(self, step: int, figures: Mapping[str, Any]) -> None:
        """How fast rows came until a step."""
        self.speed.write(json.dumps({"step": step, **figures}) + "\n")
        with naming(Path(self.speed.name)):
            self.speed.flush()

    def settle(self) -> int:
        """Have every line on the disk; how long metrics.jsonl is."""
        with naming(Path(self.metrics.name)):
            os.fsync(self.metrics.fileno())
        return self.metrics.tell()


@contextmanager
def open_journal(
    config: TrainConfig, options: Mapping[str, Any], *, first_step: int, metrics_bytes: int
) -> Iterator[Journal]:
    """Go on where a checkpoint left off: what was written after it is written again.

    Args:
        config: of the run.
        options: as the loggers show them.
        first_step: steps that were done.
        metrics_bytes: of metrics.jsonl that are of these steps.

    Raises:
        BadInputError: metrics.jsonl has fewer, or a logger can't be used.
    """
    with (
        _appending(config.out / METRICS, metrics_bytes) as metrics,
        _appending(config.out / SPEED, None if first_step else 0) as speed,
        closing(open_loggers(config.log_to, config.out, options, first_step)) as loggers,
    ):
        yield Journal(metrics, speed, loggers)


@contextmanager
def _appending(path: Path, n_bytes: int | None) -> Iterator[TextIO]:
    """A file from so many bytes on; None to keep all of it."""
    file = path.open("a", encoding="utf-8")
    try:
        if n_bytes is not None:
            require(
                file.tell() >= n_bytes,
                f"{path} is shorter than when the checkpoint was saved: put back what was there, "
                "or train again with --overwrite",
            )
            file.truncate(n_bytes)
            file.seek(n_bytes)
        yield file
    finally:
        with naming(path):
            file.close()


def _mean(figures: Mapping[str, Mapping[str, float]]) -> dict[str, float]:
    """Of the figures that all have."""
    all_values = list(figures.values())
    names = [n for n in all_values[0] if n not in _NO_MEAN and all(n in v for v in all_values)]
    return {name: sum(v[name] for v in all_values) / len(all_values) for name in names}
