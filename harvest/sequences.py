"""The tokenising pass: ahead of the model, the whole dataset into the store's sequences.

So the counts are exact before the first forward pass, any shard knows its tokens
without reading what comes before it, and `evaluate` can rebuild any context.
"""

from array import array
from collections.abc import Iterable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO

import numpy as np
from jaxtyping import Int64, UInt32, UInt64

from saeflow.errors import BadInputError
from saeflow.files import PARTIAL
from saeflow.harvest.layout import Split, sequence_chunk, write_array, write_blocks
from saeflow.harvest.tokens import Packing, TokenizedDocument

SPLITS = ("train", "heldout")


@dataclass(frozen=True)
class Stream:
    """The token stream of one split, cut to whole sequences.

    Attributes:
        tokens: token ids of all documents, on disk.
        documents: the dataset index of each document in the stream.
        starts: where each begins.
        n_sequences: whole sequences that are kept.
    """

    tokens: UInt32[np.ndarray, " tokens"]
    documents: UInt32[np.ndarray, " documents"]
    starts: UInt64[np.ndarray, " documents"]
    n_sequences: int


@dataclass(frozen=True)
class TextCounts:
    """What became of the dataset, so that nothing is dropped in silence.

    Attributes:
        documents_read: documents that were read before the limit was reached.
        documents_empty: of them, those without any token.
        tokens_read: tokens with one separator a document.
        tokens_unused: of them, those after the last whole sequence of each split,
            or past the limit.
    """

    documents_read: int
    documents_empty: int
    tokens_read: int
    tokens_unused: int


@dataclass
class _Spool:
    """A split's stream while it grows on disk."""

    file: BinaryIO
    length: int = 0
    documents: "array[int]" = field(default_factory=lambda: array("Q"))
    starts: "array[int]" = field(default_factory=lambda: array("Q"))

    def add(self, document: TokenizedDocument) -> None:
        self.documents.append(document.index)
        self.starts.append(self.length)
        self.file.write(document.tokens.tobytes())
        self.length += len(document.tokens)


def collect(
    documents: Iterable[TokenizedDocument],
    packing: Packing,
    limit: int | None,
    folder: Path,
    *,
    train_needed: bool = True,
) -> tuple[Mapping[str, Stream], TextCounts]:
    """Read documents into the streams of both splits, until enough sequences are full.

    Args:
        documents: tokenised, in the dataset's order.
        packing: how the streams are cut.
        limit: tokens wanted, both splits together; rounded up to whole sequences.
        folder: where the streams lie while they are needed.
        train_needed: whether documents without a training sequence are refused.

    Raises:
        BadInputError: the documents hold no text, or less than one training sequence.
    """
    rows = packing.rows_per_sequence
    wanted = -(-limit // rows) if limit is not None else None
    read = empty = surplus = 0
    with ExitStack() as stack:
        files = {s: stack.enter_context(_spool_path(folder, s).open("wb")) for s in SPLITS}
        spools = {split: _Spool(file) for split, file in files.items()}
        last = "train"
        for document in documents:
            read += 1
            empty += len(document.tokens) == 0
            if len(document.tokens) == 0:
                continue
            last = "heldout" if document.held_out else "train"
            spools[last].add(document)
            full = sum(spool.length // rows for spool in spools.values())
            if wanted is not None and full >= wanted:
                surplus = full - wanted
                break
    kept = {s: spool.length // rows - (surplus if s == last else 0) for s, spool in spools.items()}
    tokens_read = sum(spool.length for spool in spools.values())
    if tokens_read == 0:
        found = f"{read} documents, all of them empty" if read else "no documents"
        raise BadInputError(f"the dataset has {found}: check --dataset, --split and --text-field")
    if train_needed and kept["train"] == 0:
        raise BadInputError(
            f"the dataset has {spools['train'].length} training tokens, fewer than one sequence "
            f"of {rows}: give more text, or a smaller --context-size"
        )
    counts = TextCounts(read, empty, tokens_read, tokens_read - rows * sum(kept.values()))
    streams = {s: _stream(spools[s], _spool_path(folder, s), kept[s], rows) for s in SPLITS}
    return streams, counts


def write_sequences(store: Path, split: Split, stream: Stream, packing: Packing) -> None:
    """Write a split's `sequences/` arrays: token ids, and where each document begins."""
    folder = f"{split.folder}sequences"
    write_blocks(
        store,
        f"{folder}/token",
        np.broadcast_to(np.uint32(0), (stream.n_sequences, packing.context_size)),
        ("sequence", "position"),
        sequence_chunk(packing.context_size),
        lambda first, stop: packing.sequences(stream.tokens, first, stop),
    )
    write_array(store, f"{folder}/document", stream.documents, ("document",))
    write_array(store, f"{folder}/start", stream.starts, ("document",))


def row_values(
    sequences: UInt32[np.ndarray, "sequences context"],
    first_sequence: int,
    rows: range,
    documents: UInt32[np.ndarray, " documents"],
    starts: UInt64[np.ndarray, " documents"],
) -> dict[str, UInt32[np.ndarray, " rows"]]:
    """Token, document, sequence and position of consecutive rows of a split.

    Row `r` is token `r` of the split's stream.

    Args:
        sequences: the sequences that hold the rows, position 0 included.
        first_sequence: the number of the first of them.
        rows: which rows.
        documents: the dataset index of each document of the stream.
        starts: where each begins.
    """
    per_sequence = sequences.shape[1] - 1
    numbers: Int64[np.ndarray, " rows"] = np.arange(rows.start, rows.stop)
    offset = rows.start - first_sequence * per_sequence
    which = np.searchsorted(starts, numbers.astype(np.uint64), side="right") - 1
    return {
        "token": sequences[:, 1:].ravel()[offset : offset + len(rows)].astype(np.uint32),
        "doc": documents[which].astype(np.uint32),
        "seq": (numbers // per_sequence).astype(np.uint32),
        "pos": (numbers % per_sequence + 1).astype(np.uint32),
    }


def _stream(spool: _Spool, path: Path, n_sequences: int, rows: int) -> Stream:
    tokens = (np.memmap(path, np.uint32, mode="r") if spool.length else np.zeros(0, np.uint32))[
        : n_sequences * rows
    ]
    starts = np.frombuffer(spool.starts, np.uint64)
    inside = starts < len(tokens)
    documents = np.frombuffer(spool.documents, np.uint64)[inside].astype(np.uint32)
    return Stream(tokens, documents, starts[inside].copy(), n_sequences)


def _spool_path(folder: Path, split: str) -> Path:
    return folder / f"tokens-{split}{PARTIAL}"
