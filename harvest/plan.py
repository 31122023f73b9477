"""What a harvest will store and cost, known exactly before the first forward pass."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from saeflow.errors import BadInputError
from saeflow.harvest.config import HarvestConfig
from saeflow.harvest.documents import Document, open_documents
from saeflow.harvest.layout import (
    DTYPES,
    ROW_ARRAYS,
    HookPoint,
    Layout,
    Split,
    choose_rows_per_shard,
)
from saeflow.harvest.models import SourceModel
from saeflow.harvest.sequences import Stream, TextCounts, collect
from saeflow.harvest.statistics import NORM_BINS
from saeflow.harvest.tokens import choose_packing, tokenize

_METADATA_BYTES = 700
"""About what one array's zarr.json takes, and its line in the manifest."""

_RECORD_BYTES = 120
"""About what one file of a shard takes in the manifest."""


@dataclass(frozen=True)
class Plan:
    """A tokenised dataset and the layout of the store that it will fill."""

    layout: Layout
    streams: Mapping[str, Stream]
    counts: TextCounts

    @property
    def bytes_on_disk(self) -> int:
        """What the finished store takes."""
        return sum(_split_bytes(self.layout, split) for split in self.layout.splits.values())

    @property
    def bytes_in_memory(self) -> int:
        """What one shard's rows take while they are gathered; the model comes on top."""
        widths = sum(h.d_in for h in self.layout.hook_points)
        return self.layout.rows_per_shard * widths * self.layout.stored.itemsize

    def to_json(self) -> dict[str, Any]:
        """For people and machines, before anything is written."""
        return {
            "layout": self.layout.to_attributes(),
            "text": asdict(self.counts),
            "bytes_on_disk": self.bytes_on_disk,
            "bytes_in_memory": self.bytes_in_memory,
        }


def make_plan(
    config: HarvestConfig, model: SourceModel, hook_points: Sequence[HookPoint], folder: Path
) -> Plan:
    """Read and tokenise the dataset, and lay the store out.

    Args:
        config: the harvest's options.
        model: the source model.
        hook_points: what will be stored.
        folder: where the token streams lie while they are needed.

    Raises:
        BadInputError: the dataset can't be used, or has too few tokens, or the
            context is longer than the model takes.
    """
    if config.context_size > model.longest_context:
        raise BadInputError(
            f"--context-size {config.context_size} is more than model {config.model} takes: "
            f"at most {model.longest_context}"
        )
    packing = choose_packing(model.tokenizer, config.context_size)
    documents = _known_tokens(
        open_documents(config.dataset, split=config.split, text_field=config.text_field),
        model,
        config.dataset,
    )
    tokenized = tokenize(
        documents, model.tokenizer, separator=packing.separator, held_out=config.held_out
    )
    streams, counts = collect(tokenized, packing, config.tokens, folder)
    n_rows = streams["train"].n_sequences * packing.rows_per_sequence
    if config.shard_rows is not None and config.shard_rows > n_rows:
        raise BadInputError(
            f"the dataset gives {n_rows} training rows, fewer than one shard of --shard-rows "
            f"{config.shard_rows}: give more text, or smaller shards"
        )
    rows_per_shard = config.shard_rows or choose_rows_per_shard(
        max(h.d_in for h in hook_points), DTYPES[config.dtype].itemsize, n_rows
    )
    layout = Layout(
        dtype=config.dtype,
        packing=packing,
        order=config.order,
        seed=config.seed,
        rows_per_shard=rows_per_shard,
        hook_points=tuple(hook_points),
        splits={
            name: Split(
                name,
                stream.n_sequences,
                stream.n_sequences * packing.rows_per_sequence,
                len(stream.documents),
                rows_per_shard,
            )
            for name, stream in streams.items()
        },
    )
    return Plan(layout, streams, counts)


def _known_tokens(
    documents: Iterable[Document], model: SourceModel, dataset: str
) -> Iterator[Document]:
    """Pass documents on; refuse token ids that the model has no embedding for."""
    for document in documents:
        largest = 0 if isinstance(document.text, str) else max(document.text, default=0)
        if largest >= model.vocabulary:
            raise BadInputError(
                f"document {document.index} of dataset {dataset} holds token {largest} and "
                f"model {model.spec.name} has {model.vocabulary}: tokenise it for this model"
            )
        yield document


def _split_bytes(layout: Layout, split: Split) -> int:
    total = split.n_sequences * layout.packing.context_size * 4 + split.n_documents * 12
    total += sum(np.dtype(d).itemsize for d in ROW_ARRAYS.values()) * (
        split.n_shards * split.rows_per_shard
    )
    for hook_point in layout.hook_points:
        chunk = layout.rows_per_chunk(hook_point)
        width = hook_point.d_in * layout.stored.itemsize
        chunks = sum(-(-len(split.shard(k)) // chunk) for k in range(split.n_shards))
        total += chunks * chunk * width
        total += split.n_shards * (split.rows_per_shard // chunk * (16 + 4) + 4)
        if split.name == "train":
            total += (split.n_shards + 1) * 3 * hook_point.d_in * 8
    hooks, rows = len(layout.hook_points), len(ROW_ARRAYS)
    with_statistics = hooks if split.name == "train" else 0
    total += _METADATA_BYTES * (2 * hooks + rows + 4 + 6 * with_statistics)
    total += _RECORD_BYTES * split.n_shards * (2 * hooks + rows + 5 * with_statistics)
    return total + NORM_BINS * 8 * with_statistics
