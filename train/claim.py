"""Whose a run folder is: one process's at a time, and one set of options'."""

import fcntl
import os
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from itertools import zip_longest

from saeflow.config import load_config, require, to_plain, to_toml
from saeflow.errors import BadInputError
from saeflow.files import PARTIAL, sync_directory, write_durably
from saeflow.location import locate
from saeflow.train.config import TrainConfig
from saeflow.train.journal import METRICS, SPEED

CONFIG = "config.toml"
SAES, CHECKPOINTS = "sae", "checkpoints"
_ENTRIES = {
    *(CONFIG, CONFIG + PARTIAL, METRICS, SPEED, SAES, CHECKPOINTS),
    *("scores.json", "latents.safetensors", "report.html"),
    *("tensorboard", "wandb", "wandb-id", "trackio", "trackio-id"),
}
_MAY_CHANGE = {"out", "reader", "checkpoint_every", "log_to"}
"""Options that change nothing of what is trained, or of what metrics.jsonl says."""


@contextmanager
def claimed(config: TrainConfig, *, overwrite: bool, remarks: Sequence[str] = ()) -> Iterator[None]:
    """Hold a run folder, made if need be, with the options in it.

    Args:
        config: of the run.
        overwrite: throw away a run that is already there.
        remarks: lines that are written below the options, as comments.

    Raises:
        BadInputError: it holds something else, or a run with other options, or another
            process is training into it.
    """
    out = config.out
    require(not out.exists() or out.is_dir(), f"--out {out} is a file: name a folder")
    if out.is_dir():
        _refuse_foreign(config)
    out.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(out, os.O_RDONLY)  # a lock on the folder itself leaves nothing in it
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise BadInputError(
                f"--out {out}: another saeflow train is at it: wait for it, or name another folder"
            ) from error
        if overwrite or not (out / CONFIG).is_file():
            _clear(config)
        else:
            _refuse_other_options(config)
            if (out / CHECKPOINTS).is_dir():
                _refuse_other_choices(config, remarks)
        comments = "".join(f"# {line}\n" for line in remarks)
        write_durably(out / CONFIG, [f"{to_toml(config)}\n{comments}".encode()])
        yield
    finally:
        os.close(descriptor)


def _refuse_foreign(config: TrainConfig) -> None:
    entries = {entry.name for entry in config.out.iterdir()}
    begun = CONFIG in entries or CONFIG + PARTIAL in entries
    if entries - _ENTRIES or (entries and not begun):
        raise BadInputError(
            f"--out {config.out} holds something else: name an empty or a new folder"
        )


def _clear(config: TrainConfig) -> None:
    """Throw away what is there, also what is left of a run that was being thrown away.

    Its options go first, since without them nothing counts; but not quite until the end,
    since without a trace of them the folder is nobody's.
    """
    trace = config.out / (CONFIG + PARTIAL)
    if (config.out / CONFIG).is_file():
        (config.out / CONFIG).replace(trace)
        sync_directory(config.out)
    for entry in sorted(config.out.iterdir(), key=lambda entry: entry == trace):
        if entry.is_dir() and not entry.is_symlink():
            shutil.rmtree(entry)
        else:
            entry.unlink()


def _refuse_other_options(config: TrainConfig) -> None:
    before, now = (
        to_plain(replace(options, store=str(locate(options.store).resolve())))
        for options in (load_config(TrainConfig, config.out / CONFIG, {}), config)
    )
    changed = [
        f"{key}: {before.get(key)!r} there, {now.get(key)!r} now"
        for key in sorted({*before, *now} - _MAY_CHANGE)
        if before.get(key) != now.get(key)
    ]
    if changed:
        raise BadInputError(
            f"--out {config.out} holds a run with other options ({'; '.join(changed)}): "
            "name another folder, or throw it away with --overwrite"
        )


def _refuse_other_choices(config: TrainConfig, remarks: Sequence[str]) -> None:
    """A run does not go on by another recipe, though no option of it was given.

    Another version may choose otherwise what options come to that are not given.
    """
    lines = (config.out / CONFIG).read_text(encoding="utf-8").splitlines()
    before = [line.removeprefix("# ") for line in lines if line.startswith("# ")]
    for there, now in zip_longest(before, remarks, fillvalue="nothing said"):
        require(
            there == now,
            f"--out {config.out} holds a run for which another version of saeflow chose otherwise "
            f"({there} there, {now} now): finish it with that version, name another folder, or "
            "throw it away with --overwrite",
        )
