"""`saeflow verify --repair`: what is damaged is made again from the source, and nothing else.

Everything is made in a temporary folder beside the store and held against the
manifest before it takes a damaged file's place. So the store ends as it was
harvested, byte for byte, or the file stays as it is and the reason is named.
"""

import errno
import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from saeflow import console
from saeflow.errors import BadInputError, SaeflowError
from saeflow.files import write_durably
from saeflow.harvest.again import FoundSource, Source
from saeflow.harvest.arrays import create_arrays, write_array
from saeflow.harvest.build import build_shard
from saeflow.harvest.commits import FOLDER, MANIFEST, Record
from saeflow.harvest.contexts import open_text
from saeflow.harvest.create import create_skeleton
from saeflow.harvest.finish import write_statistics
from saeflow.harvest.locks import main_lock, refuse_others
from saeflow.harvest.manifest import ROOT, FileRecord, Manifest
from saeflow.harvest.plan import make_plan
from saeflow.harvest.provenance import differences
from saeflow.harvest.sample import sample_rows
from saeflow.harvest.shard_files import checksum
from saeflow.harvest.store import Store
from saeflow.harvest.verify import Verification, examine_manifest
from saeflow.harvest.workers import Worker

_BLOCK = 4 * 2**20


@dataclass
class _Work:
    """A repair under way.

    Attributes:
        path: the store's folder.
        manifest: its manifest.
        source: what the store was made from.
        scratch: a folder for what is made again.
        wanted: files that are not as they were written.
        repaired: files that are again.
    """

    path: Path
    manifest: Manifest
    source: FoundSource
    scratch: Path
    wanted: set[str]
    repaired: list[str] = field(default_factory=list)


def repair_store(found: Verification, source: Source) -> tuple[str, ...]:
    """Make again what is wrong with a store, as far as it can be.

    What does not belong to the store is left as it is.

    Args:
        found: what `verify_store` found.
        source: where the source is.

    Returns:
        The files that are now as they were written; verify the store again.

    Raises:
        BadInputError: the source is not what the store was made from, or unknown, or
            another process is writing.
        SaeflowError: what is made again is not what the manifest says, or can't be
            written, or something stands in its way.
    """
    path = found.store.resolve()
    _refuse_obstacles(path, _manifest(path), found)
    with _locked(path):
        manifest = _manifest(path)
        _refuse_strange_root(path, manifest)
        wanted = {problem.file for problem in found.problems} & set(manifest.files)
        with _scratch(path) as scratch:
            again = FoundSource(path, manifest.provenance, source)
            work = _Work(path, manifest, again, scratch, wanted)
            _repair_metadata(work)
            _repair_text(work)
            _repair_shards(work)
            _repair_statistics(work)
        if work.wanted:
            raise SaeflowError(
                f"{min(work.wanted)} does not come out as the manifest says: "
                "harvest the store again"
            )
        _repair_own(work, found)
    return tuple(work.repaired)


def _manifest(path: Path) -> Manifest:
    manifest, _ = examine_manifest(path)
    if manifest is None:
        raise SaeflowError(
            f"the manifest of store {path} is lost, and nothing else says what its files held: "
            f"put {MANIFEST} back from a copy, or harvest the store again"
        )
    return manifest


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Hold the store against every other writer."""
    if not os.access(path, os.W_OK) or not os.access(path / FOLDER, os.W_OK):
        raise BadInputError(f"store {path} is read-only: repair it where it can be written to")
    worker = Worker()
    with main_lock(path, worker):
        refuse_others(path, worker, alone=True)
        yield


def _refuse_strange_root(path: Path, manifest: Manifest) -> None:
    """Refuse a root that is whole, but another store's: then the manifest may be the stray one."""
    expected = manifest.root_attributes
    try:
        said = dict(json.loads((path / ROOT).read_bytes())["attributes"]["saeflow"])
        digest = said["manifest_sha256"]
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return  # nothing to be read: what the manifest says of itself will do
    # Damage in one place changes either the digest or something else.
    changed = differences({**said, "manifest_sha256": expected["manifest_sha256"]}, expected)
    if digest != expected["manifest_sha256"] and changed:
        raise SaeflowError(
            f"the root and the manifest of store {path} are not of one store "
            f"({'; '.join(changed[:3])}): put {ROOT} or {MANIFEST} back from a copy"
        )


def _refuse_obstacles(path: Path, manifest: Manifest, found: Verification) -> None:
    """Refuse to put a file where something stands that the store does not own."""
    files = {*manifest.files, ROOT, MANIFEST}
    for problem in found.problems:
        replaceable = problem.file in files and _is_free(path / problem.file)
        if problem.kind not in ("foreign", "left over") and not replaceable:
            raise SaeflowError(
                f"{path / problem.file} is in the way ({problem.detail}): move it away, then repair"
            )


def _is_free(place: Path) -> bool:
    """Whether nothing is there, or a file, or an empty folder."""
    if place.is_symlink():
        return False
    try:
        return not any(place.iterdir())
    except (FileNotFoundError, NotADirectoryError):
        return not place.exists() or place.is_file()
    except OSError:
        return False


@contextmanager
def _scratch(path: Path) -> Iterator[Path]:
    """A folder beside the store, on the same disk as a rule, since it may take gigabytes."""
    try:
        folder = tempfile.mkdtemp(dir=path.parent, prefix=f"{path.name}.repair-")
    except OSError as error:
        raise SaeflowError(
            f"no folder can be made beside store {path} ({error.strerror}): make room there, "
            "or let it be written to"
        ) from error
    try:
        yield Path(folder)
    finally:
        shutil.rmtree(folder)


def _repair_metadata(work: _Work) -> None:
    """What only the layout decides: the arrays' metadata, and which rows are the sample."""
    if not any(_belongs_to_no_shard(work, file) for file in work.wanted):
        return
    scratch = work.scratch / "metadata"
    for split in work.manifest.layout.splits.values():
        create_arrays(scratch, work.manifest.layout, split)
    write_array(scratch, "sample", sample_rows(work.manifest.layout), ("row",))
    _take(work, scratch)


def _repair_text(work: _Work) -> None:
    """What is known before the first shard is built; only the dataset decides it."""
    wanted = [file for file in work.wanted if _belongs_to_no_shard(work, file)]
    if all(file.startswith("stats/") for file in wanted):
        return
    work.source.refuse_another(text=True)
    config = work.source.config
    scratch = work.scratch / "text"
    (scratch / FOLDER).mkdir(parents=True)
    console.say(f"tokenising {config.dataset}")
    plan = make_plan(config, work.source.model, work.manifest.layout.hook_points, scratch / FOLDER)
    changed = differences(work.manifest.layout.to_attributes(), plan.layout.to_attributes())
    if changed:
        raise BadInputError(
            f"dataset {config.dataset} gives another store now ({'; '.join(changed)}): "
            "give the one that the store was made from with --dataset"
        )
    create_skeleton(scratch, plan, work.source.model)
    _take(work, scratch)


def _belongs_to_no_shard(work: _Work, file: str) -> bool:
    return work.manifest.files[file].shard is None


def _repair_shards(work: _Work) -> None:
    """Shards, each built whole again; only its damaged files are replaced."""
    layout = work.manifest.layout
    shards = {work.manifest.files[file].shard for file in work.wanted}
    shards_wanted = sorted(shard for shard in shards if shard is not None)
    if not shards_wanted:
        return
    work.source.refuse_another(text=False)
    view = Store(work.path, layout, {}, identity="")
    rows = sum(work.manifest.shards[shard]["rows"] for shard in shards_wanted)
    with console.meter("rebuilding", rows, "rows") as meter:
        for name, index in shards_wanted:
            scratch = work.scratch / "shard"
            record = build_shard(
                scratch,
                layout,
                layout.splits[name],
                index,
                model=work.source.model,
                text=open_text(view, layout.splits[name]),
                batch_size=work.source.config.batch_size,
                quantisations=view.quantisations(),
                on_rows=meter.advance,
            )
            _refuse_other_shard(work, record)
            _take(work, scratch)
            shutil.rmtree(scratch)


def _refuse_other_shard(work: _Work, record: Record) -> None:
    """Refuse a shard that is not, to the last bit, the one that the manifest has."""
    expected = work.manifest.shards[record["split"], record["shard"]]
    changed = differences(expected, json.loads(json.dumps(record)))
    if not changed:
        return
    told = "; ".join([changed[0], *work.source.other_versions])
    raise SaeflowError(
        f"{record['split']} shard {record['shard']} comes out differently here ({told}): "
        "repair the store on the machine and with the versions that harvested it; "
        "its files are left as they are"
    )


def _repair_statistics(work: _Work) -> None:
    """What is merged from all shards, once they are whole."""
    layout, train = work.manifest.layout, work.manifest.layout.splits["train"]
    if not work.wanted:
        return
    scratch = work.scratch / "statistics"
    create_arrays(scratch, layout, train)
    for record in work.manifest.files.values():
        if record.shard is not None and record.path.startswith("stats/"):
            target = scratch / record.path
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(work.path / record.path, target)
    for hook_point in layout.hook_points:
        write_statistics(scratch, layout, hook_point, work.manifest.shards)
    _take(work, scratch)


def _repair_own(work: _Work, found: Verification) -> None:
    """The manifest and the root, which vouch for each other; and what a writer left behind."""
    encoded = {MANIFEST: work.manifest.encoded, ROOT: work.manifest.encoded_root}
    for problem in found.problems:
        if problem.kind == "left over":
            (work.path / problem.file).unlink(missing_ok=True)
            work.repaired.append(problem.file)
        elif problem.file in encoded:
            _write(work.path / problem.file, [encoded[problem.file]])
            work.repaired.append(problem.file)


def _take(work: _Work, scratch: Path) -> None:
    """Put into the store what was made again, where it is what the manifest says."""
    for file in sorted(work.wanted):
        made, record = scratch / file, work.manifest.files[file]
        if made.is_file() and checksum(_blocks(made)) == _expected(record):
            _write(work.path / file, _blocks(made))
            work.wanted.remove(file)
            work.repaired.append(file)


def _expected(record: FileRecord) -> dict[str, int]:
    return {"bytes": record.bytes, "crc32c": record.crc32c}


def _write(place: Path, parts: Any) -> None:
    try:
        if place.is_dir():
            place.rmdir()  # empty, or it would not be replaced
        write_durably(place, parts)
    except OSError as error:
        if error.errno == errno.ENOSPC:
            raise
        raise SaeflowError(f"{place} can't be written: {error.strerror}") from error


def _blocks(file: Path) -> Iterator[bytes]:
    with file.open("rb") as opened:
        while block := opened.read(_BLOCK):
            yield block
