"""Fill a store's skeleton: a shard is written, and then committed, while the next is gathered."""

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

from saeflow import console
from saeflow.errors import SaeflowError
from saeflow.harvest import commits
from saeflow.harvest.claim import check_space_left
from saeflow.harvest.finish import finish_store
from saeflow.harvest.layout import Layout, Split
from saeflow.harvest.overlap import background
from saeflow.harvest.shard_files import write_shard
from saeflow.harvest.shards import GatheredShard
from saeflow.harvest.store import read_attributes
from saeflow.harvest.workers import Worker

Gather = Callable[[Split, int, Callable[[int], None]], GatheredShard]
"""Gives a shard of a split; tells its third argument of rows as it goes."""


def layout_of(out: Path, worker: Worker) -> Layout:
    """The layout of the store that is being written.

    Raises:
        SaeflowError: somebody threw the store away.
    """
    attributes = read_attributes(out)
    if attributes is None or "layout" not in attributes:
        raise SaeflowError(
            f"store {out} was thrown away while {worker} was at work: run the same command again"
        )
    return Layout.from_attributes(attributes["layout"])


def all_shards(layout: Layout) -> list[tuple[Split, int]]:
    """The shards of all splits, in the order in which workers share them out."""
    return [(split, index) for split in layout.splits.values() for index in range(split.n_shards)]


def missing_shards(out: Path, layout: Layout, worker: Worker) -> list[tuple[Split, int]]:
    """The shards of a worker's share that are not committed; its lock is held.

    Raises:
        BadInputError: there is not enough room for what is left.
    """
    commits.cut_torn_line(out, worker.rank)
    done = commits.read_records(out)
    share = worker.share(all_shards(layout))
    missing = [(split, index) for split, index in share if (split.name, index) not in done]
    if missing:
        check_space_left(out, layout, done)
    return missing


def fill(
    out: Path,
    layout: Layout,
    worker: Worker,
    missing: Sequence[tuple[Split, int]],
    gather: Gather,
    doing: str,
    commit: Callable[[commits.Record], None] | None = None,
) -> None:
    """Gather, write and commit shards.

    Args:
        out: the store's folder, its skeleton written.
        layout: its layout.
        worker: who writes; its lock is held.
        missing: of its share, what `missing_shards` gave.
        gather: gives a shard's rows.
        doing: what the progress bar says.
        commit: makes a shard count whose files are written; appends to the worker's log
            if not given.
    """

    def write(shard: GatheredShard) -> None:
        record = write_shard(out, layout, shard)
        if commit is None:
            commits.append(out, record, worker.rank)
        else:
            commit(record)

    n_rows = _count(worker.share(all_shards(layout)))
    with console.meter(doing, n_rows, "rows") as meter, background() as writer:

        def on_rows(count: int) -> None:
            meter.advance(count)
            writer.check()

        meter.resume_at(n_rows - _count(missing))
        for split, index in missing:
            writer.start(partial(write, gather(split, index, on_rows)))


def complete_if_whole(out: Path, layout: Layout) -> int:
    """Complete the store if every shard is there; the main lock is held.

    Returns:
        How many shards are still missing.
    """
    attributes = read_attributes(out)
    assert attributes is not None
    missing = len(all_shards(layout)) - len(commits.read_records(out))
    if missing == 0 and attributes["state"] != "complete":
        commits.sweep(out)
        finish_store(out, layout, attributes)
    return missing


def _count(shards: Sequence[tuple[Split, int]]) -> int:
    return sum(len(split.shard(index)) for split, index in shards)
