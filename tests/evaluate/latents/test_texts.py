"""Tokens as people read them, for the two kinds of tokenizer."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import AutoTokenizer, PreTrainedTokenizerBase, PreTrainedTokenizerFast

from saeflow.evaluate.latents.collector import LatentCollector
from saeflow.evaluate.latents.result import OutputTokens
from saeflow.evaluate.latents.texts import token_texts, used_tokens


@pytest.fixture
def byte_level(tiny_model: Path) -> PreTrainedTokenizerBase:
    """Its pieces are of UTF-8 bytes; 300 tokens."""
    return AutoTokenizer.from_pretrained(str(tiny_model))


@pytest.fixture
def sentencepiece() -> PreTrainedTokenizerBase:
    """As Llama 2's: a space is a part of the word after it, unknown characters are bytes."""
    pieces = ["<unk>", "<s>", "<0xC3>", "<0xBC>", "▁the", "▁", "row", "s", "▁r", "ow", "."]
    vocabulary = {piece: number for number, piece in enumerate(pieces)}
    merges = [("▁r", "ow")] if "▁row" in vocabulary else []
    tokenizer = Tokenizer(
        models.BPE(vocabulary, merges, unk_token="<unk>", byte_fallback=True, fuse_unk=True)
    )
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first")
    tokenizer.decoder = decoders.Sequence(
        [
            decoders.Replace("▁", " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Strip(" ", 1, 0),
        ]
    )
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", unk_token="<unk>")


def test_texts_one_after_the_other_are_the_text(byte_level: PreTrainedTokenizerBase) -> None:
    text = "the tensor  of\n\ta row , it 's ."
    assert "".join(token_texts(byte_level, byte_level.encode(text))) == text


def test_a_part_of_a_character_is_shown_as_its_bytes(byte_level: PreTrainedTokenizerBase) -> None:
    ids = byte_level.encode("→")
    assert token_texts(byte_level, ids) == [r"\xe2", r"\x86", r"\x92"]


def test_what_is_whole_beside_a_part_is_text(byte_level: PreTrainedTokenizerBase) -> None:
    texts = token_texts(byte_level, byte_level.encode("Zürich"))
    assert texts == [r"Z\xc3", r"\xbc", "r", "ich"]


def test_special_and_unknown_tokens_are_shown(byte_level: PreTrainedTokenizerBase) -> None:
    assert token_texts(byte_level, [0, 2, 5000]) == ["<|bos|>", "<|pad|>", "<token 5000>"]


def test_the_space_before_a_word_of_sentencepiece_stays(
    sentencepiece: PreTrainedTokenizerBase,
) -> None:
    texts = token_texts(sentencepiece, range(12))
    assert texts[1] == "<s>"
    assert texts[2:4] == ["<0xC3>", "<0xBC>"]
    assert texts[4:7] == [" the", " ", "row"]
    assert texts[8:] == [" r", "ow", ".", "<token 11>"]


def test_used_tokens_are_those_of_contexts_and_outputs() -> None:
    collector = LatentCollector(2)
    rows = torch.tensor([[1.0, 0.0], [2.0, 0.0]])
    collector.update(0, torch.tensor([70, 5]), torch.ones(2, dtype=torch.bool), rows)
    found = collector.result()
    assert used_tokens(found).tolist() == [5, 70]
    ids = np.array([[9], [70]], np.uint32)
    none = np.zeros((2, 1), np.float32)
    lens = OutputTokens(top=ids, top_logits=none, bottom=ids - 1, bottom_logits=none)
    assert used_tokens(replace(found, output_tokens=lens)).tolist() == [5, 8, 9, 69, 70]
