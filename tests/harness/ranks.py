"""A script of this folder, run by two processes that meet."""

import json
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any


def in_two_processes(script: ModuleType, folder: Path) -> list[Any]:
    """Run a module as rank 0 and 1 of two; the JSON that each prints."""
    assert script.__file__ is not None
    processes = [
        subprocess.Popen(
            [sys.executable, script.__file__, str(rank), str(folder / "meet")],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    found = []
    for process in processes:
        out, error = process.communicate(timeout=300)
        assert process.returncode == 0, error
        found.append(json.loads(out))
    return found
