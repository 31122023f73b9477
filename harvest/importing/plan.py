"""What an import will store: known before the first activation is read."""

from collections.abc import Mapping
from dataclasses import dataclass
from importlib.metadata import version
from typing import Any

import torch

from saeflow import console
from saeflow.config import to_plain
from saeflow.errors import BadInputError
from saeflow.harvest.importing.config import ImportConfig
from saeflow.harvest.importing.held_out import SplitRows, split_source
from saeflow.harvest.importing.source import UNKNOWN, Source
from saeflow.harvest.layout import DTYPES, Layout, Split, choose_rows_per_shard
from saeflow.harvest.models import hash_files

_NOT_IDENTITY = ("source", "out", "format", "key", "model", "dataset")
_LIBRARIES = ("saeflow", "torch", "zarr")
_TOLD_FROM = 2**30


@dataclass(frozen=True)
class ImportPlan:
    """A source, and the layout of the store that it will fill.

    Attributes:
        source: the activations.
        layout: of the store.
        rows: by split, where its rows are in the source.
    """

    source: Source
    layout: Layout
    rows: Mapping[str, SplitRows]


def make_plan(config: ImportConfig, source: Source) -> ImportPlan:
    """Choose the held-out rows, and lay the store out.

    Raises:
        BadInputError: the source doesn't fit the options.
    """
    for hook_point in source.hook_points:
        if "/" in hook_point.name or "\\" in hook_point.name or hook_point.name in ("", ".", ".."):
            raise BadInputError(
                f"hook point '{hook_point.name}' can't be the name of a folder: "
                "import it alone, under another name, with --hook"
            )
    dtype = stored_dtype(config, source)
    rows = split_source(source, config.held_out)
    n_rows = rows["train"].n_rows
    if config.shard_rows is not None and config.shard_rows > n_rows:
        raise BadInputError(
            f"{source.path} gives {n_rows} training rows, fewer than one shard of --shard-rows "
            f"{config.shard_rows}: make shards smaller"
        )
    rows_per_shard = config.shard_rows or choose_rows_per_shard(
        max(h.d_in for h in source.hook_points), DTYPES[dtype].itemsize, n_rows
    )
    layout = Layout(
        dtype=dtype,
        packing=None,
        order="permuted",
        seed=config.seed,
        rows_per_shard=rows_per_shard,
        hook_points=source.hook_points,
        codec=config.codec,
        row_values=source.row_values,
        splits={
            name: Split(name, 0, of_split.n_rows, 0, rows_per_shard)
            for name, of_split in rows.items()
        },
    )
    return ImportPlan(source, layout, rows)


def stored_dtype(config: ImportConfig, source: Source) -> str:
    """The precision of the store: as asked for, else the source's, as near as can be.

    Raises:
        BadInputError: the source is of several, and none is asked for.
    """
    if config.dtype is not None:
        return config.dtype
    if source.dtype is None:
        raise BadInputError(
            f"{source.path} holds activations of different precisions: choose one with --dtype"
        )
    if source.dtype == torch.float64:
        return "float32"
    return str(source.dtype).removeprefix("torch.")


def describe_import(config: ImportConfig, source: Source) -> dict[str, Any]:
    """Everything that decides the store's bytes, and what the user says of the source.

    What nobody knows is `unknown` or null; what the user says is listed in
    `said_by_user`, and is not checked.
    """
    size = sum(file.stat().st_size for file in source.files)
    if size >= _TOLD_FROM:
        console.say(f"hashing {size:,} bytes of {source.path}")
    said = {name: getattr(config, name) for name in ("model", "dataset")}
    model_hashes = ("revision", "weights_sha256", "config_sha256", "tokenizer_sha256", "dtype")
    options = {k: v for k, v in to_plain(config).items() if k not in _NOT_IDENTITY}
    return {
        "model": {"name": said["model"] or UNKNOWN, **dict.fromkeys(model_hashes)},
        "dataset": said["dataset"] or UNKNOWN,
        "said_by_user": [name for name, value in said.items() if value is not None],
        "imported_from": {
            "format": source.format,
            "path": str(source.path.resolve()),
            "key": config.key,
            "files": len(source.files),
            "bytes": size,
            "files_sha256": hash_files(source.files),
            "rows": source.n_rows,
            "masked_rows": source.masked,
        },
        **options,
        "hook": [hook_point.name for hook_point in source.hook_points],
        "dtype": stored_dtype(config, source),
        "versions": {name: version(name) for name in _LIBRARIES},
    }
