"""Sequences evenly spread over a text, with the document of each position."""

import tempfile
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Int64, UInt32

from saeflow.harvest.contexts import open_text
from saeflow.harvest.layout import Split
from saeflow.harvest.sequences import Stream, collect
from saeflow.harvest.store import Store
from saeflow.harvest.tokens import Packing, TokenizedDocument

NO_DOCUMENT = -1
"""The document of position 0, and of padding."""

_COUNTED = 2**22
"""Tokens, at most, by which it is told how frequent each token id is."""

_RUNS = 16
"""Parts of the text, evenly spaced, that these are read from."""

_CHOICE = 16
"""A dataset is read until it has this many times the tokens that are wanted."""


@dataclass(frozen=True)
class ChosenSequences:
    """Some of a text's sequences.

    Attributes:
        sequences: token ids, the BOS token at position 0, padded where packing is off.
        documents: dataset index of each position's document, or `NO_DOCUMENT`.
        lengths: tokens of each sequence that are its own, position 0 included.
        available: how many sequences there were to choose from.
        counts: how often each token id occurs in the text, or in parts of it that are
            evenly spread; position 0 and padding not counted.
        packing: how the sequences were made.
    """

    sequences: UInt32[np.ndarray, "sequences context"]
    documents: Int64[np.ndarray, "sequences context"]
    lengths: Int64[np.ndarray, " sequences"]
    available: int
    counts: Int64[np.ndarray, " token_ids"]
    packing: Packing


def from_store(store: Store, split: Split, tokens: int) -> ChosenSequences:
    """Sequences of a split that has some, at most `tokens` tokens rounded up to whole ones.

    Token ids are counted in the training text if there is any, since that is more.
    """
    packing = store.layout.packing
    assert packing is not None
    chosen = spread(split.n_sequences, tokens, packing.rows_per_sequence)
    text = open_text(store, split)
    bounds = np.stack([text.row_starts(number, number + 2) for number in chosen.tolist()])
    sequences = store.array(f"{split.folder}sequences/token").oindex[chosen]
    counted = store.train if store.train.n_sequences else split
    whole = open_text(store, counted)
    return ChosenSequences(
        np.asarray(sequences, np.uint32),
        _documents_of(bounds, packing.context_size, text.documents, text.starts),
        1 + bounds[:, 1] - bounds[:, 0],
        split.n_sequences,
        _counts(whole.sequences, whole.row_starts, counted.n_sequences, packing),
        packing,
    )


def from_documents(
    documents: Iterable[TokenizedDocument], packing: Packing, split: str, tokens: int
) -> ChosenSequences | None:
    """Sequences of a split of a dataset, likewise; None if it has no whole one.

    Args:
        documents: tokenised; read until the split has several times `tokens` tokens.
        packing: how they are cut.
        split: `train` or `heldout`.
        tokens: wanted.

    Raises:
        BadInputError: there is no text in them.
    """
    enough = _until_enough(documents, split, _CHOICE * tokens)
    with tempfile.TemporaryDirectory() as folder:
        streams, _ = collect(enough, packing, None, Path(folder), train_needed=False)
        stream = streams[split]
        if stream.n_sequences == 0:
            return None
        chosen = spread(stream.n_sequences, tokens, packing.rows_per_sequence)
        read = [stream.sequences(packing, number, number + 1) for number in chosen.tolist()]
        starts = _row_starts(stream, packing)
        bounds = np.stack([starts(number, number + 2) for number in chosen.tolist()])
        counts = sum_counts([_stream_counts(found, packing) for found in streams.values()])
        return ChosenSequences(
            np.concatenate(read),
            _documents_of(bounds, packing.context_size, stream.documents, stream.starts),
            1 + bounds[:, 1] - bounds[:, 0],
            stream.n_sequences,
            counts,
            packing,
        )


def spread(available: int, tokens: int, per_sequence: int) -> Int64[np.ndarray, " chosen"]:
    """Numbers of sequences, evenly spaced, so that a few documents don't decide the score."""
    wanted = min(available, -(-tokens // per_sequence))
    return np.arange(wanted) * available // wanted


def sum_counts(counts: Iterable[Int64[np.ndarray, " _"]]) -> Int64[np.ndarray, " token_ids"]:
    """Counts of token ids added up, of however many token ids each is."""
    found = list(counts)
    total = np.zeros(max(map(len, found), default=0), np.int64)
    for one in found:
        total[: len(one)] += one
    return total


def _until_enough(
    documents: Iterable[TokenizedDocument], split: str, tokens: int
) -> Iterator[TokenizedDocument]:
    seen = 0
    for document in documents:
        yield document
        seen += len(document.tokens) if document.held_out == (split == "heldout") else 0
        if seen >= tokens:
            return


def _documents_of(
    bounds: Int64[np.ndarray, "sequences 2"],
    context: int,
    documents: np.ndarray,
    starts: np.ndarray,
) -> Int64[np.ndarray, "sequences context"]:
    """The document of each position, from each sequence's first row and the one after its last."""
    positions = np.arange(context)
    rows = bounds[:, :1] + positions - 1
    own = (positions > 0) & (rows < bounds[:, 1:])
    found = np.full(rows.shape, NO_DOCUMENT, np.int64)
    which = np.searchsorted(starts.astype(np.int64), rows[own], side="right") - 1
    found[own] = documents[which]
    return found


def _counts(
    sequences: Callable[[int, int], np.ndarray],
    row_starts: Callable[[int, int], np.ndarray],
    available: int,
    packing: Packing,
) -> Int64[np.ndarray, " token_ids"]:
    counts = []
    for first, stop in _runs(available, packing.rows_per_sequence):
        lengths = np.diff(row_starts(first, stop + 1))
        read = sequences(first, stop)[:, 1:]
        counts.append(np.bincount(read[np.arange(read.shape[1]) < lengths[:, None]]))
    return sum_counts(counts)


def _stream_counts(stream: Stream, packing: Packing) -> Int64[np.ndarray, " token_ids"]:
    def sequences(first: int, stop: int) -> np.ndarray:
        return stream.sequences(packing, first, stop)

    return _counts(sequences, _row_starts(stream, packing), stream.n_sequences, packing)


def _row_starts(stream: Stream, packing: Packing) -> Callable[[int, int], np.ndarray]:
    starts = stream.row_starts
    if starts is None:
        return lambda first, stop: np.arange(first, stop) * packing.rows_per_sequence
    return lambda first, stop: starts[first:stop]


def _runs(available: int, per_sequence: int) -> list[tuple[int, int]]:
    """First and last (excluded) sequences of parts that together have `_COUNTED` tokens."""
    if available * per_sequence <= _COUNTED:
        return [(0, available)]
    length = max(1, _COUNTED // _RUNS // per_sequence)
    starts = [number * available // _RUNS for number in range(_RUNS)]
    return [(start, min(start + length, available)) for start in starts]
