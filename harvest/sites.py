"""Where a store is written: a folder, or a bucket by way of a folder.

A harvest is the same for both. What differs is who may write, where the truth about
committed shards is, and what happens to files that are made.
"""

import hashlib
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from saeflow.errors import BadInputError
from saeflow.harvest import claim, commits, filling, locks, mirror, remote_locks
from saeflow.harvest.cost import bytes_on_disk
from saeflow.harvest.layout import Layout, Split
from saeflow.harvest.manifest import ROOT
from saeflow.harvest.remote import Remote, connect
from saeflow.harvest.store import read_attributes
from saeflow.harvest.workers import Worker
from saeflow.location import Location

_SHARDS_IN_STAGING = 2
"""One is uploaded while the next one is written."""


@dataclass(frozen=True)
class FolderSite:
    """A store in a folder, made where it stays.

    Attributes:
        folder: the store's, and where its files are made.
        worker: who writes.
    """

    folder: Path
    worker: Worker

    @property
    def place(self) -> Location:
        """The store."""
        return self.folder

    def existing_state(self, provenance: Mapping[str, Any], *, overwrite: bool) -> str | None:
        """As `claim.existing_state`."""
        return claim.existing_state(self.folder, provenance, overwrite=overwrite)

    def claimed(self) -> AbstractContextManager[None]:
        """Hold the main lock, as somebody who begins or joins."""
        return claim.claimed(self.folder, self.worker)

    def refuse_others(self, *, alone: bool) -> None:
        """As `locks.refuse_others`."""
        locks.refuse_others(self.folder, self.worker, alone=alone)

    def check_space(self, layout: Layout, else_do: str) -> None:
        """As `claim.check_space`."""
        claim.check_space(self.folder, layout, else_do)

    def begun(self, attributes: Mapping[str, Any]) -> None:
        """The skeleton is made; `attributes` are what the root said of the store before."""

    def join(self) -> None:
        """Go on with a store that has its skeleton."""

    def worker_lock(self) -> AbstractContextManager[None]:
        """Hold the worker's own lock."""
        return locks.worker_lock(self.folder, self.worker)

    def layout(self) -> Layout:
        """As `filling.layout_of`."""
        return filling.layout_of(self.folder, self.worker)

    def missing_shards(self, layout: Layout) -> list[tuple[Split, int]]:
        """As `filling.missing_shards`."""
        return filling.missing_shards(self.folder, layout, self.worker)

    def commit(self, record: commits.Record) -> None:
        """Make a shard count whose files are made: a line in the worker's log."""
        commits.append(self.folder, record, self.worker.rank)

    def completing(self) -> AbstractContextManager[None]:
        """Hold the main lock, as somebody whose shards are done."""
        return locks.main_lock(self.folder, self.worker, patient=True)

    def complete_if_whole(self, layout: Layout) -> int:
        """As `filling.complete_if_whole`."""
        return filling.complete_if_whole(self.folder, layout)


@dataclass(frozen=True)
class BucketSite:
    """A store behind a URL, made shard by shard in a staging folder.

    Attributes:
        remote: the store.
        folder: where its files are made.
        worker: who writes.
    """

    remote: Remote
    folder: Path
    worker: Worker

    @property
    def place(self) -> Location:
        """The store."""
        return self.remote.url

    def existing_state(self, provenance: Mapping[str, Any], *, overwrite: bool) -> str | None:
        """As `claim.existing_state`."""
        attributes = read_attributes(self.place)
        if attributes is not None:
            return claim.state_of(attributes, self.place, provenance, overwrite=overwrite)
        tops = (name.partition("/")[0] for name in self.remote.names())
        foreign = (top for top in tops if top != commits.FOLDER)
        claim.refuse_foreign(islice(foreign, 1), self.place)  # there may be millions
        return None

    @contextmanager
    def claimed(self) -> Iterator[None]:
        """Hold the main lock, as somebody who begins or joins."""
        with remote_locks.main_lock(self.remote, self.worker):
            (self.folder / commits.FOLDER).mkdir(parents=True, exist_ok=True)
            yield

    def refuse_others(self, *, alone: bool) -> None:
        """As `locks.refuse_others`."""
        remote_locks.refuse_others(self.remote, self.worker, alone=alone)

    def check_space(self, layout: Layout, else_do: str) -> None:
        """Refuse to begin a store whose skeleton and two shards the disk has no room for."""
        rows = sum(split.n_rows for split in layout.splits.values())
        in_staging = min(rows, _SHARDS_IN_STAGING * layout.rows_per_shard)
        # Of the skeleton, 4 bytes a row are its tokens; the rest is small.
        needed = bytes_on_disk(layout) * in_staging // rows + 4 * rows
        claim.refuse_full(self.folder, needed, "staging takes", else_do)

    def begun(self, attributes: Mapping[str, Any]) -> None:
        """Upload the skeleton."""
        mirror.publish(self.remote, self.folder, attributes)

    def join(self) -> None:
        """Fetch the skeleton, unless there is nothing left to build."""
        if self.remote.read(commits.MANIFEST) is None:
            if _read(self.folder / ROOT) != self.remote.read(ROOT):
                claim.clear(self.folder)
            mirror.fetch_skeleton(self.remote, self.folder)

    def worker_lock(self) -> AbstractContextManager[None]:
        """Hold the worker's own lock."""
        return remote_locks.worker_lock(self.remote, self.worker)

    def layout(self) -> Layout:
        """As `filling.layout_of`."""
        return Layout.from_attributes(mirror.attributes_of(self.remote)["layout"])

    def missing_shards(self, layout: Layout) -> list[tuple[Split, int]]:
        """As `filling.missing_shards`."""
        if self.remote.read(commits.MANIFEST) is not None:
            return []
        done = mirror.done_shards(self.remote)
        share = self.worker.share(filling.all_shards(layout))
        missing = [(split, index) for split, index in share if (split.name, index) not in done]
        if missing:
            self.check_space(layout, ", then run again")
        return missing

    def commit(self, record: commits.Record) -> None:
        """Upload the shard's files, and then its record."""
        mirror.upload_shard(self.remote, self.folder, record)

    def completing(self) -> AbstractContextManager[None]:
        """Hold the main lock, as somebody whose shards are done."""
        return remote_locks.main_lock(self.remote, self.worker, patient=True)

    def complete_if_whole(self, layout: Layout) -> int:
        """As `filling.complete_if_whole`; the staging folder of a complete store goes."""
        missing = mirror.complete_if_whole(self.remote, self.folder, layout)
        if missing == 0:
            shutil.rmtree(self.folder, ignore_errors=True)  # another worker here may be doing it
        return missing


Site = FolderSite | BucketSite
"""A place where a worker writes a store, and the rules there."""


def open_site(out: Location, worker: Worker, staging: Path | None) -> Site:
    """The place that `--out` names.

    Args:
        out: a folder or a URL.
        worker: who writes.
        staging: where the files of a remote store are made; a folder of its own in the
            user's cache if not given.

    Raises:
        BadInputError: nothing can be written there.
    """
    if isinstance(out, Path):
        if staging is not None:
            raise BadInputError(f"--staging is for a URL, and --out is {out}: leave it out")
        return FolderSite(out, worker)
    if not out.writable:
        raise BadInputError(f"--out {out} can only be read: name a folder, or s3:// or gs://")
    folder = staging or _cache() / hashlib.sha256(str(out).encode()).hexdigest()[:16]
    if staging is not None and staging.exists():
        _refuse_strangers(staging)
    return BucketSite(connect(out), folder, worker)


def bytes_of(place: Location) -> int:
    """Bytes of a complete store's files."""
    if isinstance(place, Path):
        return sum(path.stat().st_size for path in place.rglob("*") if path.is_file())
    return mirror.bytes_of(connect(place))


def _cache() -> Path:
    home = os.environ.get("XDG_CACHE_HOME")
    return (Path(home) if home else Path.home() / ".cache") / "saeflow" / "staging"


def _refuse_strangers(staging: Path) -> None:
    """The staging folder is ours alone: what is in it will be thrown away."""
    ours = staging.is_dir() and (not any(staging.iterdir()) or (staging / commits.FOLDER).is_dir())
    if not ours:
        raise BadInputError(
            f"--staging {staging} holds something else: name an empty or a new folder"
        )


def _read(path: Path) -> bytes | None:
    return path.read_bytes() if path.is_file() else None
