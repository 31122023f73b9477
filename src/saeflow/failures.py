"""What the command line says of failures that saeflow didn't raise: each is one line.

Errors of the operating system that name a file, and what was typed wrong. Anything else is
a bug of saeflow's, and keeps its traceback.
"""

import errno
import os
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

import typer

USAGE_ERROR: Any = next(
    kind for kind in typer.BadParameter.__mro__ if kind.__name__ == "ClickException"
)
"""What typer raises for words that it doesn't understand; it exports no name for it."""

_OTHER_PLACE = "give yourself permission, or name another path"
_REMEDIES = {
    errno.EACCES: _OTHER_PLACE,
    errno.EPERM: _OTHER_PLACE,
    errno.EROFS: "name a path on a disk that can be written to",
    errno.ENOENT: "check the path",
    errno.ENOTDIR: "check the path, a part of it is a file",
    errno.EISDIR: "name a file",
    errno.ENAMETOOLONG: "choose a shorter name",
}


def told(error: OSError) -> tuple[str, int] | None:
    """The line and the exit code of an operating system's error; None if it is no user's."""
    if error.errno == errno.ENOSPC:
        of = f" of {_name(error)}" if _name(error) else ""
        return f"no space left on the disk{of}: make room, then run again", 1
    remedy = _REMEDIES.get(error.errno or 0)
    if remedy is None or _name(error) is None:
        return None
    return f"{_name(error)}: {error.strerror}: {remedy}", 2


def told_usage(error: Any) -> str:
    """One line of what was typed wrong, and where its options are told."""
    context = getattr(error, "ctx", None)
    command = context.command_path if context else "saeflow"
    return f"{error.format_message().rstrip('.')}: see {command} --help"


def flush_stdout() -> None:
    """Have what was printed arrive, or fail here and not when Python ends."""
    try:
        sys.stdout.flush()
    except OSError as error:
        error.filename = "stdout"
        raise


def settle_stdout() -> None:
    """What is left to be printed arrives, or is dropped: Python must not fail on it as it ends."""
    try:
        sys.stdout.flush()
    except OSError:
        with suppress(OSError):
            nothing = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nothing, sys.stdout.fileno())
            os.close(nothing)


def _name(error: OSError) -> str | None:
    """The file that an error is about; None if it names none, or a number."""
    name = error.filename
    return str(Path(os.fsdecode(name))) if name and isinstance(name, str | bytes | Path) else None
