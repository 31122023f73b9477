"""A process that has saeflow imported, and forks a `saeflow` command for each request.

The interpreter, torch and transformer-lens take ten seconds to start; a command
forked from here takes one, and is none the less a process of its own that can be
killed. It also counts the operations on its folder's files, and comes to its end at
any one of them. What is imported is the matter of the scripts that call `serve`.
Requests come as lines of JSON on stdin:

    {"start": {"argv", "out", "log", ...}}   answered by {"pid"}; the rest are `watch`'s
    {"wait": pid}     answered by {"code", "operation", "name"}, once it has ended
"""

import errno
import itertools
import json
import mmap
import os
import signal
import sys
from typing import Any

FILES = "files"
"""What `watch` counts if not said otherwise."""

OPERATION = "saeflow.operation"
"""An audit event of a script's own: an operation on a file that Python tells nobody of."""


def serve() -> None:
    """Answer requests until stdin ends."""
    notes: dict[int, mmap.mmap] = {}
    answer({"ready": True})
    for line in sys.stdin:
        request = json.loads(line)
        if "wait" in request:
            _, status = os.waitpid(request["wait"], 0)
            count, name = json.loads(notes.pop(request["wait"])[:].rstrip(b"\0") or b'[0, ""]')
            code = os.waitstatus_to_exitcode(status)
            answer({"code": code, "operation": count, "name": name})
        else:
            note = mmap.mmap(-1, 4096)  # shared with the forked process, so it outlives a kill
            pid = os.fork()
            if pid == 0:
                os._exit(command(note, **request["start"]))
            notes[pid] = note
            answer({"pid": pid})


def answer(value: dict[str, Any]) -> None:
    """One line to the tests."""
    print(json.dumps(value), flush=True)


def command(note: mmap.mmap, *, argv: list[str], out: str, log: str, **watched: Any) -> int:
    """One command in the forked process; what it says goes to a file."""
    import torch

    from saeflow.cli import main

    # Makes torch's thread pool anew, which two threads at once can't after a fork (torch 2.13).
    torch.set_num_threads(1)
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a job of a shell may ignore it
    said = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    os.dup2(said, 1)
    os.dup2(said, 2)
    watch(out, note, **watched)
    sys.argv = ["saeflow", *argv]
    try:
        main()
    except SystemExit as stop:
        return stop.code if isinstance(stop.code, int) else int(stop.code is not None)
    return 0


def watch(folder: str, note: mmap.mmap, *, end_at: int, kind: str, tear: bool, of: str) -> None:
    """Count the operations that change files under a folder, and end this process at one.

    What ends it comes before the operation: a signal that `kind` names, or the error
    that it names, raised by the operation. Where that is the renaming of a temporary
    file or folder and `tear` is set, half of the file, or of each file in it, is cut off
    first, as if a kill had come while it was written.

    Args:
        folder: whose files.
        note: where the number and the name of the last operation go.
        end_at: the number of the one that ends it, from 1 on; 0 for none.
        kind: of the end.
        tear: whether a temporary file is cut.
        of: `FILES`, or the name of an audit event that is counted instead.
    """
    counter = itertools.count(1)
    ended = False

    def hook(event: str, args: tuple[Any, ...]) -> None:
        nonlocal ended
        path = folder if event == of else changed(event, args) if of == FILES else None
        if ended or path is None or not f"{path}/".startswith(f"{folder}/"):
            return
        count = next(counter)
        what = args[1] if event == OPERATION else event
        told = json.dumps([count, f"{what} {os.path.relpath(path, folder)}"]).encode()
        note[:] = told.ljust(len(note), b"\0")
        if count == end_at:
            ended = True
            if tear and event == "os.rename" and path.endswith(".partial"):
                _tear(path)
            if kind == "ENOSPC":
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), path)
            os.kill(os.getpid(), signal.Signals[kind])

    sys.addaudithook(hook)


def _tear(path: str) -> None:
    files = [entry.path for entry in os.scandir(path)] if os.path.isdir(path) else [path]  # noqa: PTH112
    for file in files:
        os.truncate(file, os.path.getsize(file) // 2)  # noqa: PTH202


_WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC
_FOLDER_ARGUMENT = {"os.rename": 2, "os.remove": 1, "os.rmdir": 1, "os.mkdir": 2}
"""Where the descriptor of the folder stands that a relative path is relative to."""


def changed(event: str, args: tuple[Any, ...]) -> str | None:
    """The path of the file that an audit event is about to change, if it is about to."""
    if event == "os.mkdir" and os.path.isdir(args[0]):  # noqa: PTH112
        return None
    if event in ("os.truncate", OPERATION) or (event == "open" and args[2] & _WRITING):
        folder = -1
    elif event in _FOLDER_ARGUMENT:
        folder = args[_FOLDER_ARGUMENT[event]]
    else:
        return None
    if isinstance(args[0], int):
        return os.readlink(f"/proc/self/fd/{args[0]}")  # noqa: PTH115
    path = os.fsdecode(args[0])
    return os.path.join(os.readlink(f"/proc/self/fd/{folder}"), path) if folder >= 0 else path  # noqa: PTH115, PTH118
