"""Scores side by side, for people."""

from collections.abc import Callable, Mapping

from rich.console import Console
from rich.table import Table

from saeflow.evaluate.result import EvaluationResult

_ROWS: Mapping[str, Callable[[EvaluationResult], str]] = {
    "reconstruction score": lambda r: (
        "-" if r.reconstruction_score is None else f"{r.reconstruction_score:.4f}"
    ),
    "loss, clean": lambda r: f"{r.losses['clean']:.4f}",
    "loss, spliced": lambda r: f"{r.losses['spliced']:.4f}",
    "loss, zero-ablated": lambda r: f"{r.losses['zero_ablated']:.4f}",
    "FVU": lambda r: f"{r.fvu:.4f}",
    "FVU per row": lambda r: f"{r.row_fvu:.4f}",
    "L0": lambda r: f"{r.l0:.1f}",
    "dead latents": lambda r: f"{r.dead:,} of {r.d_sae:,} ({r.dead_share:.1%})",
    "held-out tokens": lambda r: f"{r.text['tokens_scored']:,}",
}


def print_table(results: Mapping[str, EvaluationResult]) -> None:
    """Print one column a result, on stdout."""
    first = next(iter(results.values()))
    table = Table(title=f"{first.hook_point} of {first.model}", title_justify="left")
    table.add_column("")
    for name in results:
        table.add_column(name, justify="right")
    for label, value in _ROWS.items():
        table.add_row(label, *(value(result) for result in results.values()))
    Console(highlight=False).print(table)
