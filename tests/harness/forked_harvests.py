"""A process that has saeflow imported, and forks a `saeflow harvest` for each request.

The interpreter, torch and transformer-lens take ten seconds to start; a harvest
forked from here takes one, and is none the less a process of its own that can be
killed. It also counts the operations on its store's files, and comes to its end at
any one of them. Run as a script; requests come as lines of JSON on stdin:

    {"start": {"argv", "out", "log", "end_at", "kind", "tear"}}   answered by {"pid"}
    {"wait": pid}           answered by {"code", "operation", "name"}, once it has ended
"""

import errno
import functools
import itertools
import json
import mmap
import os
import signal
import sys
from typing import Any


def serve() -> None:
    """Answer requests until stdin ends."""
    import datasets  # noqa: F401  # imported once for all the forks

    from saeflow.harvest import models, run

    # Half of a small harvest's time, and no file of the store is touched: so once for all.
    load_model = functools.cache(models.load_model)
    load_model(models.ModelSpec(name="builtin"))
    vars(run)["load_model"] = load_model
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
                os._exit(harvest(note, **request["start"]))
            notes[pid] = note
            answer({"pid": pid})


def answer(value: dict[str, Any]) -> None:
    """One line to the tests."""
    print(json.dumps(value), flush=True)


def harvest(
    note: mmap.mmap, *, argv: list[str], out: str, log: str, end_at: int, kind: str, tear: bool
) -> int:
    """One harvest in the forked process; what it says goes to a file."""
    import torch

    from saeflow.cli import main

    # Makes torch's thread pool anew, which two threads at once can't after a fork (torch 2.13).
    torch.set_num_threads(1)
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a job of a shell may ignore it
    said = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    os.dup2(said, 1)
    os.dup2(said, 2)
    watch(out, note, end_at, kind, tear=tear)
    sys.argv = ["saeflow", *argv]
    try:
        main()
    except SystemExit as stop:
        return stop.code if isinstance(stop.code, int) else int(stop.code is not None)
    return 0


def watch(store: str, note: mmap.mmap, end_at: int, kind: str, *, tear: bool) -> None:
    """Count the operations that change files under a store, and end this process at one.

    What ends it comes before the operation: a signal that `kind` names, or the error
    that it names, raised by the operation. Where that is the renaming of a temporary
    file and `tear` is set, half of the file is cut off first, as if a kill had come
    while it was written.
    """
    counter = itertools.count(1)
    ended = False

    def hook(event: str, args: tuple[Any, ...]) -> None:
        nonlocal ended
        path = changed(event, args)
        if ended or path is None or not f"{path}/".startswith(f"{store}/"):
            return
        count = next(counter)
        told = json.dumps([count, f"{event} {os.path.relpath(path, store)}"]).encode()
        note[:] = told.ljust(len(note), b"\0")
        if count == end_at:
            ended = True
            if tear and event == "os.rename" and path.endswith(".partial"):
                os.truncate(path, os.path.getsize(path) // 2)  # noqa: PTH202
            if kind == "ENOSPC":
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), path)
            os.kill(os.getpid(), signal.Signals[kind])

    sys.addaudithook(hook)


_WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC
_FOLDER_ARGUMENT = {"os.rename": 2, "os.remove": 1, "os.rmdir": 1, "os.mkdir": 2}
"""Where the descriptor of the folder stands that a relative path is relative to."""


def changed(event: str, args: tuple[Any, ...]) -> str | None:
    """The path of the file that an audit event is about to change, if it is about to."""
    if event == "os.mkdir" and os.path.isdir(args[0]):  # noqa: PTH112
        return None
    if event == "os.truncate" or (event == "open" and args[2] & _WRITING):
        folder = -1
    elif event in _FOLDER_ARGUMENT:
        folder = args[_FOLDER_ARGUMENT[event]]
    else:
        return None
    if isinstance(args[0], int):
        return os.readlink(f"/proc/self/fd/{args[0]}")  # noqa: PTH115
    path = os.fsdecode(args[0])
    return os.path.join(os.readlink(f"/proc/self/fd/{folder}"), path) if folder >= 0 else path  # noqa: PTH115, PTH118


if __name__ == "__main__":
    serve()
