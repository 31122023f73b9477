"""The options of `saeflow harvest`."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from typing_extensions import Doc

from saeflow.config import require, take_types
from saeflow.harvest.workers import parse_worker
from saeflow.location import Place


@dataclass(frozen=True, kw_only=True)
class HarvestConfig:
    """Which model, which text, which activations, and where they go.

    Raises:
        BadInputError: an option's value makes no sense.
    """

    model: Annotated[
        str, Doc("Hugging Face folder, hub name, or 'builtin' for the built-in model.")
    ]
    dataset: Annotated[
        str,
        Doc(
            "File (.txt, .jsonl, .csv, .parquet), folder of files, saved dataset, hub name, "
            "or 'builtin' for the built-in text."
        ),
    ]
    hook: Annotated[tuple[str, ...], Doc("Hook point; give it again for several.")]
    out: Annotated[Place, Doc("Folder of the store, or s3:// or gs:// URL.")]
    tokens: Annotated[
        int | None, Doc("Tokens to harvest, held-out ones included; all if not given.")
    ] = None
    context_size: Annotated[int, Doc("Tokens of a sequence, the BOS token included.")] = 128
    batch_size: Annotated[int, Doc("Sequences in a forward pass.")] = 32
    pack: Annotated[
        bool, Doc("Fill sequences with one document after another, or end them with theirs.")
    ] = True
    dtype: Annotated[
        Literal["bfloat16", "float16", "float32", "int8"],
        Doc("Precision of the stored activations; int8 with a scale a row."),
    ] = "bfloat16"
    codec: Annotated[
        Literal["bytes", "crc32c", "zstd"],
        Doc("How chunks are stored: as they are, with a checksum each, or compressed."),
    ] = "bytes"
    model_dtype: Annotated[
        Literal["bfloat16", "float16", "float32"], Doc("Precision of the forward pass.")
    ] = "float32"
    device: Annotated[str, Doc("auto, cpu, or cuda.")] = "auto"
    seed: Annotated[int, Doc("Seed of the row order.")] = 0
    text_field: Annotated[str, Doc("Field of the dataset that holds the text.")] = "text"
    split: Annotated[str, Doc("Split of a saved or hub dataset.")] = "train"
    held_out: Annotated[
        float, Doc("Share of documents kept for evaluation, chosen by a hash of their text.")
    ] = 0.05
    order: Annotated[
        Literal["permuted", "sequence"], Doc("Shuffle rows inside each shard, or keep contexts.")
    ] = "permuted"
    shard_rows: Annotated[
        int | None, Doc("Rows of a shard; a power of two up to 256 MiB if not given.")
    ] = None
    compatibility_mode: Annotated[
        bool, Doc("Fold and centre weights as TransformerLens's compatibility mode does.")
    ] = False
    trust_remote_code: Annotated[bool, Doc("Run code that comes with the model.")] = False
    worker: Annotated[
        str | None,
        Doc(
            "Build only share i of n, as i/n counting from 0; from torchrun's or srun's "
            "environment if not given."
        ),
    ] = None
    staging: Annotated[
        Path | None,
        Doc(
            "Folder for the shards that are on their way to a URL; one in the user's cache "
            "if not given."
        ),
    ] = None

    def __post_init__(self) -> None:
        take_types(self)
        if self.worker is not None:
            parse_worker(self.worker)
        require(bool(self.hook), "--hook is needed: name at least one hook point")
        repeated = {name for name in self.hook if self.hook.count(name) > 1}
        require(not repeated, f"--hook names {', '.join(sorted(repeated))} twice: once is enough")
        for name in ("tokens", "batch_size", "shard_rows"):
            value = getattr(self, name)
            require(
                value is None or value > 0,
                f"--{name.replace('_', '-')} is {value}: it must be at least 1",
            )
        require(
            self.context_size >= 2,
            f"--context-size is {self.context_size}: it must be at least 2, BOS and one token",
        )
        require(
            0 <= self.held_out < 1,
            f"--held-out is {self.held_out}: it must be at least 0 and below 1",
        )
