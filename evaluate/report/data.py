"""What a page shows, as plain values: results as they are, and the training curves thinned."""

import json
import math
from collections.abc import Mapping, Sequence
from typing import Any

from saeflow.errors import BadInputError
from saeflow.evaluate.report.schema import what_is_wrong
from saeflow.evaluate.result import SCHEMA

_POINTS = 600
"""A curve has no more points than this: a chart is some 400 pixels wide."""

_NOT_CURVES = ("step", "sae")


def check_results(results: Sequence[Mapping[str, Any]]) -> None:
    """See that a page can show these results.

    Raises:
        BadInputError: there is none, one has another schema or is not whole, or two have one name.
    """
    if not results:
        raise BadInputError("there is no result to show: give at least one scores.json")
    for result in results:
        if result.get("schema") != SCHEMA:
            raise BadInputError(
                f"result {result.get('name')!r} has schema {result.get('schema')!r}, and a page "
                f"shows schema {SCHEMA}: evaluate the SAE again"
            )
        wrong = what_is_wrong(result)
        if wrong is not None:
            raise BadInputError(
                f"result {result.get('name')!r} is not whole, {wrong}: evaluate the SAE again"
            )
    names = [result["name"] for result in results]
    for name in names:
        if names.count(name) > 1:
            raise BadInputError(f"two results are named {name!r}: give each its own name")


def training_curves(training: Mapping[str, Sequence[Mapping[str, Any]]]) -> list[dict[str, Any]]:
    """The curves of each SAE.

    Args:
        training: lines of metrics.jsonl by the name of the SAE.

    Returns:
        for each SAE: its `name`, its `series` (points `[step, value]` by field), and of `every`
        how many points one is kept, at most, the first and the last always.
    """
    return [_curves(name, lines) for name, lines in training.items() if lines]


def _curves(name: str, lines: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    series: dict[str, list[list[int | float | None]]] = {}
    for line in lines:
        for field, value in line.items():
            if field not in _NOT_CURVES and isinstance(value, int | float):
                known = value if math.isfinite(value) else None
                series.setdefault(field, []).append([line["step"], known])
    every = max((_every(points) for points in series.values()), default=1)
    return {
        "name": name,
        "every": every,
        "series": {field: _thinned(points) for field, points in series.items()},
    }


def _every(points: Sequence[Any]) -> int:
    return max(1, math.ceil((len(points) - 1) / (_POINTS - 1)))


def _thinned(points: list[list[int | float | None]]) -> list[list[int | float | None]]:
    return points[: -1 : _every(points)] + points[-1:]


def script_safe_json(value: Any) -> str:
    """JSON that can stand in a script element: what could end it, or a line, is escaped.

    Raises:
        ValueError: a number is not finite.
    """
    text = json.dumps(value, separators=(",", ":"), allow_nan=False)  # all of it in ASCII
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")
