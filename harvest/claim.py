"""The folder that a store is written to: what may be there, whose it is, and room in it."""

import shutil
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from saeflow.errors import BadInputError
from saeflow.files import PARTIAL
from saeflow.harvest import commits
from saeflow.harvest.cost import bytes_on_disk
from saeflow.harvest.finish import ROOT
from saeflow.harvest.layout import Layout
from saeflow.harvest.locks import LOCK, main_lock
from saeflow.harvest.provenance import differences
from saeflow.harvest.store import read_attributes
from saeflow.harvest.workers import Worker
from saeflow.location import Location

BEGUN = "tokenizing"
"""The state of a store whose source is being read: nothing of value is in it yet."""


def existing_state(out: Path, provenance: Mapping[str, Any], *, overwrite: bool) -> str | None:
    """The state of the store at `out`, or None if there is none.

    Args:
        out: the folder.
        provenance: of the store that is to be written there.
        overwrite: whether one of another provenance may be thrown away.

    Raises:
        BadInputError: something is there that must not be touched.
    """
    if not out.exists():
        return None
    if not out.is_dir():
        raise BadInputError(f"--out {out} is a file: name a folder")
    attributes = read_attributes(out)
    if attributes is None:
        ours = {commits.FOLDER, f"{ROOT}{PARTIAL}"}
        refuse_foreign({entry.name for entry in out.iterdir()} - ours, out)
        return None
    return state_of(attributes, out, provenance, overwrite=overwrite)


def refuse_foreign(names: Iterable[str], out: Location) -> None:
    """Refuse a place that holds something else than a store.

    Raises:
        BadInputError: there are any of these names.
    """
    foreign = sorted(names)
    if foreign:
        raise BadInputError(
            f"--out {out} holds something else ({', '.join(foreign[:3])}): "
            "name an empty or a new folder"
        )


def state_of(
    attributes: Mapping[str, Any],
    out: Location,
    provenance: Mapping[str, Any],
    *,
    overwrite: bool,
) -> str:
    """The state of a store, after it is refused if it is another one.

    Args:
        attributes: what its root says.
        out: where it is.
        provenance: of the store that is to be written there.
        overwrite: whether one of another provenance may be thrown away.

    Raises:
        BadInputError: its provenance differs.
    """
    state = str(attributes.get("state"))
    changed = differences(attributes.get("provenance", {}), provenance)
    if state != BEGUN and changed and not overwrite:
        raise BadInputError(
            f"--out {out} holds a store made with other options ({'; '.join(changed)}): "
            "name another folder, or throw it away with --overwrite"
        )
    return state


@contextmanager
def claimed(out: Path, worker: Worker) -> Iterator[None]:
    """Hold the main lock; a folder that was made for input that is then refused goes again."""
    created = not out.exists()
    with main_lock(out, worker):
        try:
            yield
        except BadInputError:
            attributes = read_attributes(out)
            if created and (attributes is None or attributes["state"] == BEGUN):
                shutil.rmtree(out)
            raise


def clear(out: Path) -> None:
    """Remove what was cut short or thrown away; the root, which says so, and the lock stay."""
    for entry in [*out.iterdir(), *(out / commits.FOLDER).iterdir()]:
        if entry.name in (ROOT, commits.FOLDER, LOCK):
            continue
        if entry.is_dir():
            shutil.rmtree(entry)
        else:
            entry.unlink()


def check_space(out: Path, layout: Layout, else_do: str) -> None:
    """Refuse to begin a store that is larger than the disk has room for.

    Args:
        out: its folder; what is in it will be thrown away.
        layout: of the new store.
        else_do: what a user can do beside making room.

    Raises:
        BadInputError: there is not enough room.
    """
    refuse_full(out, bytes_on_disk(layout), "the store takes", else_do)


def refuse_full(out: Path, needed: int, what: str, else_do: str) -> None:
    """Refuse to fill a folder that has too little room; what is in it will be thrown away.

    Args:
        out: the folder.
        needed: bytes.
        what: what takes them, for the message.
        else_do: what a user can do beside making room.

    Raises:
        BadInputError: there is not enough room.
    """
    thrown_away = sum(path.stat().st_size for path in out.rglob("*") if path.is_file())
    if needed > shutil.disk_usage(out).free + thrown_away:
        raise _no_space(out, needed, what, else_do)


def check_space_left(
    out: Path, layout: Layout, done: Mapping[tuple[str, int], commits.Record]
) -> None:
    """Refuse to go on with a store whose rest is larger than the disk has room for.

    Raises:
        BadInputError: there is not enough room.
    """
    total = sum(split.n_rows for split in layout.splits.values())
    left = total - sum(record["rows"] for record in done.values())
    needed = bytes_on_disk(layout) * left // total
    if needed > shutil.disk_usage(out).free:
        raise _no_space(out, needed, "the rest of the store takes", ", then run again")


def _no_space(out: Path, needed: int, what: str, else_do: str) -> BadInputError:
    free = shutil.disk_usage(out).free
    return BadInputError(f"{what} {needed:,} bytes and {out} has {free:,} free: make room{else_do}")
