"""The options of `saeflow import`."""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from typing_extensions import Doc

from saeflow.config import require, take_types


@dataclass(frozen=True, kw_only=True)
class ImportConfig:
    """Which activations, what is known of them, and where they go.

    Raises:
        BadInputError: an option's value makes no sense.
    """

    source: Annotated[
        Path,
        Doc(
            "File (.npy, .safetensors, .pt, .pth), folder of such files, cached activations of "
            "SAELens, or activations that llamascopium generated."
        ),
    ]
    out: Annotated[Path, Doc("Folder of the store.")]
    format: Annotated[
        Literal["auto", "npy", "safetensors", "torch", "saelens", "llamascopium"],
        Doc("What the source is; told by its files if not given."),
    ] = "auto"
    hook: Annotated[
        tuple[str, ...],
        Doc(
            "Hook point: a name for the rows of array files; for the others, which one to take "
            "(all if not given, and it can be given again)."
        ),
    ] = ()
    key: Annotated[
        str | None, Doc("Name of the tensor, where a .safetensors or torch file holds several.")
    ] = None
    model: Annotated[str | None, Doc("The source model, as far as you know; recorded.")] = None
    dataset: Annotated[str | None, Doc("The text, as far as you know; recorded.")] = None
    dtype: Annotated[
        Literal["bfloat16", "float16", "float32", "int8"] | None,
        Doc("Precision of the stored activations; the source's if not given, float32 for float64."),
    ] = None
    codec: Annotated[
        Literal["bytes", "crc32c", "zstd"],
        Doc("How chunks are stored: as they are, with a checksum each, or compressed."),
    ] = "bytes"
    held_out: Annotated[
        float, Doc("Share of the sequences, or of blocks of rows, kept away from training.")
    ] = 0.05
    seed: Annotated[int, Doc("Seed of the row order.")] = 0
    shard_rows: Annotated[
        int | None, Doc("Rows of a shard; a power of two up to 256 MiB if not given.")
    ] = None

    def __post_init__(self) -> None:
        take_types(self)
        for place in (self.source, self.out):
            require(
                re.match(r"\w+:/", str(place)) is None,
                f"{place} is a URL: import from a folder into a folder, and copy the store then",
            )
        repeated = {name for name in self.hook if self.hook.count(name) > 1}
        require(not repeated, f"--hook names {', '.join(sorted(repeated))} twice: once is enough")
        require(
            self.shard_rows is None or self.shard_rows > 0,
            f"--shard-rows is {self.shard_rows}: it must be at least 1",
        )
        require(
            0 <= self.held_out < 1,
            f"--held-out is {self.held_out}: it must be at least 0 and below 1",
        )
        for name in ("model", "dataset", "key"):
            require(getattr(self, name) != "", f"--{name} is empty: leave it out")
