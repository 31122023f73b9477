"""Where metrics go besides `metrics.jsonl`: TensorBoard, Weights & Biases, Trackio.

Each is an optional extra, and is loaded only when asked for. A metric is called
`SAE/NAME`, its step is the number of steps that were done. A resumed run goes on in the
same curves, and no point is in them twice: TensorBoard drops what was logged after the
checkpoint, and the others are not sent the steps that they have already.
"""

import json
import os
import secrets
import sys
from collections.abc import Mapping, Sequence
from contextlib import ExitStack, redirect_stdout
from pathlib import Path
from typing import Any, Literal, Protocol, runtime_checkable

from saeflow.errors import BadInputError, one_line
from saeflow.files import write_durably

LoggerName = Literal["tensorboard", "wandb", "trackio"]

TENSORBOARD, WANDB_ID, TRACKIO_ID = "tensorboard", "wandb-id", "trackio-id"
"""What they keep in the folder of the run; wandb's own files are in `wandb` there."""

_PROJECT = "saeflow"


@runtime_checkable
class Logger(Protocol):
    """One of them."""

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Metrics of one step, by their whole names."""
        ...

    def close(self) -> None:
        """Wait until everything is where it belongs."""
        ...


class Loggers:
    """Those that were asked for; perhaps none."""

    def __init__(self) -> None:
        self._open: list[Logger] = []
        self._closing = ExitStack()

    def add(self, logger: Logger) -> None:
        """One more; from now on it is closed with the others."""
        self._open.append(logger)
        self._closing.callback(logger.close)

    def log(self, sae: str, step: int, values: Mapping[str, float]) -> None:
        """Metrics of one SAE after `step` steps."""
        for logger in self._open:
            logger.log(step, {f"{sae}/{name}": value for name, value in values.items()})

    def close(self) -> None:
        """Close each of them, also if one of them fails to."""
        self._closing.close()


def open_loggers(
    names: Sequence[LoggerName], run: Path, options: Mapping[str, Any], first_step: int
) -> Loggers:
    """Begin to log a run, or go on.

    Args:
        names: which; one that is named twice is opened once.
        run: the folder of the run, which exists.
        options: of the run, as JSON has them, to be shown with it.
        first_step: steps that were done before; what is logged is of later ones.

    Raises:
        BadInputError: one is not installed, or does not let us in.
    """
    makers: dict[LoggerName, type[_TensorBoard | _Wandb | _Trackio]] = {
        "tensorboard": _TensorBoard,
        "wandb": _Wandb,
        "trackio": _Trackio,
    }
    loggers = Loggers()
    try:
        for name in dict.fromkeys(names):
            loggers.add(makers[name](run, options, first_step))
    except BaseException:
        loggers.close()
        raise
    return loggers


class _TensorBoard:
    """Event files in RUN/tensorboard."""

    def __init__(self, run: Path, options: Mapping[str, Any], first_step: int) -> None:
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError:
            raise _not_installed("tensorboard") from None
        # At this step and after it, what an earlier part of the run logged is dropped.
        purge_step = first_step + 1 if first_step else 0
        self._writer = SummaryWriter(run / TENSORBOARD, purge_step=purge_step)
        if not first_step:
            text = json.dumps(dict(options), indent=2, default=str)
            self._writer.add_text("options", f"```json\n{text}\n```", 0)

    def log(self, step: int, values: Mapping[str, float]) -> None:
        for name, value in values.items():
            self._writer.add_scalar(name, value, step)
        # It keeps events for two minutes otherwise, and a kill would leave a hole.
        self._writer.flush()

    def close(self) -> None:
        self._writer.close()


class _Wandb:
    """A run of project `saeflow`, or of WANDB_PROJECT; offline if WANDB_MODE says so."""

    def __init__(self, run: Path, options: Mapping[str, Any], first_step: int) -> None:  # noqa: ARG002  # wandb knows
        try:
            import wandb
        except ImportError:
            raise _not_installed("wandb") from None
        try:
            self._run = wandb.init(
                project=os.environ.get("WANDB_PROJECT", _PROJECT),
                name=run.resolve().name,
                id=_kept_id(run / WANDB_ID),
                resume="allow",
                dir=run,
                config=dict(options),
                allow_val_change=True,  # of options that a resumed run may have changed
                settings=wandb.Settings(console="off"),  # stdout and stderr stay ours
            )
        except wandb.Error as error:
            raise BadInputError(
                f"wandb does not start ({one_line(error)}): log in with `wandb login`, "
                "or set WANDB_MODE=offline"
            ) from error

    def log(self, step: int, values: Mapping[str, float]) -> None:
        if step >= self._run.starting_step:
            self._run.log(dict(values), step=step)

    def close(self) -> None:
        self._run.finish()


class _Trackio:
    """A run of project `saeflow`, where Trackio keeps all runs (TRACKIO_DIR, or a Space).

    There, and not in the folder of the run, since what it stores is what its dashboard
    compares.
    """

    def __init__(self, run: Path, options: Mapping[str, Any], first_step: int) -> None:  # noqa: ARG002  # Trackio knows
        try:
            import trackio
        except ImportError:
            raise _not_installed("trackio") from None
        with redirect_stdout(sys.stderr):  # it narrates; stdout is for --json
            run_there = trackio.init(
                project=_PROJECT,
                name=f"{run.resolve().name}-{_kept_id(run / TRACKIO_ID)}",
                resume="allow",
                config={"options": dict(options)},
                embed=False,
            )
        # One after the last step that the run had, from which Trackio itself would go on.
        self._starting_step: int = getattr(run_there, "_next_step", 0)
        self._trackio = trackio

    def log(self, step: int, values: Mapping[str, float]) -> None:
        if step >= self._starting_step:
            self._trackio.log(dict(values), step=step)

    def close(self) -> None:
        with redirect_stdout(sys.stderr):
            self._trackio.finish()  # the run's own leaves it to be finished again, aloud, at exit


def _not_installed(name: LoggerName) -> BadInputError:
    return BadInputError(f"--log-to {name} needs the extra: pip install 'saeflow[{name}]'")


def _kept_id(file: Path) -> str:
    """What a run is called elsewhere: drawn once, and kept with it."""
    if not file.exists():
        write_durably(file, [f"{secrets.token_hex(4)}\n".encode()])
    return file.read_text(encoding="utf-8").strip()
