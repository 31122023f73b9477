"""One shard of an import: its rows read from the source and put in their places."""

from collections.abc import Callable, Iterator, Mapping, Sequence

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from saeflow.errors import BadInputError
from saeflow.harvest.importing.plan import ImportPlan
from saeflow.harvest.importing.source import Part, RowValues, Source
from saeflow.harvest.layout import HookPoint, Layout, Split
from saeflow.harvest.quantise import Quantisation, calibrate
from saeflow.harvest.shards import GatheredShard, new_shard, place_shard

_ROWS_AT_ONCE = 8192
"""Rows that are read, checked and put in their places together."""

_CALIBRATION_PLACES, _CALIBRATION_ROWS = 32, 512
"""Places of the training rows, and rows at each, that int8's channels are measured on."""


def gather_import(
    plan: ImportPlan,
    split: Split,
    index: int,
    on_rows: Callable[[int], None],
    *,
    quantisations: Mapping[str, Quantisation],
) -> GatheredShard:
    """Read a shard's rows.

    Args:
        plan: the import's.
        split: the split of the shard.
        index: the shard's number there.
        on_rows: told after each block how many rows it brought.
        quantisations: by hook point; needed for int8.

    Raises:
        BadInputError: an activation is not finite, in the source or in the stored
            precision, or a file can't be read.
    """
    layout, place = plan.layout, place_shard(plan.layout, split, index)
    blocks = list(_blocks(plan.source, plan.rows[split.name].runs(place.rows)))
    values = _values(blocks, layout.row_values)
    shard = new_shard(layout, place, values, quantisations=quantisations)
    places, done = torch.from_numpy(place.places), 0
    for part, rows in blocks:
        for hook_point in layout.hook_points:
            shard.put(
                hook_point.name,
                places[done : done + len(rows)],
                _read(layout, part, hook_point, rows),
            )
        done += len(rows)
        on_rows(len(rows))
    return shard


def calibrate_import(plan: ImportPlan) -> dict[str, Quantisation]:
    """Channels' mean and deviation at each hook point, from rows all over the training split."""
    split = plan.layout.splits["train"]
    places = min(_CALIBRATION_PLACES, split.n_rows)
    starts = np.arange(places) * split.n_rows // places
    spans = [range(s, min(s + _CALIBRATION_ROWS, split.n_rows)) for s in starts.tolist()]
    runs = [run for span in spans for run in plan.rows["train"].runs(span)]
    found: dict[str, Quantisation] = {}
    for hook_point in plan.layout.hook_points:
        read = [_read(plan.layout, part, hook_point, r) for part, r in _blocks(plan.source, runs)]
        found[hook_point.name] = calibrate(torch.cat(read))
    return found


def first_chunk(plan: ImportPlan) -> dict[str, Float[Tensor, "rows d_in"]]:
    """The first training rows at each hook point, a chunk of them at most."""
    n_rows, source = plan.layout.splits["train"].n_rows, plan.source
    found = {}
    for hook_point in plan.layout.hook_points:
        rows = range(min(plan.layout.rows_per_chunk(hook_point), n_rows))
        blocks = _blocks(source, plan.rows["train"].runs(rows))
        found[hook_point.name] = torch.cat(
            [_read(plan.layout, part, hook_point, some) for part, some in blocks]
        )
    return found


def _blocks(source: Source, runs: Sequence[range]) -> Iterator[tuple[Part, range]]:
    """Runs of a source's rows as parts and rows in them, a few thousand at a time."""
    starts = np.cumsum([0, *(part.n_rows for part in source.parts)])
    for run in runs:
        first = run.start
        while first < run.stop:
            which = int(np.searchsorted(starts, first, side="right")) - 1
            start, end = int(starts[which]), int(starts[which + 1])
            stop = min(run.stop, end, first + _ROWS_AT_ONCE)
            yield source.parts[which], range(first - start, stop - start)
            first = stop


def _values(blocks: Sequence[tuple[Part, range]], names: Sequence[str]) -> RowValues:
    found = [part.values(rows.start, rows.stop) for part, rows in blocks]
    return {name: np.concatenate([values[name] for values in found]) for name in names}


def _read(
    layout: Layout, part: Part, hook_point: HookPoint, rows: range
) -> Float[Tensor, "rows d_in"]:
    """Rows in the stored precision, or in float32 where they are still to be quantised."""
    given = part.read(hook_point.name, rows.start, rows.stop)
    kept = torch.float32 if layout.dtype == "int8" else layout.stored.torch
    stored = given.to(kept)
    if torch.isfinite(stored).all():
        return stored
    bad = int((~torch.isfinite(stored)).any(1).nonzero()[0, 0])
    where = part.where(hook_point.name, rows.start + bad)
    if not torch.isfinite(given[bad]).all():
        raise BadInputError(
            f"{where}: NaN or infinity among the activations: take such rows out of the source, "
            "then import it with --overwrite"
        )
    name = str(kept).removeprefix("torch.")
    largest = given[bad].abs().max().item()
    wider = (
        "import with --dtype float32 --overwrite"
        if layout.dtype == "float16"
        else "scale the rows down"
    )
    raise BadInputError(f"{where}: an activation of {largest:.3g} overflows {name}: {wider}")
