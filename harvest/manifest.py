"""The manifest of a complete store: what each of its files holds, and what its root says.

It carries a checksum of its own content. So damage to the manifest can be told from
damage to the root, and either can be written again from what is left.
"""

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from saeflow.errors import BadInputError
from saeflow.files import json_bytes
from saeflow.harvest.commits import FOLDER, MANIFEST, Record
from saeflow.harvest.layout import FORMAT, Layout

ROOT = "zarr.json"
"""The root group's metadata; its attribute `saeflow` says what the store is."""

_NOT_IN_ROOT = ("files", "shards", "content_sha256")


@dataclass(frozen=True)
class FileRecord:
    """One file as it was written.

    Attributes:
        path: relative to the store, with slashes.
        bytes: its length.
        crc32c: of its content.
        shard: split and number of the shard that it belongs to, if to one.
    """

    path: str
    bytes: int
    crc32c: int
    shard: tuple[str, int] | None = None


@dataclass(frozen=True)
class Manifest:
    """A manifest that is as it was written, in content if not byte for byte.

    Attributes:
        content: the JSON object.
        layout: where rows are.
        files: by path, every file but the root and those in `_saeflow`.
        shards: the shards' records, by split and number.
        found: the file's bytes as they are.
    """

    content: Mapping[str, Any]
    layout: Layout
    files: Mapping[str, FileRecord]
    shards: Mapping[tuple[str, int], Record]
    found: bytes

    @cached_property
    def by_content(self) -> Mapping[tuple[int, int | None], str]:
        """Files by length and crc32c, to find out whose content another one holds."""
        return {(r.bytes, r.crc32c): r.path for r in self.files.values() if r.bytes}

    @cached_property
    def lengths(self) -> frozenset[int]:
        """The lengths that files of the store have."""
        return frozenset(record.bytes for record in self.files.values())

    @property
    def provenance(self) -> Mapping[str, Any]:
        """What the store was made from."""
        return dict(self.content["provenance"])

    @cached_property
    def encoded(self) -> bytes:
        """The file's bytes as they ought to be."""
        return json_bytes(self.content)

    @cached_property
    def root_attributes(self) -> dict[str, Any]:
        """What the root has to say."""
        return complete_attributes(self.content, hashlib.sha256(self.encoded).hexdigest())

    @cached_property
    def encoded_root(self) -> bytes:
        """The bytes that the root's metadata has to have."""
        return json_bytes(root_metadata(self.root_attributes))

    def fits(self, root: bytes | None) -> bool:
        """Whether the bytes of the root's metadata vouch for the manifest as it is found."""
        attributes = complete_attributes(self.content, hashlib.sha256(self.found).hexdigest())
        return root == json_bytes(root_metadata(attributes))


def seal(
    attributes: Mapping[str, Any],
    files: Mapping[str, Mapping[str, int]],
    shards: Iterable[Record],
) -> dict[str, Any]:
    """A manifest with its own checksum.

    Args:
        attributes: what the root says of the store; its `state` is left out.
        files: bytes and crc32c of every file that belongs to no shard.
        shards: the shards' records, in order.
    """
    said = {key: value for key, value in attributes.items() if key != "state"}
    # As a reader of the file will have it, whatever Python's own types were.
    content = json.loads(json.dumps({**said, "files": dict(files), "shards": list(shards)}))
    return {**content, "content_sha256": _digest(content)}


def complete_attributes(manifest: Mapping[str, Any], digest: str) -> dict[str, Any]:
    """The root's attribute `saeflow` of a complete store.

    Args:
        manifest: what `seal` gave.
        digest: sha256 of the manifest's file.
    """
    said = {key: value for key, value in manifest.items() if key not in _NOT_IN_ROOT}
    return {"format": said["format"], "state": "complete", **said, "manifest_sha256": digest}


def root_metadata(attributes: Mapping[str, Any]) -> dict[str, Any]:
    """The root group's metadata, as zarr v3 has it."""
    return {"attributes": {"saeflow": attributes}, "zarr_format": 3, "node_type": "group"}


def read_manifest(store: Path) -> Manifest | None:
    """A store's manifest; None if it is not there, or not what was written.

    Raises:
        BadInputError: it is of a newer format, names paths that lead out of the
            store, or its parts don't fit together.
    """
    try:
        found = (store / MANIFEST).read_bytes()
        content = json.loads(found)
        claimed = content.pop("content_sha256")
        if claimed != _digest(content):
            return None
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return None
    if not isinstance(content.get("format"), int) or content["format"] > FORMAT:
        raise BadInputError(
            f"store {store} is of format {content.get('format')}, newer than this saeflow reads "
            f"({FORMAT}): upgrade saeflow"
        )
    try:
        return _parse(store, {**content, "content_sha256": claimed}, found)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise BadInputError(
            f"store {store} has a manifest that saeflow did not write ({error!r}): "
            "don't use the store"
        ) from error


def _parse(store: Path, content: dict[str, Any], found: bytes) -> Manifest:
    shards = {(record["split"], record["shard"]): record for record in content["shards"]}
    listed = [
        *(_file_record(path, entry, None) for path, entry in content["files"].items()),
        *(
            _file_record(path, entry, key)
            for key, record in shards.items()
            for path, entry in record["files"].items()
        ),
    ]
    files = {record.path: record for record in listed}
    for path in files:
        if not _is_inside(path):
            raise BadInputError(
                f"store {store} has a manifest that names {path!r}, which is no file of a store: "
                "don't use the store"
            )
    layout = Layout.from_attributes(content["layout"])
    expected = {
        (s.name, k): len(s.shard(k)) for s in layout.splits.values() for k in range(s.n_shards)
    }
    if {key: record["rows"] for key, record in shards.items()} != expected:
        raise ValueError("its shards are not those of its layout")
    if len(files) < len(listed) or len(shards) < len(content["shards"]):
        raise ValueError("it names a file or a shard twice")
    return Manifest(content, layout, files, shards, found)


def _file_record(path: str, entry: Mapping[str, Any], shard: tuple[str, int] | None) -> FileRecord:
    return FileRecord(path, int(entry["bytes"]), int(entry["crc32c"]), shard)


def _is_inside(path: str) -> bool:
    parts = path.split("/")
    plain = not any(part in ("", ".", "..") for part in parts) and not {"\\", "\0"} & set(path)
    return plain and path != ROOT and parts[0] != FOLDER


def _digest(content: Mapping[str, Any]) -> str:
    text = json.dumps(content, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()
