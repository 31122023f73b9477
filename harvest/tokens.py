"""Documents into token streams: tokenising, the held-out choice, and packing.

The policy is recorded with every store:

- a document is tokenised without special tokens, and text that looks like a
  special token stays text;
- after each document comes one separator token;
- the tokens of all documents of a split make one stream, cut every
  `context_size - 1` tokens;
- each sequence is the BOS token followed by one such cut.

So sequence `k` of a split is arithmetic on its stream, and token `t` of the
stream sits in sequence `t // (context_size - 1)` at position
`1 + t % (context_size - 1)`. Position 0, the BOS token, is never stored.

With packing off there are no separators: each document is cut for itself, its
last sequence is padded, and pads are not stored either.
"""

import hashlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import UInt32

from saeflow.errors import BadInputError
from saeflow.harvest.documents import Document

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_DOCUMENTS_AT_ONCE = 64
"""Documents handed to the tokenizer together: enough to use its threads, little to hold."""


@dataclass(frozen=True, kw_only=True)
class Packing:
    """How documents become sequences.

    Attributes:
        context_size: tokens of a sequence, the BOS token included.
        bos: token id at position 0 of every sequence.
        separator: token id after every document; where packing is off, what pads.
        packed: whether a sequence goes on into the next document. If not, it ends
            with its document, and is padded with `separator`.
    """

    context_size: int
    bos: int
    separator: int
    packed: bool = True

    @property
    def rows_per_sequence(self) -> int:
        """Tokens of a full sequence that get a stored row: all but position 0."""
        return self.context_size - 1

    def sequences(
        self, stream: UInt32[np.ndarray, " tokens"], first: int, stop: int
    ) -> UInt32[np.ndarray, "sequences context"]:
        """Sequences `first` to `stop` (excluded) of a stream, BOS in front of each."""
        rows = self.rows_per_sequence
        cut = np.asarray(stream[first * rows : stop * rows]).reshape(-1, rows)
        return np.concatenate([np.full((len(cut), 1), self.bos, np.uint32), cut], axis=1)


@dataclass(frozen=True)
class TokenizedDocument:
    """One document of the dataset as token ids, the separator included.

    Attributes:
        index: the document's place in the dataset, empty documents counted.
        tokens: its token ids; none at all if the document was empty.
        held_out: whether it belongs to the held-out split.
    """

    index: int
    tokens: UInt32[np.ndarray, " tokens"]
    held_out: bool


def choose_packing(
    tokenizer: "PreTrainedTokenizerBase", context_size: int, *, packed: bool = True
) -> Packing:
    """The packing that a tokenizer's special tokens allow.

    A tokenizer without a BOS token opens its sequences with the end-of-text
    token, as such models were trained; one without an end-of-text token
    separates documents by BOS.

    Raises:
        BadInputError: the tokenizer has neither.
    """
    bos, eos = tokenizer.bos_token_id, tokenizer.eos_token_id
    first = bos if bos is not None else eos
    if not isinstance(first, int):
        raise BadInputError(
            f"the tokenizer of {tokenizer.name_or_path} has neither a BOS nor an end-of-text "
            "token: set bos_token in its tokenizer_config.json"
        )
    return Packing(
        context_size=context_size,
        bos=first,
        separator=eos if isinstance(eos, int) else first,
        packed=packed,
    )


def tokenize(
    documents: Iterable[Document],
    tokenizer: "PreTrainedTokenizerBase",
    packing: Packing,
    *,
    held_out: float,
) -> Iterator[TokenizedDocument]:
    """Tokenise documents in order; an empty one comes out with no tokens.

    Args:
        documents: texts, or token ids that are taken as they are.
        tokenizer: a fast tokenizer.
        packing: whose separator is put after each document, where sequences go on
            into the next one.
        held_out: the share of documents, in [0, 1), that is held out.
    """
    iterator, end = iter(documents), [packing.separator] if packing.packed else []
    while batch := list(islice(iterator, _DOCUMENTS_AT_ONCE)):
        for document, tokens in zip(batch, _token_ids(batch, tokenizer), strict=True):
            ids = np.asarray([*tokens, *end] if tokens else [], np.uint32)
            yield TokenizedDocument(
                document.index, ids, is_held_out(document.content_key(), held_out)
            )


def _token_ids(batch: list[Document], tokenizer: "PreTrainedTokenizerBase") -> list[list[int]]:
    texts = [document.text for document in batch if isinstance(document.text, str)]
    encoded = iter(
        tokenizer(texts, add_special_tokens=False, split_special_tokens=True, verbose=False)[
            "input_ids"
        ]
        if texts
        else []
    )
    return [next(encoded) if isinstance(d.text, str) else list(d.text) for d in batch]


def is_held_out(content: bytes, share: float) -> bool:
    """Whether a document is held out, by the hash of its content alone.

    The choice is the same in every store, and in a dataset that was shuffled,
    cut or repeated: equal documents fall on the same side.
    """
    hashed = int.from_bytes(hashlib.sha256(content).digest()[:8], "big")
    return hashed < share * 2**64
