"""docs/evaluation.md says what every field of scores.json is, and every mismatch."""

import re
from dataclasses import fields
from pathlib import Path

import pytest

from saeflow.evaluate.config import MISMATCH_FIELDS
from saeflow.evaluate.figures import Breakdown, Estimate, Reconstruction, Score, Sparsity
from saeflow.evaluate.result import EvaluationResult

PAGE = Path(__file__).parents[2] / "docs" / "evaluation.md"
HOLDERS = (Breakdown, Estimate, EvaluationResult, Reconstruction, Score, Sparsity)
DERIVED = {"schema", "verdict", "reconstruction_score", "dead_share"}


@pytest.fixture(scope="module")
def words() -> set[str]:
    """All that is set as code, `{"value", "low"}` word by word."""
    code = re.findall(r"`([^`\n]+)`", PAGE.read_text(encoding="utf-8"))
    return {word for span in code for word in re.findall(r"[\w-]+", span)}


@pytest.mark.parametrize("holder", HOLDERS)
def test_every_field_is_in_the_page(holder: type, words: set[str]) -> None:
    assert {field.name for field in fields(holder)} <= words


def test_what_scores_json_adds_is_in_the_page(words: set[str]) -> None:
    assert words >= DERIVED


def test_every_mismatch_is_in_the_page(words: set[str]) -> None:
    assert words >= set(MISMATCH_FIELDS)


def test_the_page_says_no_field_that_is_not_there() -> None:
    known = {field.name for holder in HOLDERS for field in fields(holder)} | DERIVED
    text = PAGE.read_text(encoding="utf-8")
    schema = text[text.index("## scores.json") : text.index("## What is held against")]
    rows = [line.split("|")[1] for line in schema.splitlines() if line.startswith("| `")]
    assert {name for row in rows for name in re.findall(r"`(\w+)`", row)} <= known
