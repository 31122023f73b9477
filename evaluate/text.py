"""The text that a score is made on: held-out text of the store's own, or of a dataset."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Float64, Int64, UInt32

from saeflow import console
from saeflow.errors import BadInputError
from saeflow.evaluate.config import EvaluateConfig
from saeflow.evaluate.mismatch import Mismatch, settle
from saeflow.evaluate.origin import Origin
from saeflow.evaluate.sequences import ChosenSequences, from_documents, from_store
from saeflow.harvest.documents import open_documents
from saeflow.harvest.models import SourceModel, hash_files
from saeflow.harvest.store import Store, open_store, read_attributes
from saeflow.harvest.tokens import Packing, choose_packing, tokenize
from saeflow.location import Location, locate

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
        trained_on: whether the SAE was trained on it.
        packing: how the sequences were made.
        dataset: name of the dataset, or its resolved path.
        dataset_sha256: hash of its files, if there are files and the SAE's are known.
        store_identity: of the store that it was read from; None if from a dataset.
    """

    source: str
    sequences: UInt32[np.ndarray, "sequences context"]
    available: int
    documents: Int64[np.ndarray, "sequences context"]
    lengths: Int64[np.ndarray, " sequences"]
    frequency: Float64[np.ndarray, " vocabulary"]
    trained_on: bool
    packing: Packing
    dataset: str | None
    dataset_sha256: str | None
    store_identity: str | None


def held_out_text(config: EvaluateConfig, origin: Origin, model: SourceModel) -> HeldOutText:
    """Held-out sequences, evenly spread over what there is, at most `config.tokens` tokens.

    They come from `config.dataset` if given; else from the store that the SAE was
    trained on; else, if that is gone, from the dataset that the store was made of.
    Which documents are held out is decided by the hash of their text, so it is the
    same choice in all three. With `config.allow_training_text` they are those that
    the SAE was trained on, if the text is the SAE's own.

    Args:
        config: the options.
        origin: where the SAE is from.
        model: whose tokenizer is used for a dataset.

    Raises:
        BadInputError: there is no held-out text to be had, or the SAE was trained on all
            there is and that is not allowed.
    """
    _refuse_unknown_text(config, origin)
    own = config.dataset is None or is_own_dataset(config.dataset, origin)
    trained_on = own and config.allow_training_text
    if own and not trained_on:
        _refuse_training_text(config, origin)
    place = None if origin.store_path is None else locate(origin.store_path)
    if config.dataset is None and place is not None and not origin.imported and _is_there(place):
        return _of_store(place, config, origin, model, trained_on)
    if config.dataset is None and place is not None:
        console.warn(f"store {place} is gone: documents come from {origin.dataset}")
    return _of_dataset(config, origin, model, trained_on)


def is_own_dataset(dataset: str, origin: Origin) -> bool:
    """Whether a dataset is the one that an SAE was made from, by its name or its files."""
    if origin.dataset is None:
        return False
    if dataset_name(dataset) == origin.dataset:
        return True
    return origin.dataset_sha256 is not None and _sha256(dataset) == origin.dataset_sha256


def dataset_name(dataset: str) -> str:
    """A dataset as provenance names it: the resolved path of files, or a name."""
    path = Path(dataset).expanduser()
    return str(path.resolve()) if path.exists() else dataset


def _refuse_unknown_text(config: EvaluateConfig, origin: Origin) -> None:
    if config.dataset is not None:
        return
    if origin.imported:
        raise BadInputError(
            f"SAE {config.sae} was trained on imported activations, whose text is not in the "
            "store: give --dataset"
        )
    if origin.store_path is None and origin.dataset is None:
        raise BadInputError(f"SAE {config.sae} does not say what text it is from: give --dataset")


def _refuse_training_text(config: EvaluateConfig, origin: Origin) -> None:
    """Without a held-out share, or one that can be found again, all of the text was trained on."""
    if origin.held_out and not origin.imported:
        return
    why = "--held-out 0" if origin.held_out == 0 else "it does not say that any was held out"
    raise BadInputError(
        f"SAE {config.sae} was trained on all of {origin.dataset} ({why}): give another "
        "--dataset, or --allow-training-text to use it all the same"
    )


def _is_there(place: Location) -> bool:
    return place.is_dir() if isinstance(place, Path) else read_attributes(place) is not None


def _of_store(
    path: Location, config: EvaluateConfig, origin: Origin, model: SourceModel, trained_on: bool
) -> HeldOutText:
    store = open_store(path)
    _check_identity(store, config, origin)
    split = store.train if trained_on else store.held_out
    if split.n_sequences == 0:
        raise BadInputError(
            f"store {path} holds no held-out text: give --dataset, "
            "or harvest with a larger --held-out"
        )
    chosen = from_store(store, split, config.tokens)
    return _text(str(path), chosen, model, trained_on, origin.dataset, None, store.identity)


def _check_identity(store: Store, config: EvaluateConfig, origin: Origin) -> None:
    if store.identity != origin.store_identity:
        mismatch = Mismatch(
            "dataset",
            f"store {str(origin.store_identity)[:12]}",
            f"store {store.identity[:12]} at {store.path}",
            "it is not the one that this SAE was trained on, give --dataset",
        )
        settle(str(config.sae), mismatch, config.allow_mismatch)
    if store.layout.packing is None:
        raise BadInputError(f"store {store.path} holds no text: give --dataset")


def _of_dataset(
    config: EvaluateConfig, origin: Origin, model: SourceModel, trained_on: bool
) -> HeldOutText:
    dataset = config.dataset or origin.dataset
    assert dataset is not None
    packing = choose_packing(
        model.tokenizer,
        min(origin.context_size or _CONTEXT_SIZE, model.longest_context),
        packed=origin.packed is not False,
    )
    share = origin.held_out or _HELD_OUT
    split, field = (config.split, config.text_field) if config.dataset else _recorded(origin)
    documents = open_documents(dataset, split=split, text_field=field)
    tokenized = tokenize(documents, model.tokenizer, packing, held_out=share)
    which = "train" if trained_on else "heldout"
    chosen = from_documents(tokenized, packing, which, config.tokens)
    if chosen is None:
        kind = "training" if trained_on else "held-out"
        raise BadInputError(
            f"dataset {dataset} has no {kind} sequence (held-out share {share}): give more text"
        )
    sha256 = None if origin.dataset_sha256 is None else _sha256(dataset)
    return _text(dataset, chosen, model, trained_on, dataset_name(dataset), sha256, None)


def _recorded(origin: Origin) -> tuple[str, str]:
    return origin.split, origin.text_field


def _sha256(dataset: str) -> str | None:
    """As the provenance of a store has it; None for what is not in files here."""
    path = Path(dataset).expanduser()
    if not path.exists():
        return None
    return hash_files([path] if path.is_file() else [p for p in path.rglob("*") if p.is_file()])


def _text(
    source: str,
    chosen: ChosenSequences,
    model: SourceModel,
    trained_on: bool,
    dataset: str | None,
    sha256: str | None,
    identity: str | None,
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
        trained_on=trained_on,
        packing=chosen.packing,
        dataset=dataset,
        dataset_sha256=sha256,
        store_identity=identity,
    )
