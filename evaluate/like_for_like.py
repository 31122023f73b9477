"""In what results are not like for like: what their figures were made from, and how."""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any

Result = Mapping[str, Any]
"""The content of a scores.json."""

_NAMES_TOLD = 3

_SHOWN = 12
"""Digits of a hash that a note shows."""

_BY_CONTENT: Mapping[str, tuple[Callable[[Result], str | None], Callable[[Result], str]]] = {
    "model": (
        lambda result: result["options"].get("model_weights_sha256"),
        lambda result: str(result["model"]),
    ),
    "text": (
        lambda result: result["text"].get("sha256"),
        lambda result: str(result["text"].get("source")),
    ),
}
"""What has a hash, and a name; names are compared only where a result lacks the hash."""

_BY_VALUE: Mapping[str, Callable[[Result], Any]] = {
    "model-config": lambda result: _digits(result, "model_config_sha256"),
    "tokenizer": lambda result: _digits(result, "tokenizer_sha256"),
    "dtype": lambda result: result["options"].get("dtype"),
    "replaced hook points": lambda result: ", ".join(result["replaces"]),
    "replaced positions": lambda result: result["positions"].get("replaced"),
    "scored positions": lambda result: result["positions"].get("scored"),
    "documents": lambda result: result["text"].get("documents"),
    "tokens scored": lambda result: result["text"].get("tokens_scored"),
    "text trained on": lambda result: _known(result["text"].get("trained_on")),
    "mismatches": lambda result: _fields(result["mismatches"]),
    "clean loss": lambda result: _rounded(result["losses"]["clean"]["value"]),
}
"""What else must be equal. Equal clean losses mean equal predictions."""


def differences(results: Sequence[Result]) -> list[str]:
    """In what results are not like for like: a line for each thing, with both sides."""
    sides = {what: _by_content(results, *how) for what, how in _BY_CONTENT.items()}
    sides |= {what: _by_value(results, value) for what, value in _BY_VALUE.items()}
    return [
        f"not like for like, {what} differs: {'; '.join(found)}"
        for what, found in sides.items()
        if len(found) > 1
    ]


def told_names(names: Sequence[str]) -> str:
    """The first few of them, and how many more there are."""
    more = len(names) - _NAMES_TOLD
    return ", ".join(names[:_NAMES_TOLD]) + (f" and {more} more" if more > 0 else "")


def _by_content(
    results: Sequence[Result],
    content: Callable[[Result], str | None],
    name: Callable[[Result], str],
) -> list[str]:
    if any(content(result) is None for result in results):
        return _sides(results, name, name)
    contents = Counter(told for told, _ in {(name(one), content(one)) for one in results})

    def shown(result: Result) -> str:
        told = name(result)
        return told if contents[told] == 1 else f"{told} {str(content(result))[:_SHOWN]}"

    return _sides(results, content, shown)


def _by_value(results: Sequence[Result], value: Callable[[Result], Any]) -> list[str]:
    return _sides(results, value, lambda result: _plain(value(result)))


def _sides(
    results: Sequence[Result], value: Callable[[Result], Any], shown: Callable[[Result], str]
) -> list[str]:
    """Each value that there is, as it is shown, and which results have it."""
    sides: dict[Any, list[Result]] = {}
    for result in results:
        sides.setdefault(value(result), []).append(result)
    return [
        f"{shown(same[0])} ({told_names([one['name'] for one in same])})" for same in sides.values()
    ]


def _digits(result: Result, name: str) -> str:
    return str(result["options"].get(name, "not known"))[:_SHOWN]


def _fields(mismatches: Sequence[Mapping[str, Any]]) -> str:
    return ", ".join(sorted({str(one["field"]) for one in mismatches})) or "none"


def _known(value: bool | None) -> bool | str:
    return "not known" if value is None else value


def _plain(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    return f"{value:,}" if isinstance(value, int) else str(value)


def _rounded(value: float | None) -> str:
    return "none" if value is None else f"{value:.4f}"
