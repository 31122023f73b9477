"""The tokenising pass: ahead of the model, the whole dataset into the store's sequences.

So the counts are exact before the first forward pass, any shard knows its tokens
without reading what comes before it, and `evaluate` can rebuild any context.
"""

from array import array
from bisect import bisect_left
from collections.abc import Iterable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import BinaryIO

import numpy as np
from jaxtyping import Int64, UInt32, UInt64

from saeflow.errors import BadInputError
from saeflow.files import PARTIAL
from saeflow.harvest.arrays import write_array, write_blocks
from saeflow.harvest.layout import Split, sequence_chunk
from saeflow.harvest.tokens import Packing, TokenizedDocument

SPLITS = ("train", "heldout")


@dataclass(frozen=True)
class Stream:
    """The token stream of one split, cut to whole sequences.

    Attributes:
        tokens: token ids of all documents, on disk; one row each.
        documents: the dataset index of each document in the stream.
        starts: where each begins.
        row_starts: where each sequence begins, and the end of the last; None where
            packing makes them all equally long.
        n_sequences: sequences that are kept.
    """

    tokens: UInt32[np.ndarray, " tokens"]
    documents: UInt32[np.ndarray, " documents"]
    starts: UInt64[np.ndarray, " documents"]
    row_starts: Int64[np.ndarray, " sequences_and_1"] | None
    n_sequences: int

    @property
    def n_rows(self) -> int:
        """Tokens that get a stored row."""
        return len(self.tokens)

    def sequences(
        self, packing: Packing, first: int, stop: int
    ) -> UInt32[np.ndarray, "sequences context"]:
        """Some of the sequences, position 0 in front of each, padded where packing is off."""
        if self.row_starts is None:
            return packing.sequences(self.tokens, first, stop)
        found = np.full((stop - first, packing.context_size), packing.separator, np.uint32)
        found[:, 0] = packing.bos
        for row, (begin, end) in zip(
            found, pairwise(self.row_starts[first : stop + 1].tolist()), strict=True
        ):
            row[1 : 1 + end - begin] = self.tokens[begin:end]
        return found


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
    packing: Packing
    length: int = 0
    documents: "array[int]" = field(default_factory=lambda: array("Q"))
    starts: "array[int]" = field(default_factory=lambda: array("Q"))
    ends: "array[int]" = field(default_factory=lambda: array("Q"))
    """Where each sequence ends; used where packing is off."""

    def add(self, document: TokenizedDocument) -> None:
        self.documents.append(document.index)
        self.starts.append(self.length)
        self.file.write(document.tokens.tobytes())
        begin, self.length = self.length, self.length + len(document.tokens)
        if not self.packing.packed:
            self.ends.extend(range(begin, self.length, self.packing.rows_per_sequence)[1:])
            self.ends.append(self.length)

    @property
    def rows(self) -> int:
        """Tokens of whole sequences."""
        per_sequence = self.packing.rows_per_sequence
        return self.length // per_sequence * per_sequence if self.packing.packed else self.length

    def without_last(self, rows: int) -> int:
        """The tokens that stay when sequences of at most `rows` tokens together go from the end."""
        if self.packing.packed:
            per_sequence = self.packing.rows_per_sequence
            return self.rows - rows // per_sequence * per_sequence
        return self.ends[bisect_left(self.ends, self.length - rows)]


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
    read = empty = surplus = 0
    with ExitStack() as stack:
        files = {s: stack.enter_context(_spool_path(folder, s).open("wb")) for s in SPLITS}
        spools = {split: _Spool(file, packing) for split, file in files.items()}
        last = "train"
        for document in documents:
            read += 1
            empty += len(document.tokens) == 0
            if len(document.tokens) == 0:
                continue
            last = "heldout" if document.held_out else "train"
            spools[last].add(document)
            surplus = sum(spool.rows for spool in spools.values()) - (limit or 0)
            if limit is not None and surplus >= 0:
                break
    kept = {s: spool.rows for s, spool in spools.items()}
    if limit is not None and surplus > 0:
        kept[last] = spools[last].without_last(surplus)
    tokens_read = sum(spool.length for spool in spools.values())
    if tokens_read == 0:
        found = f"{read} documents, all of them empty" if read else "no documents"
        raise BadInputError(f"the dataset has {found}: check --dataset, --split and --text-field")
    if train_needed and kept["train"] == 0:
        raise BadInputError(
            f"the dataset has {spools['train'].length} training tokens, fewer than one sequence "
            f"of {packing.rows_per_sequence}: give more text, or a smaller --context-size"
        )
    counts = TextCounts(read, empty, tokens_read, tokens_read - sum(kept.values()))
    return {s: _stream(spools[s], _spool_path(folder, s), kept[s]) for s in SPLITS}, counts


def write_sequences(store: Path, split: Split, stream: Stream, packing: Packing) -> None:
    """Write a split's `sequences/` arrays: token ids, and where each document begins."""
    folder = f"{split.folder}sequences"
    write_blocks(
        store,
        f"{folder}/token",
        np.broadcast_to(np.uint32(0), (stream.n_sequences, packing.context_size)),
        ("sequence", "position"),
        sequence_chunk(packing.context_size),
        partial(stream.sequences, packing),
    )
    write_array(store, f"{folder}/document", stream.documents, ("document",))
    write_array(store, f"{folder}/start", stream.starts, ("document",))
    if stream.row_starts is not None:
        lengths = (np.diff(stream.row_starts) + 1).astype(np.uint32)
        write_array(store, f"{folder}/length", lengths, ("sequence",))


def _stream(spool: _Spool, path: Path, rows: int) -> Stream:
    tokens = (np.memmap(path, np.uint32, mode="r") if rows else np.zeros(0, np.uint32))[:rows]
    starts = np.frombuffer(spool.starts, np.uint64)
    inside = starts < rows
    documents = np.frombuffer(spool.documents, np.uint64)[inside].astype(np.uint32)
    row_starts, n_sequences = None, rows // spool.packing.rows_per_sequence
    if not spool.packing.packed:
        ends = np.frombuffer(spool.ends, np.uint64).astype(np.int64)
        row_starts = np.concatenate([np.zeros(1, np.int64), ends[ends <= rows]])
        n_sequences = len(row_starts) - 1
    return Stream(tokens, documents, starts[inside].copy(), row_starts, n_sequences)


def _spool_path(folder: Path, split: str) -> Path:
    return folder / f"tokens-{split}{PARTIAL}"
