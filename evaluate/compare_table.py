"""Several results as one table, for people."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from saeflow.evaluate.compare import Comparison

_MOST_COLUMNS = 4
"""Of more results than this, each is a row."""


def comparison_table(results: Sequence[Mapping[str, Any]]) -> Table:
    """One table: a column a result, or a row where there are many."""
    models = ", ".join(dict.fromkeys(result["model"] for result in results))
    table = Table(title=escape(models), title_justify="left")
    if len(results) > _MOST_COLUMNS:
        table.add_column("", overflow="fold")
        for label in _SHORT:
            table.add_column(label, justify="right", no_wrap=True)
        for result in results:
            table.add_row(escape(result["name"]), *(show(result) for show in _SHORT.values()))
        return table
    table.add_column("")
    for result in results:
        table.add_column(escape(result["name"]), justify="right", overflow="fold")
    for label, show in _LONG.items():
        table.add_row(label, *(show(result) for result in results))
    return table


def print_comparison(comparison: Comparison) -> None:
    """Print the table of a comparison, and in what its results are not like for like."""
    Console(highlight=False).print(comparison_table(comparison.results))
    for note in comparison.notes:
        print(note)


def _decimals(value: float | None) -> str:
    return "-" if value is None else f"{value:.4f}"


def _estimate(estimate: Mapping[str, Any] | None) -> str:
    if estimate is None:
        return "-"
    told = _decimals(estimate["value"])
    if estimate["low"] is None:
        return told
    return f"{told} [dim]({estimate['low']:.4f}\N{EN DASH}{estimate['high']:.4f})[/dim]"


def _score(result: Mapping[str, Any], ablation: str) -> Mapping[str, Any] | None:
    score = result["scores"].get(ablation)
    return None if score is None else score["ratio_of_sums"]


def _value(estimate: Mapping[str, Any] | None) -> str:
    return "-" if estimate is None else _decimals(estimate["value"])


def _share(value: float | None) -> str:
    return "-" if value is None else f"{value:.1%}"


_SHORT: Mapping[str, Callable[[Mapping[str, Any]], str]] = {
    "score": lambda r: _value(_score(r, "zero")),
    "score, mean": lambda r: _value(_score(r, "mean")),
    "loss +": lambda r: _value(r["loss_increase"]),
    "KL": lambda r: _value(r["kl"]),
    "top-1": lambda r: _share(r["top1_agreement"]["value"]),
    "FVU": lambda r: _decimals(r["reconstructions"][0]["fvu"]),
    "L0": lambda r: f"{r['sparsity']['l0']:.1f}",
    "dead": lambda r: _share(r["dead_share"]),
}

_LONG: Mapping[str, Callable[[Mapping[str, Any]], str]] = {
    "reconstruction score": lambda r: _estimate(_score(r, "zero")),
    "against mean ablation": lambda r: _estimate(_score(r, "mean")),
    "loss, clean": lambda r: _value(r["losses"]["clean"]),
    "loss, spliced": lambda r: _value(r["losses"]["spliced"]),
    "loss, zero-ablated": lambda r: _value(r["losses"]["zero_ablated"]),
    "loss increase": lambda r: _estimate(r["loss_increase"]),
    "KL divergence": lambda r: _estimate(r["kl"]),
    "top-1 agreement": lambda r: _share(r["top1_agreement"]["value"]),
    "FVU": lambda r: _decimals(r["reconstructions"][0]["fvu"]),
    "FVU per row": lambda r: _decimals(r["reconstructions"][0]["row_fvu"]),
    "L0": lambda r: f"{r['sparsity']['l0']:.1f}",
    "dead latents": lambda r: (
        f"{r['sparsity']['dead']:,} of {r['d_sae']:,} ({_share(r['dead_share'])})"
    ),
    "tokens scored": lambda r: f"{r['text']['tokens_scored']:,}",
}
