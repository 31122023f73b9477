"""Scores side by side, for people."""

from collections.abc import Mapping

from rich.console import Console

from saeflow.evaluate.compare_table import comparison_table
from saeflow.evaluate.result import EvaluationResult


def print_table(results: Mapping[str, EvaluationResult]) -> None:
    """Print results under their names, on stdout."""
    named = [{**result.to_json(), "name": name} for name, result in results.items()]
    Console(highlight=False).print(comparison_table(named))
