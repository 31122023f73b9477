"""Whether a page and a comparison can show what a scores.json holds."""

from collections.abc import Mapping
from typing import Any

from pydantic import ValidationError

from saeflow.evaluate.result import EvaluationResult

_ALSO_SHOWN = ("verdict", "dead_share")


def what_is_wrong(result: Mapping[str, Any]) -> str | None:
    """The first thing for which this is not the content of a scores.json; None if it is."""
    try:
        EvaluationResult.from_json(result)
    except ValidationError as error:
        first = error.errors()[0]
        return f"{'.'.join(map(str, first['loc']))}: {first['msg'].lower()}"
    except KeyError as error:
        return f"it has no {error}"
    return next((f"it has no {name!r}" for name in _ALSO_SHOWN if name not in result), None)
