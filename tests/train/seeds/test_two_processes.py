"""Two processes that saw half of the items each agree on what one sees of them all."""

import importlib.util
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

SCRIPT = Path(__file__).with_name("two_processes.py")


def alone(updates: list[slice]) -> dict[str, Any]:
    spec = importlib.util.spec_from_file_location("two_processes", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    found: dict[str, Any] = module.values(updates)
    return found


def test_states_reduce_across_processes(tmp_path: Path) -> None:
    processes = [
        subprocess.Popen(
            [sys.executable, str(SCRIPT), str(rank), str(tmp_path / "meet")],
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
    halves = [slice(0, 4), slice(4, 7), slice(7, 10)]
    own = [values["uneven"].pop("own") for values in found]
    for case, rows in (("uneven", halves), ("one idle", halves[:1])):
        expected = alone(rows)
        for values in found:
            assert values[case].keys() | {"own"} == expected.keys()
            for name, value in values[case].items():
                if name != "own":
                    assert flat(value) == pytest.approx(flat(expected[name]), nan_ok=True), name
    assert own[0] == pytest.approx(alone([slice(4, 7)])["own"])
    assert own[1] == pytest.approx(alone([slice(7, 10)])["own"])


def flat(value: Any) -> list[float]:
    return [y for x in value for y in flat(x)] if isinstance(value, list) else [float(value)]
