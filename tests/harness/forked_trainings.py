"""The process that forks a `saeflow train` for each request. Run as a script.

Python tells of files that are opened, renamed and removed. Here it is told besides of
what is flushed to the disk, of lines written to files that are open, of files that
safetensors writes, and of batches that are handed out.
"""

import errno
import os
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from sys import audit
from typing import Any, TextIO

import forked
from trainings import BATCH


def prepare() -> None:
    """Import once what all the forks need, and have it tell what it does."""
    import pydantic.type_adapter  # noqa: F401
    import torch._dynamo  # noqa: F401  # an optimizer imports it, in seconds
    from safetensors.torch import save_file

    from saeflow.train import run, tensors  # noqa: F401  # run imports the whole stage
    from saeflow.train.journal import Journal
    from saeflow.train.loader import Loader

    tell_of_flushes()
    tell_of_lines(Journal)
    vars(tensors)["save_file"] = telling_of_tensors(save_file)
    Loader.all_batches = telling_of_batches(Loader.all_batches)  # type: ignore[method-assign]


def tell_of_flushes() -> None:
    real = os.fsync

    def fsync(descriptor: int) -> None:
        path = os.readlink(f"/proc/self/fd/{descriptor}")  # noqa: PTH115
        try:
            audit(forked.OPERATION, path, "fsync")
        except OSError as error:  # as fsync's own, which has no name
            raise OSError(error.errno, error.strerror) from None
        real(descriptor)

    vars(os)["fsync"] = fsync


def tell_of_lines(journal: Any) -> None:
    """Where there is to be no space left, the file is made the device that is always full."""

    def telling(real: Callable[..., None], file_of: Callable[[Any], TextIO]) -> Callable[..., None]:
        def write(self: Any, *values: Any) -> None:
            file = file_of(self)
            try:
                audit(forked.OPERATION, file.name, "write")
            except OSError:
                os.dup2(os.open("/dev/full", os.O_WRONLY), file.fileno())
            real(self, *values)

        return write

    journal.write = telling(journal.write, lambda self: self.metrics)
    journal.write_speed = telling(journal.write_speed, lambda self: self.speed)


def telling_of_tensors(real: Callable[..., None]) -> Callable[..., None]:
    from safetensors import SafetensorError

    def save_file(tensors: Any, path: Path, metadata: Any = None) -> None:
        try:
            audit(forked.OPERATION, str(path), "save_file")
        except OSError as error:  # as its own
            told = f"{os.strerror(errno.ENOSPC)} (os error {error.errno})"
            raise SafetensorError(f"Error while serializing: I/O error: {told}") from None
        real(tensors, path, metadata)

    return save_file


def telling_of_batches(real: Callable[..., Any]) -> Callable[..., Any]:
    def all_batches(self: Any, first_step: int, n_steps: int) -> Iterator[Any]:
        with closing(real(self, first_step, n_steps)) as batches:
            for batch in batches:
                audit(BATCH)
                yield batch

    return all_batches


if __name__ == "__main__":
    prepare()
    forked.serve()
