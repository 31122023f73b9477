"""The tokenising pass: every token of the dataset exactly once, in order, or counted as unused."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from saeflow.errors import BadInputError
from saeflow.harvest.sequences import SPLITS, collect, row_values
from saeflow.harvest.tokens import Packing, TokenizedDocument


@dataclass(frozen=True)
class Case:
    """Documents whose tokens are all different, and how they are packed."""

    documents: list[TokenizedDocument]
    packing: Packing
    limit: int | None

    def split(self, name: str) -> list[tuple[int, int]]:
        """(token, document) of every token of a split, the limit aside."""
        wanted = [d for d in self.documents if d.held_out == (name == "heldout")]
        return [(int(token), d.index) for d in wanted for token in d.tokens]


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
    return Case(documents, Packing(context_size=context, bos=1, separator=2), limit)


@given(case=cases())
def test_each_splits_stream_is_its_documents_one_after_another(
    case: Case, tmp_path_factory: pytest.TempPathFactory
) -> None:
    streams, _ = collect(case.documents, case.packing, case.limit, tmp_path_factory.mktemp("s"))
    for name in SPLITS:
        tokens = [token for token, _ in case.split(name)]
        kept = streams[name].n_sequences * case.packing.rows_per_sequence
        assert streams[name].tokens.tolist() == tokens[:kept]


@given(case=cases())
def test_a_limit_is_rounded_up_to_whole_sequences(
    case: Case, tmp_path_factory: pytest.TempPathFactory
) -> None:
    streams, _ = collect(case.documents, case.packing, case.limit, tmp_path_factory.mktemp("s"))
    rows = case.packing.rows_per_sequence
    available = sum(len(case.split(name)) // rows for name in SPLITS)
    wanted = available if case.limit is None else -(-case.limit // rows)
    assert sum(s.n_sequences for s in streams.values()) == min(wanted, available)
    assert streams["train"].n_sequences >= 1


@given(case=cases())
def test_the_counts_add_up(case: Case, tmp_path_factory: pytest.TempPathFactory) -> None:
    streams, counts = collect(
        case.documents, case.packing, case.limit, tmp_path_factory.mktemp("s")
    )
    kept = sum(s.n_sequences for s in streams.values()) * case.packing.rows_per_sequence
    seen = case.documents[: counts.documents_read]
    assert counts.tokens_read == sum(len(d.tokens) for d in seen) == kept + counts.tokens_unused
    assert counts.documents_empty == sum(len(d.tokens) == 0 for d in seen)
    assert counts.documents_read == len(case.documents) or case.limit is not None


@given(case=cases(), data=st.data())
def test_any_rows_are_named_by_token_document_sequence_and_position(
    case: Case, data: st.DataObject, tmp_path_factory: pytest.TempPathFactory
) -> None:
    streams, _ = collect(case.documents, case.packing, case.limit, tmp_path_factory.mktemp("s"))
    name = data.draw(st.sampled_from([s for s in SPLITS if streams[s].n_sequences]))
    stream, per_sequence = streams[name], case.packing.rows_per_sequence
    n_rows = stream.n_sequences * per_sequence
    start, last = sorted(data.draw(st.tuples(*2 * [st.integers(0, n_rows - 1)])))
    first, stop = start // per_sequence, last // per_sequence + 1
    sequences = case.packing.sequences(stream.tokens, first, stop)
    values = row_values(sequences, first, range(start, last + 1), stream.documents, stream.starts)
    named = list(zip(values["token"].tolist(), values["doc"].tolist(), strict=True))
    assert named == case.split(name)[start : last + 1]
    at = sequences[values["seq"].astype(int) - first, values["pos"].astype(int)]
    assert np.array_equal(at, values["token"])
    assert values["pos"].min() >= 1


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
