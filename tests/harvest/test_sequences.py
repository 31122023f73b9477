"""The tokenising pass: every token of the dataset exactly once, in order, or counted as unused."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr
from hypothesis import given
from hypothesis import strategies as st

from saeflow.errors import BadInputError
from saeflow.harvest.layout import Split
from saeflow.harvest.sequences import SPLITS, Stream, collect, write_sequences
from saeflow.harvest.tokens import Packing, TokenizedDocument


@dataclass(frozen=True)
class Case:
    """Documents whose tokens are all different, and how they are packed."""

    documents: list[TokenizedDocument]
    packing: Packing
    limit: int | None

    def tokens(self, split: str) -> list[int]:
        """Every token of a split, the limit aside."""
        wanted = [d for d in self.documents if d.held_out == (split == "heldout")]
        return [int(token) for d in wanted for token in d.tokens]

    def pieces(self, split: str) -> list[list[int]]:
        """The tokens of each sequence of a split, the limit aside."""
        wanted = [d.tokens.tolist() for d in self.documents if d.held_out == (split == "heldout")]
        size = self.packing.rows_per_sequence
        if self.packing.packed:
            stream = [token for tokens in wanted for token in tokens]
            return [stream[i : i + size] for i in range(0, len(stream) - size + 1, size)]
        return [tokens[i : i + size] for tokens in wanted for i in range(0, len(tokens), size)]


def documents_of(lengths: list[tuple[int, bool]]) -> list[TokenizedDocument]:
    ends = np.cumsum([length for length, _ in lengths])
    return [
        TokenizedDocument(i, np.arange(end - length, end, dtype=np.uint32) + 1000, held_out)
        for i, ((length, held_out), end) in enumerate(zip(lengths, ends, strict=True))
    ]


@st.composite
def cases(draw: st.DrawFn) -> Case:
    context = draw(st.integers(2, 12))
    lengths = draw(st.lists(st.tuples(st.integers(0, 30), st.booleans()), max_size=12))
    documents = documents_of([(context + 3, False), *lengths])
    limit = draw(st.none() | st.integers(1, 200))
    packing = Packing(context_size=context, bos=1, separator=2, packed=draw(st.booleans()))
    return Case(documents, packing, limit)


def sequences_of(stream: Stream, packing: Packing) -> list[list[int]]:
    """The tokens of each sequence, position 0 and the padding checked and taken away."""
    found = stream.sequences(packing, 0, stream.n_sequences)
    assert found.shape == (stream.n_sequences, packing.context_size)
    assert found.dtype == np.uint32
    assert (found[:, 0] == packing.bos).all()
    stored = (found >= 1000) | (np.arange(packing.context_size) == 0)
    assert (found[~stored] == packing.separator).all()
    lengths = stored.sum(1)
    assert (stored == (np.arange(packing.context_size) < lengths[:, None])).all()
    return [row[1:length].tolist() for row, length in zip(found, lengths, strict=True)]


@given(case=cases())
def test_each_splits_sequences_are_its_documents_one_after_another(
    case: Case, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """Packing off: no separator, no document cut short, none in another one's sequence."""
    streams, _ = collect(case.documents, case.packing, case.limit, tmp_path_factory.mktemp("s"))
    for name in SPLITS:
        pieces, stream = case.pieces(name), streams[name]
        if case.limit is None:
            assert stream.n_sequences == len(pieces)
        pieces = pieces[: stream.n_sequences]
        assert sequences_of(stream, case.packing) == pieces
        assert stream.tokens.tolist() == [token for piece in pieces for token in piece]
        assert stream.n_rows == sum(map(len, pieces))


@given(case=cases(), data=st.data())
def test_some_sequences_are_the_same_alone_and_among_all(
    case: Case, data: st.DataObject, tmp_path_factory: pytest.TempPathFactory
) -> None:
    streams, _ = collect(case.documents, case.packing, case.limit, tmp_path_factory.mktemp("s"))
    n = streams["train"].n_sequences
    first, stop = sorted(data.draw(st.tuples(*2 * [st.integers(0, n)])))
    everything = streams["train"].sequences(case.packing, 0, n)
    some = streams["train"].sequences(case.packing, first, stop)
    assert np.array_equal(some, everything[first:stop])


@given(case=cases())
def test_a_limit_is_rounded_up_to_whole_sequences(
    case: Case, tmp_path_factory: pytest.TempPathFactory
) -> None:
    streams, counts = collect(
        case.documents, case.packing, case.limit, tmp_path_factory.mktemp("s")
    )
    rows = sum(stream.n_rows for stream in streams.values())
    available = sum(len(piece) for name in SPLITS for piece in case.pieces(name))
    wanted = available if case.limit is None else min(case.limit, available)
    assert rows >= wanted
    assert streams["train"].n_sequences >= 1
    if rows > wanted:
        read = case.documents[: counts.documents_read]
        last = "heldout" if read[-1].held_out else "train"
        shorter = sequences_of(streams[last], case.packing)[-1]
        assert rows - len(shorter) < wanted


@given(case=cases())
def test_the_counts_add_up(case: Case, tmp_path_factory: pytest.TempPathFactory) -> None:
    streams, counts = collect(
        case.documents, case.packing, case.limit, tmp_path_factory.mktemp("s")
    )
    kept = sum(stream.n_rows for stream in streams.values())
    seen = case.documents[: counts.documents_read]
    assert counts.tokens_read == sum(len(d.tokens) for d in seen) == kept + counts.tokens_unused
    assert counts.documents_empty == sum(len(d.tokens) == 0 for d in seen)
    assert counts.documents_read == len(case.documents) or case.limit is not None
    if case.limit is None and not case.packing.packed:
        assert counts.tokens_unused == 0


@given(case=cases())
def test_each_document_begins_where_its_first_token_is(
    case: Case, tmp_path_factory: pytest.TempPathFactory
) -> None:
    streams, _ = collect(case.documents, case.packing, case.limit, tmp_path_factory.mktemp("s"))
    for stream in streams.values():
        first = [int(case.documents[index].tokens[0]) for index in stream.documents]
        assert stream.tokens[stream.starts.astype(int)].tolist() == first


@pytest.mark.parametrize("packed", [True, False])
def test_the_arrays_hold_the_stream(tmp_path: Path, packed: bool) -> None:
    packing = Packing(context_size=5, bos=1, separator=2, packed=packed)
    documents = documents_of([(9, False), (0, False), (3, False), (4, False), (5, True)])
    streams, _ = collect(documents, packing, None, tmp_path)
    split = Split("train", streams["train"].n_sequences, streams["train"].n_rows, 3, 64)
    for _ in range(2):  # the second time over what the first one left
        write_sequences(tmp_path / "store", split, streams["train"], packing)
    arrays: Any = zarr.open_group(tmp_path / "store/sequences", mode="r")
    stored = arrays["token"][:]
    assert np.array_equal(stored, streams["train"].sequences(packing, 0, split.n_sequences))
    assert arrays["document"][:].tolist() == [0, 2, 3]
    assert arrays["start"][:].tolist() == [0, 9, 12]
    if packed:
        assert set(arrays) == {"token", "document", "start"}
    else:
        assert arrays["length"][:].tolist() == [5, 5, 2, 4, 5]
        assert stored[2].tolist() == [1, 1008, 2, 2, 2]


@given(case=cases())
def test_a_held_out_document_is_never_in_the_training_text(
    case: Case, tmp_path_factory: pytest.TempPathFactory
) -> None:
    streams, _ = collect(case.documents, case.packing, case.limit, tmp_path_factory.mktemp("s"))
    held_out = {d.index for d in case.documents if d.held_out}
    assert not held_out & set(streams["train"].documents.tolist())
    assert held_out >= set(streams["heldout"].documents.tolist())


def test_reading_stops_once_the_limit_is_reached(tmp_path: Path) -> None:
    def documents() -> Iterator[TokenizedDocument]:
        yield from documents_of([(8, False), (8, False)])
        pytest.fail("a streamed dataset was read further than needed")

    streams, counts = collect(
        documents(), Packing(context_size=5, bos=1, separator=2), 13, tmp_path
    )
    assert streams["train"].n_sequences == 4
    assert counts.documents_read == 2


def test_without_packing_too_the_limit_counts_tokens_that_get_a_row(tmp_path: Path) -> None:
    packing = Packing(context_size=5, bos=1, separator=2, packed=False)
    documents = documents_of([(6, False), (3, True), (11, False), (2, False)])
    streams, counts = collect(documents, packing, 14, tmp_path)
    assert {name: stream.n_rows for name, stream in streams.items()} == {"train": 14, "heldout": 3}
    assert sequences_of(streams["train"], packing) == [
        [1000, 1001, 1002, 1003], [1004, 1005], [1009, 1010, 1011, 1012], [1013, 1014, 1015, 1016]
    ]  # fmt: skip
    assert (counts.documents_read, counts.tokens_unused) == (3, 3)


@pytest.mark.parametrize(
    ("lengths", "message"),
    [
        ([], "has no documents"),
        ([(0, False), (0, True)], "has 2 documents, all of them empty"),
        ([(3, False), (90, True)], "has 3 training tokens, fewer than one sequence of 4"),
    ],
)
def test_too_little_text_is_refused(
    lengths: list[tuple[int, bool]], message: str, tmp_path: Path
) -> None:
    with pytest.raises(BadInputError, match=message):
        collect(documents_of(lengths), Packing(context_size=5, bos=1, separator=2), None, tmp_path)
