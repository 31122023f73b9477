"""The held-out text that a score is made on: the store's own, or that of a dataset."""

import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import UInt32

from saeflow import console
from saeflow.errors import BadInputError
from saeflow.evaluate.config import EvaluateConfig
from saeflow.harvest.documents import open_documents
from saeflow.harvest.models import SourceModel
from saeflow.harvest.sequences import collect
from saeflow.harvest.store import open_store, read_attributes
from saeflow.harvest.tokens import choose_packing, tokenize
from saeflow.location import Location, locate

_CONTEXT_SIZE = 128
"""Of an SAE that does not say on what contexts it was trained."""

_HELD_OUT = 0.05
"""The share of documents that is used where the SAE's training held none out."""


@dataclass(frozen=True)
class HeldOutText:
    """Sequences of held-out documents.

    Attributes:
        source: where they are from, for people.
        sequences: token ids, the BOS token at position 0.
        available: how many sequences there were to choose from.
    """

    source: str
    sequences: UInt32[np.ndarray, "sequences context"]
    available: int


def held_out_text(
    config: EvaluateConfig, provenance: Mapping[str, Any], model: SourceModel
) -> HeldOutText:
    """Held-out sequences, evenly spaced over what there is, at most `config.tokens` tokens.

    They come from `config.dataset` if given; else from the store that the SAE was
    trained on; else, if that is gone, from the dataset that the store was made of.
    Which documents are held out is decided by the hash of their text, so it is the
    same choice in all three.

    Args:
        config: the options.
        provenance: `metadata.saeflow` of the SAE; empty for a foreign one.
        model: whose tokenizer is used for a dataset.

    Raises:
        BadInputError: there is no held-out text to be had.
    """
    store = provenance.get("store", {})
    if config.dataset is None and "imported_from" in store.get("provenance", {}):
        raise BadInputError(
            f"SAE {config.sae} was trained on imported activations, whose text is not in the "
            "store: give --dataset"
        )
    _refuse_training_text(config, store.get("provenance", {}))
    place = locate(store["path"]) if store else None
    if config.dataset is None and place is not None and _is_there(place):
        return _from_store(place, store["identity"], config.tokens)
    dataset = config.dataset or store.get("provenance", {}).get("dataset")
    if dataset is None:
        raise BadInputError(f"SAE {config.sae} does not say what text it is from: give --dataset")
    if config.dataset is None:
        console.warn(f"store {store['path']} is gone: held-out documents come from {dataset}")
    return _from_dataset(dataset, config, store.get("provenance", {}), model)


def _is_there(place: Location) -> bool:
    return place.is_dir() if isinstance(place, Path) else read_attributes(place) is not None


def _refuse_training_text(config: EvaluateConfig, provenance: Mapping[str, Any]) -> None:
    """Without a held-out share, all of the store's own text was trained on."""
    if provenance.get("held_out") != 0:
        return
    given = config.dataset and Path(config.dataset).expanduser()
    resolved = str(given.resolve()) if given and given.exists() else config.dataset
    if resolved in (None, provenance["dataset"]):
        raise BadInputError(
            f"SAE {config.sae} was trained on all of {provenance['dataset']} (--held-out 0): "
            "give another --dataset, or harvest again with a --held-out share"
        )


def _from_store(path: Location, identity: str, tokens: int) -> HeldOutText:
    store = open_store(path)
    if store.identity != identity:
        raise BadInputError(
            f"store {path} is not the one that this SAE was trained on: give --dataset"
        )
    split = store.held_out
    packing = store.layout.packing
    if split.n_sequences == 0 or packing is None:
        raise BadInputError(
            f"store {path} holds no held-out text: give --dataset, "
            "or harvest with a larger --held-out"
        )
    chosen = _spread(split.n_sequences, tokens, packing.rows_per_sequence)
    sequences = store.array(f"{split.folder}sequences/token").oindex[chosen]
    return HeldOutText(str(path), np.asarray(sequences, np.uint32), split.n_sequences)


def _from_dataset(
    dataset: str, config: EvaluateConfig, provenance: Mapping[str, Any], model: SourceModel
) -> HeldOutText:
    longest = min(_CONTEXT_SIZE, model.longest_context)
    packing = choose_packing(
        model.tokenizer,
        int(provenance.get("context_size", longest)),
        packed=provenance.get("pack", True),
    )
    share = float(provenance.get("held_out") or _HELD_OUT)
    if config.dataset is None:
        split, text_field = provenance["split"], provenance["text_field"]
    else:
        split, text_field = config.split, config.text_field
    documents = open_documents(dataset, split=split, text_field=text_field)
    tokenized = tokenize(documents, model.tokenizer, packing, held_out=share)
    with tempfile.TemporaryDirectory() as folder:
        streams, _ = collect(tokenized, packing, None, Path(folder), train_needed=False)
        stream = streams["heldout"]
        if stream.n_sequences == 0:
            raise BadInputError(
                f"dataset {dataset} has no held-out sequence (held-out share {share}): "
                "give more text"
            )
        chosen = _spread(stream.n_sequences, config.tokens, packing.rows_per_sequence)
        sequences = np.concatenate([stream.sequences(packing, c, c + 1) for c in chosen.tolist()])
    return HeldOutText(dataset, sequences, stream.n_sequences)


def _spread(available: int, tokens: int, per_sequence: int) -> np.ndarray:
    """Numbers of sequences, evenly spaced, so that a few documents don't decide the score."""
    wanted = min(available, -(-tokens // per_sequence))
    return np.arange(wanted) * available // wanted
