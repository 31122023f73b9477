"""`saeflow info`: what a store holds, where it is from, and how well it is mixed.

It reads metadata, merged statistics and a few strips of one array, however large the
store. It stands with the trainer because the trainer's order decides how well rows
are mixed; the rest of it is `harvest/info.py`.
"""

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from saeflow.errors import BadInputError, SaeflowError, one_line
from saeflow.harvest import commits
from saeflow.harvest.info import (
    HookPointInfo,
    SplitInfo,
    bytes_of_other_files,
    bytes_of_shards,
    hook_point_info,
    split_info,
)
from saeflow.harvest.layout import Layout
from saeflow.harvest.manifest import ROOT
from saeflow.harvest.remote import connect
from saeflow.harvest.store import Store, open_store, read_attributes
from saeflow.location import Location, Place, Url, locate
from saeflow.train.mixing import Mixing, measure_mixing


@dataclass(frozen=True, kw_only=True)
class StoreInfo:
    """What a store says of itself.

    Attributes:
        path: its folder, or its URL.
        state: `complete`, or how far the harvest has come: `tokenizing` or `writing`.
        format: the number of its format.
        identity: sha256 of the manifest; None while it is incomplete.
        bytes: of all its files, those of shards that aren't committed left out.
        provenance: source model, dataset, options and versions.
        text: what became of the dataset's documents and tokens; empty if nobody knows.
        layout: where its rows are; None before the text is tokenised.
        splits: by name.
        hook_points: in the order of the layout.
        sample_rows: how many rows the stored sample names.
        mixing: by hook point; None where the store doesn't say which rows are of one
            document. Empty while it is incomplete.
    """

    path: Location
    state: str
    format: int
    identity: str | None
    bytes: int
    provenance: Mapping[str, Any]
    text: Mapping[str, int]
    layout: Layout | None
    splits: Mapping[str, SplitInfo]
    hook_points: tuple[HookPointInfo, ...]
    sample_rows: int
    mixing: Mapping[str, Mixing | None]

    @property
    def to_do(self) -> str | None:
        """What an incomplete store needs; None for a complete one."""
        if self.state == "complete":
            return None
        return "run the same saeflow harvest again, it continues"

    def to_json(self) -> dict[str, Any]:
        """What `--json` prints."""
        return {
            "store": str(self.path),
            "complete": self.state == "complete",
            "state": self.state,
            "to_do": self.to_do,
            "format": self.format,
            "identity": self.identity,
            "bytes": self.bytes,
            "provenance": dict(self.provenance),
            "text": dict(self.text),
            "layout": None if self.layout is None else self.layout.to_attributes(),
            "splits": {name: asdict(split) for name, split in self.splits.items()},
            "hook_points": {
                h.name: {
                    **asdict(h),
                    "mixing": (
                        None if (found := self.mixing.get(h.name)) is None else asdict(found)
                    ),
                }
                for h in self.hook_points
            },
            "sample_rows": self.sample_rows,
        }


def store_info(place: Place | Url) -> StoreInfo:
    """Look at a store, complete or not.

    Args:
        place: its folder; or its URL, if it is complete.

    Raises:
        BadInputError: there is no store, it is of a newer format, or its attributes
            can't be read.
        SaeflowError: something that is looked at is missing or damaged, or a server
            can't be reached.
    """
    path = locate(place)
    if isinstance(path, Path) and path.is_dir():
        attributes = read_attributes(path)
        if attributes is not None and attributes.get("state") != "complete":
            return _incomplete(path, attributes)
    store = open_store(path)  # refuses what is no store
    attributes = read_attributes(path) or {}
    with _named_if_damaged(path):
        if isinstance(path, Path):
            return _info(store, attributes, None, bytes_of_other_files(path, store.layout))
        # One object says what it would take a request a file to ask.
        remote = connect(path)
        encoded = remote.read(commits.MANIFEST) or b""
        manifest = json.loads(encoded)
        records = {(record["split"], record["shard"]): record for record in manifest["shards"]}
        others = sum(file["bytes"] for file in manifest["files"].values())
        return _info(store, attributes, records, others + len(encoded) + remote.size(ROOT))


def _incomplete(path: Path, attributes: Mapping[str, Any]) -> StoreInfo:
    provenance = attributes.get("provenance", {})
    if "layout" not in attributes:
        return StoreInfo(
            path=path,
            state=str(attributes.get("state")),
            format=attributes["format"],
            identity=None,
            bytes=sum(p.stat().st_size for p in path.rglob("*") if p.is_file()),
            provenance=provenance,
            text={},
            layout=None,
            splits={},
            hook_points=(),
            sample_rows=0,
            mixing={},
        )
    try:
        layout = Layout.from_attributes(attributes["layout"])
    except (KeyError, TypeError, ValueError) as error:
        raise BadInputError(f"store {path} has unreadable attributes: {error!r}") from error
    with _named_if_damaged(path):
        store = Store(path, layout, provenance, identity="")
        others = bytes_of_other_files(path, layout)
        return _info(store, attributes, commits.read_records(path), others)


def _info(
    store: Store,
    attributes: Mapping[str, Any],
    records: Mapping[tuple[str, int], commits.Record] | None,
    bytes_of_others: int,
) -> StoreInfo:
    """A store whose layout is known.

    Args:
        store: complete, or with an empty identity.
        attributes: of its root.
        records: the shards that are built; None for all, of a store that is a folder.
        bytes_of_others: of the files that belong to no shard.
    """
    layout = store.layout
    hook_points = tuple(hook_point_info(store, h, records) for h in layout.hook_points)
    # How they are read depends on the width of their rows alone.
    widths = {h.d_in: h for h in layout.hook_points} if store.identity else {}
    measured = {width: measure_mixing(store, h) for width, h in widths.items()}
    return StoreInfo(
        path=store.path,
        state=attributes["state"],
        format=attributes["format"],
        identity=store.identity or None,
        bytes=bytes_of_others + bytes_of_shards(store, hook_points, records),
        provenance=store.provenance,
        text=attributes.get("text") or {},
        layout=layout,
        splits={s.name: split_info(layout, s, records) for s in layout.splits.values()},
        hook_points=hook_points,
        sample_rows=store.array("sample").shape[0],
        mixing={h.name: measured[h.d_in] for h in layout.hook_points if measured},
    )


@contextmanager
def _named_if_damaged(path: Location) -> Iterator[None]:
    try:
        yield
    except (OSError, KeyError, TypeError, ValueError) as error:  # zarr's own are among these
        raise SaeflowError(
            f"store {path} is damaged ({one_line(error)}): check it with saeflow verify"
        ) from error
