"""What a harvest will store, known exactly before the first forward pass."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from saeflow.errors import BadInputError
from saeflow.harvest.config import HarvestConfig
from saeflow.harvest.documents import Document, open_documents
from saeflow.harvest.layout import DTYPES, HookPoint, Layout, Split, choose_rows_per_shard
from saeflow.harvest.models import SourceModel
from saeflow.harvest.sequences import Stream, TextCounts, collect
from saeflow.harvest.tokens import choose_packing, tokenize


@dataclass(frozen=True)
class Plan:
    """A tokenised dataset and the layout of the store that it will fill."""

    layout: Layout
    streams: Mapping[str, Stream]
    counts: TextCounts


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
    packing = choose_packing(model.tokenizer, config.context_size, packed=config.pack)
    documents = _known_tokens(
        open_documents(config.dataset, split=config.split, text_field=config.text_field),
        model,
        config.dataset,
    )
    tokenized = tokenize(documents, model.tokenizer, packing, held_out=config.held_out)
    streams, counts = collect(tokenized, packing, config.tokens, folder)
    n_rows = streams["train"].n_rows
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
        codec=config.codec,
        hook_points=tuple(hook_points),
        splits={
            name: Split(
                name,
                stream.n_sequences,
                stream.n_rows,
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
