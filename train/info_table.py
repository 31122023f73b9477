"""A store's figures, for people."""

from collections.abc import Callable, Iterator, Mapping
from itertools import islice
from typing import Any

from rich.console import Console
from rich.table import Table

from saeflow.harvest.info import Figures, HookPointInfo, SplitInfo
from saeflow.train.info import StoreInfo
from saeflow.train.mixing import Mixing

_SIDE_BY_SIDE = 2
"""Hook points in one table: their names are long."""

_TOLD = 3
"""So many tokens and positions of massive rows."""

_HASH = 12
"""So many characters of a hash."""

_SPLIT_ROWS: Mapping[str, Callable[[SplitInfo], str]] = {
    "rows": lambda s: f"{s.rows:,}",
    "sequences": lambda s: _known(s.sequences),
    "documents": lambda s: _known(s.documents),
    "shards": lambda s: (
        f"{s.shards:,}" if s.shards_built == s.shards else f"{s.shards_built:,} of {s.shards:,}"
    ),
}

_HOOK_POINT_ROWS: Mapping[str, Callable[[HookPointInfo], str]] = {
    "d_in": lambda h: f"{h.d_in:,}" + (f" {h.shape}" if len(h.shape) > 1 else ""),
    "bytes": lambda h: f"{h.bytes:,}",
    "rows a chunk": lambda h: f"{h.rows_per_chunk:,}",
}

_FIGURE_ROWS: Mapping[str, Callable[[Figures], str]] = {
    "mean norm": lambda f: f"{f.mean_norm:.4g}",
    "norm at 1, 5, 25 %": lambda f: _quantiles(f, 0.01, 0.05, 0.25),
    "norm at 50, 75, 95 %": lambda f: _quantiles(f, 0.5, 0.75, 0.95),
    "norm at 99, 99.9, 100 %": lambda f: _quantiles(f, 0.99, 0.999, 1.0),
    "mean square of the norm": lambda f: f"{f.mean_square:.4g}",
    "norm of the mean": lambda f: f"{f.norm_of_mean:.4g}",
    "norm of the median": lambda f: f"{f.norm_of_geometric_median:.4g}",
    "deviation of a channel": lambda f: f"{f.std_min:.3g}, {f.std_median:.3g}, {f.std_max:.3g}",
    "largest number": lambda f: f"{f.absmax:.4g} in channel {f.absmax_channel}",
    "massive rows": lambda f: f"{f.massive:,} ({f.massive_share:.3%})",
    "  token ids": lambda f: _commonest(f.massive_tokens, f.massive),
    "  positions": lambda f: _commonest(f.massive_positions, f.massive),
}

_MIXING_ROWS: Mapping[str, Callable[[Mixing], str]] = {
    "read in": lambda m: (
        f"{m.strips_per_window} strips of {m.rows_per_strip} rows, mixed"
        if m.strips_per_window
        else f"strips of {m.rows_per_strip} rows"
    ),
    "same-document mates": lambda m: (
        "not measured" if m.mates is None else f"{m.mates:.2f} in {m.batch_size:,} rows"
    ),
    "  by arithmetic": lambda m: f"{m.expected:.2f}",
    "  shuffled all over": lambda m: f"{m.ideal:.2f}",
}


def print_info(info: StoreInfo) -> None:
    """Print what a store holds, on stdout."""
    console = Console(highlight=False, markup=False, emoji=False)
    console.print(f"{info.path}: {_state(info)}", soft_wrap=True)
    about = Table(show_header=False, title="where it is from", title_justify="left")
    about.add_column(no_wrap=True)
    about.add_column(overflow="fold")
    for label, value in _about(info):
        about.add_row(label, value)
    console.print(about)
    if info.splits:
        splits = Table("", title="how much it holds", title_justify="left")
        _fill(splits, info.splits, _SPLIT_ROWS)
        console.print(splits)
    held = iter(info.hook_points)
    while group := list(islice(held, _SIDE_BY_SIDE)):
        console.print(_hook_points(info, group))


def _state(info: StoreInfo) -> str:
    size = f"{info.bytes:,} bytes"
    if info.to_do is None:
        return f"complete, {size}, identity {_short(info.identity)}"
    built = sum(s.shards_built for s in info.splits.values())
    shards = sum(s.shards for s in info.splits.values())
    progress = f"{built:,} of {shards:,} shards" if shards else "its text is not tokenised yet"
    return f"incomplete ({progress}), {size}: {info.to_do}"


def _about(info: StoreInfo) -> Iterator[tuple[str, str]]:
    """Labels and values of the provenance and the layout."""
    for name, value in info.provenance.items():
        if not isinstance(value, Mapping):
            yield name, _told(name, value)
        elif name == "versions":
            yield name, ", ".join(f"{library} {number}" for library, number in value.items())
        else:
            yield from ((f"{name}.{key}", _told(key, part)) for key, part in value.items())
    layout = info.layout
    if layout is not None:
        packing = layout.packing
        yield "stored as", f"{layout.dtype}, codec {layout.codec}, rows {layout.order}"
        yield "rows a shard", f"{layout.rows_per_shard:,}"
        yield (
            "contexts",
            "unknown"
            if packing is None
            else f"{packing.context_size} tokens, {'packed' if packing.packed else 'not packed'}, "
            f"BOS {packing.bos}, separator {packing.separator}",
        )
        yield "sample", f"{info.sample_rows:,} rows"
    for name, count in info.text.items():
        yield name.replace("_", " "), f"{count:,}"


def _hook_points(info: StoreInfo, group: list[HookPointInfo]) -> Table:
    table = Table("", title="hook points", title_justify="left")
    _fill(table, {h.name: h for h in group}, _HOOK_POINT_ROWS)
    figures = [h.figures for h in group]
    for label, figure in _FIGURE_ROWS.items():
        if any(figures):
            table.add_row(label, *("-" if f is None else figure(f) for f in figures))
    mixing = [info.mixing.get(h.name) for h in group]
    for label, measure in _MIXING_ROWS.items():
        if info.mixing:
            table.add_row(label, *("unknown" if m is None else measure(m) for m in mixing))
    return table


def _fill(
    table: Table, columns: Mapping[str, Any], rows: Mapping[str, Callable[[Any], str]]
) -> None:
    for name in columns:
        table.add_column(name, justify="right")
    for label, value in rows.items():
        table.add_row(label, *(value(column) for column in columns.values()))


def _told(name: str, value: Any) -> str:
    if name.endswith("sha256"):
        return _short(value)
    if value is None:
        return "none"
    return ", ".join(map(str, value)) if isinstance(value, list) else str(value)


def _known(count: int | None) -> str:
    return "unknown" if count is None else f"{count:,}"


def _short(value: str | None) -> str:
    return "none" if value is None else value[:_HASH]


def _quantiles(figures: Figures, *shares: float) -> str:
    return ", ".join(f"{figures.norm_quantiles[share]:.3g}" for share in shares)


def _commonest(counts: Mapping[str, int], massive: int) -> str:
    told = ", ".join(f"{value} ({count:,})" for value, count in islice(counts.items(), _TOLD))
    return told or ("unknown" if massive else "none")
