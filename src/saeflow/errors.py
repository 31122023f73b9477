"""What can go wrong for a reason that the user can mend.

Every error that saeflow expects is a `SaeflowError`: one line that says what is
wrong, where, and what to do. The command line prints that line and leaves with
the error's exit code; anything else is a bug in saeflow and keeps its traceback.
"""


class SaeflowError(Exception):
    """A failure with a message for the user. The command line leaves with code 1."""

    exit_code = 1


class BadInputError(SaeflowError):
    """What the user gave (an option, a file, a model, a store) can't be used: exit code 2."""

    exit_code = 2


def one_line(error: Exception) -> str:
    """Another library's error, for a message of ours: its type and text on one line, cut short."""
    return " ".join(f"{type(error).__name__}: {error}".split())[:300]
