"""Tokens as people can read them, each by itself."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import UInt32

from saeflow.evaluate.latents.result import NO_TOKEN, Latents

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_REPLACEMENT = "\N{REPLACEMENT CHARACTER}"
_SENTENCEPIECE_SPACE = "\N{LOWER ONE EIGHTH BLOCK}"


def used_tokens(latents: Latents) -> UInt32[np.ndarray, " tokens"]:
    """The ids of all tokens in contexts and among output tokens, rising, each once."""
    held = [latents.contexts.tokens]
    if latents.output_tokens is not None:
        held += [latents.output_tokens.top, latents.output_tokens.bottom]
    ids: np.ndarray = np.unique(np.concatenate([np.unique(tokens) for tokens in held]))
    kept: np.ndarray = ids[ids != NO_TOKEN]
    return kept


def token_texts(tokenizer: "PreTrainedTokenizerBase", ids: Sequence[int]) -> list[str]:
    r"""The text of each token, as it stands in running text.

    Each is decoded alone, special tokens included, without clean-up. Two things get lost
    by that and are put right: the space before a word of SentencePiece, and bytes that are
    no whole character, which are shown as `\xe2`. An id that the tokenizer doesn't know
    is shown as `<token 5>`. Whitespace is as it is.
    """
    return [_text(tokenizer, int(number)) for number in ids]


def _text(tokenizer: "PreTrainedTokenizerBase", number: int) -> str:
    try:
        token = tokenizer.convert_ids_to_tokens(number)
    except IndexError:  # SentencePiece's own tokenizers; the others say None
        token = None
    if token is None:
        return f"<token {number}>"
    if _SENTENCEPIECE_SPACE in token:  # in byte-level BPE it would be three other characters
        return str(token).replace(_SENTENCEPIECE_SPACE, " ")
    text: str = tokenizer.decode(
        [number], skip_special_tokens=False, clean_up_tokenization_spaces=False
    )
    return _with_bytes(token) if _REPLACEMENT in text else text


def _with_bytes(token: str) -> str:
    """The text of a byte-level BPE's token; of another tokenizer's, the token itself."""
    from transformers.convert_slow_tokenizer import bytes_to_unicode

    byte_of = {character: byte for byte, character in bytes_to_unicode().items()}
    if not set(token) <= set(byte_of):
        return token
    return bytes(byte_of[character] for character in token).decode(errors="backslashreplace")
