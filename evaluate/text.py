"""The text that a score is made on: held-out text of the store's own, or of a dataset."""

import hashlib
from dataclasses import dataclass, replace
from itertools import chain

import numpy as np
from jaxtyping import Float64, Int64, UInt32

from saeflow import console
from saeflow.errors import BadInputError
from saeflow.evaluate.config import EvaluateConfig
from saeflow.evaluate.origin import Origin
from saeflow.evaluate.sequences import ChosenSequences, from_documents, from_store
from saeflow.evaluate.text_source import TextSource, dataset_name
from saeflow.harvest.documents import open_documents
from saeflow.harvest.models import SourceModel
from saeflow.harvest.store import Store
from saeflow.harvest.tokens import Packing, choose_packing, tokenize

_CONTEXT_SIZE = 128
"""Of an SAE that does not say on what contexts it was trained."""

_HELD_OUT = 0.05
"""The share of documents that is used where the SAE's training held none out."""


@dataclass(frozen=True)
class HeldOutText:
    """Sequences of held-out documents; of documents that were trained on, where asked for.

    Attributes:
        source: where they are from, for people.
        sequences: token ids, the BOS token at position 0, padded where packing is off.
        available: how many sequences there were to choose from.
        documents: dataset index of each position's document, or -1 at position 0 and
            in padding.
        lengths: tokens of each sequence that are its own, position 0 included.
        frequency: the share of each token id in the text, held out or not, or in some
            four million tokens of it; 0 for the ids that are not there.
        trained_on: whether the SAE was trained on it; None if that is not known.
        packing: how the sequences were made.
        dataset: name of the dataset, or its resolved path.
        dataset_sha256: hash of its files, if it was read from files.
        store_identity: of the store that it was read from; None if from a dataset.
        split, text_field: where in the dataset it was; None where there is no such thing.
    """

    source: str
    sequences: UInt32[np.ndarray, "sequences context"]
    available: int
    documents: Int64[np.ndarray, "sequences context"]
    lengths: Int64[np.ndarray, " sequences"]
    frequency: Float64[np.ndarray, " vocabulary"]
    trained_on: bool | None
    packing: Packing
    dataset: str | None
    dataset_sha256: str | None
    store_identity: str | None
    split: str | None = None
    text_field: str | None = None

    @property
    def sha256(self) -> str:
        """Of what the model reads, wherever it is from."""
        read = hashlib.sha256(f"{self.sequences.shape}".encode())
        read.update(np.ascontiguousarray(self.sequences, "<u4").tobytes())
        read.update(np.ascontiguousarray(self.lengths, "<i8").tobytes())
        return read.hexdigest()


def held_out_text(
    found: TextSource, config: EvaluateConfig, origin: Origin, model: SourceModel
) -> HeldOutText:
    """Held-out sequences, evenly spread over what there is, at most `config.tokens` tokens.

    Which documents are held out is decided by the hash of their text, so it is the same
    choice in a store and in a dataset. With `config.allow_training_text` they are those that
    the SAE was trained on, if the text is the SAE's own.

    Args:
        found: where the text is.
        config: the options.
        origin: where the SAE is from.
        model: whose tokenizer is used for a dataset.

    Raises:
        BadInputError: there is no such text in it.
    """
    if found.store is not None:
        return _of_store(found, found.store, config, model)
    if config.dataset is None and origin.store_path is not None:
        console.warn(f"store {origin.store_path} is gone: documents come from {origin.dataset}")
    return _of_dataset(found, config, origin, model)


def _of_store(
    found: TextSource, store: Store, config: EvaluateConfig, model: SourceModel
) -> HeldOutText:
    split = store.train if found.part == "train" else store.held_out
    if split.n_sequences == 0:
        raise BadInputError(
            f"store {store.path} holds no held-out text: give --dataset, "
            "or harvest with a larger --held-out"
        )
    return _text(str(store.path), found, from_store(store, split, config.tokens), model)


def _of_dataset(
    found: TextSource, config: EvaluateConfig, origin: Origin, model: SourceModel
) -> HeldOutText:
    dataset = found.dataset
    assert dataset is not None
    packing = choose_packing(
        model.tokenizer,
        min(origin.context_size or _CONTEXT_SIZE, model.longest_context),
        packed=origin.packed is not False,
    )
    share = origin.held_out or _HELD_OUT
    documents = open_documents(
        dataset, split=found.split or "train", text_field=found.text_field or "text"
    )
    first = next(documents, None)
    documents = documents if first is None else chain([first], documents)
    if first is not None and not isinstance(first.text, str) and not found.own:
        found = replace(found, trained_on=None)  # the hash of token ids is not that of the text
    tokenized = tokenize(documents, model.tokenizer, packing, held_out=share)
    chosen = from_documents(tokenized, packing, found.part, config.tokens)
    if chosen is None:
        kind = "training" if found.part == "train" else "held-out"
        raise BadInputError(
            f"dataset {dataset} has no {kind} sequence (held-out share {share}): give more text"
        )
    return _text(dataset, found, chosen, model)


def _text(
    source: str, found: TextSource, chosen: ChosenSequences, model: SourceModel
) -> HeldOutText:
    if (largest := int(chosen.sequences.max())) >= model.vocabulary:
        raise BadInputError(
            f"text of {source} holds token {largest}, but model {model.spec.name} has only "
            f"{model.vocabulary}: give the model that it was tokenised for"
        )
    counts = np.zeros(model.vocabulary, np.int64)
    known = chosen.counts[: model.vocabulary]
    counts[: len(known)] = known
    return HeldOutText(
        source=source,
        sequences=chosen.sequences,
        available=chosen.available,
        documents=chosen.documents,
        lengths=chosen.lengths,
        frequency=counts / chosen.counts.sum(),
        trained_on=found.trained_on,
        packing=chosen.packing,
        dataset=None if found.dataset is None else dataset_name(found.dataset),
        dataset_sha256=found.dataset_sha256,
        store_identity=None if found.store is None else found.store.identity,
        split=found.split,
        text_field=found.text_field,
    )
