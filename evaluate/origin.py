"""What an SAE says of where it is from: ours all of it, a foreign one what SAELens writes."""

from dataclasses import dataclass
from pathlib import Path

from saeflow.evaluate.entries import Entries
from saeflow.harvest.importing.source import UNKNOWN
from saeflow.train.sae import SAE

_PROCESSINGS = ("fold_ln", "center_writing_weights", "center_unembed", "fold_value_biases")
"""What TransformerLens may do to a model's weights, and does in its compatibility mode."""


@dataclass(frozen=True, kw_only=True)
class Origin:
    """Where an SAE is from; None for whatever it doesn't say.

    Attributes:
        model: name of the source model, or its folder.
        weights_sha256, config_sha256, tokenizer_sha256: hashes of the model's files.
        dtype: precision of the forward pass that its rows came from.
        processing: what TransformerLens did to the model's weights.
        hook_points: those of the store that it was trained on.
        store_path, store_identity: that store; of our own SAEs only.
        dataset: the text's name or path.
        dataset_sha256: hash of its files.
        split, text_field: where in the dataset the text is.
        context_size: tokens of a sequence, position 0 included.
        bos: whether each sequence begins with the BOS token.
        packed: whether sequences go on from one document into the next.
        held_out: share of documents that training never saw.
        imported: its rows came from activations that somebody else stored.
    """

    model: str | None = None
    weights_sha256: str | None = None
    config_sha256: str | None = None
    tokenizer_sha256: str | None = None
    dtype: str | None = None
    processing: frozenset[str] | None = None
    hook_points: tuple[str, ...] | None = None
    store_path: str | None = None
    store_identity: str | None = None
    dataset: str | None = None
    dataset_sha256: str | None = None
    split: str = "train"
    text_field: str = "text"
    context_size: int | None = None
    bos: bool | None = None
    packed: bool | None = None
    held_out: float | None = None
    imported: bool = False


def origin_of(sae: SAE, folder: Path | None = None) -> Origin:
    """Where an SAE is from, by its cfg.json.

    Args:
        sae: an SAE.
        folder: that it was opened from, for messages.

    Raises:
        BadInputError: an entry of the metadata that is used is not of its type.
    """
    told = "this SAE" if folder is None else f"SAE {folder}"
    metadata = Entries(sae.cfg.get("metadata") or {}, "metadata", told)
    store = metadata.within("saeflow").within("store")
    return _of_store(store) if store.entries else _of_saelens(metadata)


def processing_of(*, compatibility_mode: bool) -> frozenset[str]:
    """What TransformerLens does to a model's weights: in its compatibility mode, or nothing."""
    return frozenset(_PROCESSINGS) if compatibility_mode else frozenset()


def _of_store(store: Entries) -> Origin:
    provenance = store.within("provenance")
    model = provenance.within("model")
    mode = model.get("compatibility_mode", bool)
    hooks = provenance.get("hook", list)
    imported = "imported_from" in provenance.entries
    return Origin(
        model=_known(model.get("name", str)),
        weights_sha256=model.get("weights_sha256", str),
        config_sha256=model.get("config_sha256", str),
        tokenizer_sha256=model.get("tokenizer_sha256", str),
        dtype=model.get("dtype", str),
        processing=None if mode is None else processing_of(compatibility_mode=mode),
        hook_points=None if hooks is None else tuple(map(str, hooks)),
        store_path=store.needed("path", str),
        store_identity=store.needed("identity", str),
        dataset=_known(provenance.get("dataset", str)),
        dataset_sha256=provenance.get("dataset_sha256", str),
        split=provenance.get("split", str) or "train",
        text_field=provenance.get("text_field", str) or "text",
        context_size=_context_size(provenance),
        bos=None if imported else True,
        packed=provenance.get("pack", bool),
        held_out=provenance.get("held_out", float),
        imported=imported,
    )


def _of_saelens(metadata: Entries) -> Origin:
    loading = metadata.within("model_from_pretrained_kwargs")
    said = {name for name in _PROCESSINGS if name in loading.entries}
    separate = metadata.get("disable_concat_sequences", bool)
    dtype = loading.get("dtype", str) or loading.get("torch_dtype", str)
    return Origin(
        model=_known(metadata.get("model_name", str)),
        dtype=None if dtype is None else dtype.removeprefix("torch."),
        processing=frozenset(name for name in said if loading.get(name, bool)) if said else None,
        dataset=_known(metadata.get("dataset_path", str)),
        context_size=_context_size(metadata),
        bos=metadata.get("prepend_bos", bool),
        packed=None if separate is None else not separate,
    )


def _context_size(held: Entries) -> int | None:
    size = held.get("context_size", int)
    if size is not None and size < 2:
        raise held.wrong("context_size", "at least 2, one token and the next")
    return size


def _known(name: str | None) -> str | None:
    return None if name in (None, "", UNKNOWN) else name
