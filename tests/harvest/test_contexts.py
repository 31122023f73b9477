"""From rows to the sequences that hold them and back, with packing and without."""

from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from saeflow.harvest.contexts import Text, open_text
from saeflow.harvest.layout import Layout, Split
from saeflow.harvest.sequences import collect, write_sequences
from saeflow.harvest.store import Store
from saeflow.harvest.tokens import Packing, TokenizedDocument

Name = tuple[int, int, int, int]
"""Token, document, sequence and position of a row."""


@dataclass(frozen=True)
class Case:
    """The text of a split, and what each of its rows should be called."""

    text: Text
    names: list[Name]
    packing: Packing


def text_of(folder: Path, lengths: list[int], packing: Packing) -> Case:
    """Documents of these lengths, all tokens different, written and opened again."""
    ends = np.cumsum(lengths).tolist()
    tokens = [
        np.arange(end - n, end, dtype=np.uint32) + 10 for n, end in zip(lengths, ends, strict=True)
    ]
    documents = [TokenizedDocument(i, ids, held_out=False) for i, ids in enumerate(tokens)]
    streams, _ = collect(documents, packing, None, folder)
    stream = streams["train"]
    split = Split("train", stream.n_sequences, stream.n_rows, len(stream.documents), 64)
    layout = Layout(
        dtype="float32",
        packing=packing,
        order="sequence",
        seed=0,
        rows_per_shard=64,
        hook_points=(),
        splits={"train": split},
    )
    write_sequences(folder, split, stream, packing)
    text = open_text(Store(folder, layout, {}, identity=""), split)
    return Case(text, _names(tokens, packing)[: stream.n_rows], packing)


def _names(documents: list[np.ndarray], packing: Packing) -> list[Name]:
    """Counted out token by token."""
    names, sequence, position = [], 0, 0
    for index, tokens in enumerate(documents):
        if not packing.packed and position:
            sequence, position = sequence + 1, 0
        for token in tokens.tolist():
            if position == packing.rows_per_sequence:
                sequence, position = sequence + 1, 0
            position += 1
            names.append((token, index, sequence, position))
    return names


@st.composite
def cases(draw: st.DrawFn) -> tuple[list[int], Packing]:
    context = draw(st.integers(2, 9))
    lengths = draw(st.lists(st.integers(0, 25), max_size=10))
    return [context, *lengths], Packing(
        context_size=context, bos=1, separator=2, packed=draw(st.booleans())
    )


@given(given_text=cases(), data=st.data())
def test_any_rows_are_in_the_sequences_that_are_named(
    given_text: tuple[list[int], Packing],
    data: st.DataObject,
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    case = text_of(tmp_path_factory.mktemp("text"), *given_text)
    first, last = sorted(data.draw(st.tuples(*2 * [st.integers(0, len(case.names) - 1)])))
    wanted = case.names[first : last + 1]
    contexts = case.text.contexts(range(first, last + 1))
    held = range(contexts.first, contexts.first + len(contexts.tokens))
    assert (held.start, held.stop) == (wanted[0][2], wanted[-1][2] + 1)
    values = case.text.row_values(contexts)
    columns = [values[name].tolist() for name in ("token", "doc", "seq", "pos")]
    assert list(zip(*columns, strict=True)) == wanted


@given(given_text=cases(), data=st.data(), size=st.integers(1, 6))
def test_batches_bring_each_wanted_row_once_and_no_other(
    given_text: tuple[list[int], Packing],
    data: st.DataObject,
    size: int,
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    case = text_of(tmp_path_factory.mktemp("text"), *given_text)
    first, last = sorted(data.draw(st.tuples(*2 * [st.integers(0, len(case.names) - 1)])))
    contexts = case.text.contexts(range(first, last + 1))
    batches = list(contexts.batches(size))
    found = [
        (row, token)
        for batch in batches
        for row, token in zip(batch.rows.tolist(), batch.tokens[batch.stored].tolist(), strict=True)
    ]
    assert sorted(found) == [(row, case.names[row][0]) for row in range(first, last + 1)]
    for batch in batches:
        assert 1 <= len(batch.tokens) <= size
        assert (batch.tokens[:, 0] == case.packing.bos).all()
        assert not batch.stored[:, 0].any()
        assert batch.stored.any(1).all()  # no sequence is run for nothing
    assert sum(len(batch.tokens) for batch in batches) == len(contexts.tokens)
    assert sum(len(batch.tokens) == size for batch in batches) >= len(batches) - 1


def test_a_row_comes_after_all_of_its_sequence_that_is_before_it(tmp_path: Path) -> None:
    """Also where a shard begins inside a sequence: the model must see what came before."""
    case = text_of(tmp_path, [9, 4, 7], Packing(context_size=9, bos=1, separator=2, packed=False))
    (batch,) = case.text.contexts(range(5, 12)).batches(8)
    assert batch.tokens.tolist() == [
        [1, 10, 11, 12, 13, 14, 15, 16, 17],
        [1, 19, 20, 21, 22, 2, 2, 2, 2],
        [1, 18, 2, 2, 2, 2, 2, 2, 2],
    ]
    assert batch.rows.tolist() == [5, 6, 7, 9, 10, 11, 8]


def test_without_packing_batches_hold_sequences_of_similar_length(tmp_path: Path) -> None:
    packing = Packing(context_size=41, bos=1, separator=2, packed=False)
    lengths = np.random.default_rng(0).integers(1, 60, 200).tolist()
    case = text_of(tmp_path, lengths, packing)
    batches = list(case.text.contexts(range(len(case.names))).batches(16))
    sizes = [(batch.tokens.shape[1], (batch.tokens >= 10).sum(1)) for batch in batches]
    for (longest, own), (following, _) in pairwise(sizes):
        assert longest == own.max() + 1  # nothing is padded further than its batch needs
        assert own.min() + 1 >= following
    padded = sum(batch.tokens.size for batch in batches) / (len(case.names) + len(batches) * 16)
    print(f"positions run for each that is needed: {padded:.3f}")
    assert padded < 1.1


def test_packed_sequences_stay_in_order(tmp_path: Path) -> None:
    case = text_of(tmp_path, [100], Packing(context_size=6, bos=1, separator=2))
    rows = [batch.rows for batch in case.text.contexts(range(7, 93)).batches(4)]
    assert np.concatenate(rows).tolist() == list(range(7, 93))
