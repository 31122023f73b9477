"""Documents into tokens: the policy of packing, and the held-out choice."""

import dataclasses
from collections.abc import Sequence
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from transformers import PreTrainedTokenizerBase

from saeflow.errors import BadInputError
from saeflow.harvest.documents import Document
from saeflow.harvest.tokens import Packing, choose_packing, is_held_out, tokenize

EOS = 1
PACKED = Packing(context_size=8, bos=0, separator=EOS)


def ids_of(
    texts: Sequence[str | list[int]], tokenizer: PreTrainedTokenizerBase, packing: Packing = PACKED
) -> list[list[int]]:
    documents = [Document(i, text) for i, text in enumerate(texts)]
    tokenized = list(tokenize(documents, tokenizer, packing, held_out=0.0))
    assert [t.index for t in tokenized] == list(range(len(texts)))
    return [t.tokens.tolist() for t in tokenized]


def test_each_document_ends_in_one_separator_and_has_no_bos(
    tokenizer: PreTrainedTokenizerBase,
) -> None:
    (ids,) = ids_of(["the tensor"], tokenizer)
    assert ids[-1] == EOS
    assert tokenizer.decode(ids[:-1]) == "the tensor"
    assert not {0, 1, 2} & set(ids[:-1])


def test_text_that_looks_like_a_special_token_stays_text(
    tokenizer: PreTrainedTokenizerBase,
) -> None:
    (ids,) = ids_of(["a <|bos|> and <|eos|>"], tokenizer)
    assert not {0, 1, 2} & set(ids[:-1])
    assert tokenizer.decode(ids[:-1]) == "a <|bos|> and <|eos|>"


def test_an_empty_document_has_no_tokens_not_even_a_separator(
    tokenizer: PreTrainedTokenizerBase,
) -> None:
    assert ids_of(["", "a", []], tokenizer)[::2] == [[], []]


def test_token_ids_are_taken_as_they_are(tokenizer: PreTrainedTokenizerBase) -> None:
    assert ids_of(["the", [7, 8]], tokenizer)[1] == [7, 8, EOS]


def test_without_packing_nothing_separates_documents(tokenizer: PreTrainedTokenizerBase) -> None:
    unpacked = dataclasses.replace(PACKED, packed=False)
    texts: list[str | list[int]] = ["the tensor", "", [7, EOS], "a row"]
    packed = ids_of(texts, tokenizer)
    assert ids_of(texts, tokenizer, unpacked) == [ids[:-1] for ids in packed]


def test_documents_come_out_in_order_however_many(tokenizer: PreTrainedTokenizerBase) -> None:
    """More than one batch of the tokenizer, text and tokens mixed."""
    texts = ["a" * (i + 1) if i % 3 else [i + 3] for i in range(200)]
    ids = ids_of(texts, tokenizer)
    back = [tokenizer.decode(d[:-1]) if i % 3 else d[:-1] for i, d in enumerate(ids)]
    assert back == texts


def test_the_held_out_choice_depends_on_the_content_alone(
    tokenizer: PreTrainedTokenizerBase,
) -> None:
    texts = [f"document {i}" for i in range(40)]

    def held_out(order: list[str]) -> set[str]:
        documents = [Document(i, text) for i, text in enumerate(order)]
        tokenized = tokenize(documents, tokenizer, PACKED, held_out=0.3)
        return {text for text, t in zip(order, tokenized, strict=True) if t.held_out}

    chosen = held_out(texts)
    assert 3 < len(chosen) < 25
    assert held_out(texts[::-1] + texts[:5]) == chosen


def test_the_share_of_held_out_documents_is_what_was_asked_for() -> None:
    contents = [str(i).encode() for i in range(5000)]
    share = np.mean([is_held_out(c, 0.1) for c in contents])
    assert share == pytest.approx(0.1, abs=0.015)
    assert not any(is_held_out(c, 0.0) for c in contents)


@given(content=st.binary(max_size=40), share=st.floats(0, 0.999), more=st.floats(0, 0.999))
def test_a_larger_share_keeps_every_document_that_was_held_out(
    content: bytes, share: float, more: float
) -> None:
    if is_held_out(content, min(share, more)):
        assert is_held_out(content, max(share, more))


@given(
    context=st.integers(2, 40),
    n_sequences=st.integers(1, 30),
    cut=st.tuples(*2 * [st.integers(0, 30)]),
)
def test_any_sequences_are_the_same_cut_alone_and_all_together(
    context: int, n_sequences: int, cut: tuple[int, int]
) -> None:
    packing = Packing(context_size=context, bos=7, separator=8)
    stream = np.arange(100, 100 + n_sequences * (context - 1), dtype=np.uint32)
    first, stop = sorted(min(c, n_sequences) for c in cut)
    together = packing.sequences(stream, 0, n_sequences)
    assert together.dtype == np.uint32
    assert together[:, 0].tolist() == [7] * n_sequences
    assert np.array_equal(together[:, 1:].ravel(), stream)
    assert np.array_equal(packing.sequences(stream, first, stop), together[first:stop])


@pytest.mark.parametrize(
    ("bos", "eos", "expected"),
    [(5, 6, (5, 6)), (None, 6, (6, 6)), (5, None, (5, 5)), (0, 0, (0, 0))],
)
def test_the_tokenizer_decides_what_opens_and_separates(
    bos: int | None, eos: int | None, expected: tuple[int, int]
) -> None:
    tokenizer = SimpleNamespace(bos_token_id=bos, eos_token_id=eos)
    packing = choose_packing(tokenizer, 8)
    assert (packing.bos, packing.separator) == expected
    assert packing.rows_per_sequence == 7
    assert packing.packed
    assert not choose_packing(tokenizer, 8, packed=False).packed


def test_a_tokenizer_with_neither_is_refused() -> None:
    tokenizer = SimpleNamespace(bos_token_id=None, eos_token_id=None, name_or_path="some/folder")
    with pytest.raises(BadInputError, match="some/folder has neither a BOS nor an end-of-text"):
        choose_packing(tokenizer, 8)
