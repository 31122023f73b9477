"""A remote store while it is written: what of it is where, and what counts.

A shard is built in a staging folder, its files are uploaded, one object a file, and
then the record that commits it, as an object of its own: `_saeflow/done/train-3.json`.
An object is there whole or not at all, so nothing is renamed; a shard counts if, and
only if, its record is there. Then its files in the staging folder go. So a disk has to
hold two shards and the store's skeleton, and any machine can go on with the store: it
fetches the skeleton, whose objects `_saeflow/skeleton.json` lists with their checksums.

A finished store has the same files as in a folder, and no other objects.
"""

import hashlib
import json
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar

from saeflow.crc import crc32c
from saeflow.errors import SaeflowError
from saeflow.files import json_bytes
from saeflow.harvest import commits
from saeflow.harvest.commits import FOLDER, MANIFEST, Record
from saeflow.harvest.finish import finish_store
from saeflow.harvest.layout import Layout
from saeflow.harvest.manifest import ROOT, complete_attributes, root_metadata
from saeflow.harvest.remote import Remote
from saeflow.harvest.remote_locks import LOCK
from saeflow.harvest.store import read_attributes

DONE = f"{FOLDER}/done"
SKELETON = f"{FOLDER}/skeleton.json"
_IN_FLIGHT = 16
"""Requests at a time: each of them waits for the server most of its time."""

Files = dict[str, list[dict[str, int]]]
"""Bytes and crc32c that a file may have, by its path relative to the store."""

Item = TypeVar("Item")
Answer = TypeVar("Answer")


def publish(remote: Remote, staging: Path, begun: Mapping[str, Any]) -> None:
    """Upload a new store's skeleton in the place of all that is there; the main lock is held.

    Args:
        remote: the store.
        staging: its folder, the skeleton in it.
        begun: the root's attribute while nothing of the store counts.
    """
    remote.put(ROOT, json_bytes(root_metadata(begun)))
    kept = {ROOT, LOCK}
    remote.delete(name for name in remote.names() if name not in kept)
    files = _skeleton_files(staging)
    _at_once(lambda name: remote.put(name, staging / name), files)
    remote.put(SKELETON, json_bytes(files))
    remote.put(ROOT, staging / ROOT)


def fetch_skeleton(remote: Remote, staging: Path) -> Files:
    """Make the staging folder hold the store's skeleton, and its root.

    Raises:
        SaeflowError: an object of the skeleton is missing or damaged.
    """
    listed = remote.read(SKELETON)
    if listed is None:
        raise _damaged(remote, SKELETON)
    files: Files = json.loads(listed)
    _fetch(remote, staging, files)
    root = remote.read(ROOT)
    if root is None:
        raise _damaged(remote, ROOT)
    (staging / ROOT).write_bytes(root)
    return files


def upload_shard(remote: Remote, staging: Path, record: Record) -> None:
    """Upload a shard's files, commit it, and make room for the next one.

    The statistics of its channels stay, for the end.
    """
    _at_once(lambda name: remote.put(name, staging / name), record["files"])
    remote.put(_done_name(record["split"], record["shard"]), json_bytes(record))
    for name in record["files"]:
        if not name.startswith("stats/"):
            (staging / name).unlink()


def done_shards(remote: Remote) -> set[tuple[str, int]]:
    """The committed shards, by split and number."""
    found = set()
    for name in remote.names(DONE):
        split, _, number = name.rpartition("/")[2].removesuffix(".json").partition("-")
        found.add((split, int(number)))
    return found


def complete_if_whole(remote: Remote, staging: Path, layout: Layout) -> int:
    """Complete the store if every shard is there; the main lock is held.

    Returns:
        How many shards are still missing.
    """
    if attributes_of(remote)["state"] == "complete":
        return 0
    manifest = remote.read(MANIFEST)
    if manifest is None:
        shards = [(s.name, k) for s in layout.splits.values() for k in range(s.n_shards)]
        missing = len(set(shards) - done_shards(remote))
        if missing:
            return missing
        manifest = _finish(remote, staging, layout, shards)
    remote.delete([*remote.names(DONE), SKELETON])
    attributes = complete_attributes(json.loads(manifest), hashlib.sha256(manifest).hexdigest())
    remote.put(ROOT, json_bytes(root_metadata(attributes)))
    return 0


def bytes_of(remote: Remote) -> int:
    """Bytes of a complete store's files, as its manifest has them."""
    encoded = remote.read(MANIFEST) or b""
    manifest = json.loads(encoded)
    shards = [file for record in manifest["shards"] for file in record["files"].values()]
    listed: int = sum(file["bytes"] for file in [*manifest["files"].values(), *shards])
    return listed + len(encoded) + remote.size(ROOT)


def _finish(
    remote: Remote, staging: Path, layout: Layout, shards: Iterable[tuple[str, int]]
) -> bytes:
    """Merge statistics in the staging folder, upload them and the manifest, which is returned."""
    skeleton = fetch_skeleton(remote, staging)
    records = _at_once(lambda shard: _read_record(remote, *shard), shards)
    for record in records:
        channels = {n: [f] for n, f in record["files"].items() if n.startswith("stats/")}
        _fetch(remote, staging, channels)
    _keep_only(staging, {ROOT, *skeleton, *(n for r in records for n in r["files"])})
    for record in records:
        commits.append(staging, record)
    finish_store(staging, layout, attributes_of(remote))
    manifest = (staging / MANIFEST).read_bytes()
    files = json.loads(manifest)["files"]
    # Who goes on after a crash may find a file of the skeleton as it was, or as it will be.
    may_be = {n: old if files[n] in old else [*old, files[n]] for n, old in skeleton.items()}
    if may_be != skeleton:
        remote.put(SKELETON, json_bytes(may_be))
    new = [name for name, about in files.items() if about != skeleton.get(name, [None])[0]]
    _at_once(lambda name: remote.put(name, staging / name), new)
    remote.put(MANIFEST, manifest)
    return manifest


def attributes_of(remote: Remote) -> dict[str, Any]:
    """What the root of a store says that is being written.

    Raises:
        SaeflowError: somebody threw the store away.
    """
    attributes = read_attributes(remote.url)
    if attributes is None or "layout" not in attributes:
        raise SaeflowError(
            f"store {remote.url} was thrown away while it was written: run the same harvest again"
        )
    return attributes


def _keep_only(staging: Path, names: set[str]) -> None:
    """Remove what an interrupted or an older harvest has left in the staging folder."""
    for path in [path for path in staging.rglob("*") if path.is_file()]:
        if path.relative_to(staging).as_posix() not in names:
            path.unlink()


def _fetch(remote: Remote, staging: Path, files: Files) -> None:
    """Fetch objects that the staging folder doesn't hold as they ought to be."""

    def fetch(name: str) -> None:
        path, abouts = staging / name, files[name]
        if path.is_file() and _is(path.read_bytes(), abouts):
            return
        content = remote.read(name)
        if content is None or not _is(content, abouts):
            raise _damaged(remote, name)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)

    _at_once(fetch, files)


def _is(content: bytes, abouts: list[dict[str, int]]) -> bool:
    return {"bytes": len(content), "crc32c": crc32c(content)} in abouts


def _skeleton_files(staging: Path) -> Files:
    files = {}
    for path in sorted(path for path in staging.rglob("*") if path.is_file()):
        name = path.relative_to(staging).as_posix()
        if name != ROOT and not name.startswith(f"{FOLDER}/"):
            content = path.read_bytes()
            files[name] = [{"bytes": len(content), "crc32c": crc32c(content)}]
    return files


def _read_record(remote: Remote, split: str, index: int) -> Record:
    content = remote.read(_done_name(split, index))
    if content is None:
        raise _damaged(remote, _done_name(split, index))
    record: Record = json.loads(content)
    return record


def _done_name(split: str, index: int) -> str:
    return f"{DONE}/{split}-{index}.json"


def _damaged(remote: Remote, name: str) -> SaeflowError:
    return SaeflowError(
        f"{remote.url}/{name} is missing or damaged: begin the store again with --overwrite"
    )


def _at_once(request: Callable[[Item], Answer], items: Iterable[Item]) -> list[Answer]:
    """Make requests, several at a time; their answers in order."""
    with ThreadPoolExecutor(_IN_FLIGHT, "saeflow-remote") as pool:
        return list(pool.map(request, items))
