"""What a page and a comparison need of a scores.json."""

from collections.abc import Mapping
from typing import Any

from pydantic import TypeAdapter, ValidationError
from typing_extensions import TypedDict

from saeflow.evaluate.figures import Breakdown, Estimate, Reconstruction, Score, Sparsity

SCHEMA = 2
"""The schema of scores.json that they read."""


class Scores(TypedDict):
    """The content of a scores.json. It may hold more, which a page shows only as it is."""

    schema: int
    name: str
    architecture: str
    kind: str
    d_in: int
    d_sae: int
    options: dict[str, Any]
    model: str
    reads: tuple[str, ...]
    replaces: tuple[str, ...]
    text: dict[str, Any]
    positions: dict[str, str]
    mismatches: tuple[dict[str, Any], ...]
    checks: dict[str, Any]
    losses: dict[str, Estimate]
    scores: dict[str, Score]
    kl: Estimate
    top1_agreement: Estimate
    loss_increase: Estimate
    by_position: Breakdown
    by_frequency: Breakdown
    reconstructions: tuple[Reconstruction, ...]
    sparsity: Sparsity
    versions: dict[str, str]
    dead_share: float
    verdict: str


_SCORES = TypeAdapter(Scores)


def what_is_wrong(result: Mapping[str, Any]) -> str | None:
    """The first thing for which this is not the content of a scores.json; None if it is."""
    try:
        _SCORES.validate_python(dict(result))
    except ValidationError as error:
        first = error.errors()[0]
        return f"{'.'.join(map(str, first['loc']))}: {first['msg'].lower()}"
    return None
