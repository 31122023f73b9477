"""Two processes that saw half of the items each agree on what one sees of them all."""

from pathlib import Path
from typing import Any

import pytest
import two_processes
from ranks import in_two_processes
from two_processes import values as alone


def test_states_reduce_across_processes(tmp_path: Path) -> None:
    found = in_two_processes(two_processes, tmp_path)
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
