"""What an SAE says of where it is from: ours all of it, a foreign one what SAELens writes."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

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


def origin_of(sae: SAE) -> Origin:
    """Where an SAE is from, by its cfg.json."""
    metadata = sae.cfg.get("metadata", {})
    store = metadata.get("saeflow", {}).get("store", {})
    return _of_store(store) if store else _of_saelens(metadata)


def processing_of(*, compatibility_mode: bool) -> frozenset[str]:
    """What TransformerLens does to a model's weights: in its compatibility mode, or nothing."""
    return frozenset(_PROCESSINGS) if compatibility_mode else frozenset()


def _of_store(store: Mapping[str, Any]) -> Origin:
    provenance = store.get("provenance", {})
    model = provenance.get("model", {})
    mode = model.get("compatibility_mode")
    hooks = provenance.get("hook")
    imported = "imported_from" in provenance
    return Origin(
        model=_known(model.get("name")),
        weights_sha256=model.get("weights_sha256"),
        config_sha256=model.get("config_sha256"),
        tokenizer_sha256=model.get("tokenizer_sha256"),
        dtype=model.get("dtype"),
        processing=None if mode is None else processing_of(compatibility_mode=mode),
        hook_points=None if hooks is None else tuple(hooks),
        store_path=store["path"],
        store_identity=store["identity"],
        dataset=_known(provenance.get("dataset")),
        dataset_sha256=provenance.get("dataset_sha256"),
        split=provenance.get("split", "train"),
        text_field=provenance.get("text_field", "text"),
        context_size=provenance.get("context_size"),
        bos=None if imported else True,
        packed=provenance.get("pack"),
        held_out=provenance.get("held_out"),
        imported=imported,
    )


def _of_saelens(metadata: Mapping[str, Any]) -> Origin:
    loading = metadata.get("model_from_pretrained_kwargs") or {}
    said = {name for name in _PROCESSINGS if name in loading}
    separate = metadata.get("disable_concat_sequences")
    dtype = loading.get("dtype", loading.get("torch_dtype"))
    return Origin(
        model=_known(metadata.get("model_name")),
        dtype=None if dtype is None else str(dtype).removeprefix("torch."),
        processing=frozenset(name for name in said if loading[name]) if said else None,
        dataset=_known(metadata.get("dataset_path")),
        context_size=metadata.get("context_size"),
        bos=metadata.get("prepend_bos"),
        packed=None if separate is None else not separate,
    )


def _known(name: str | None) -> str | None:
    return None if name in (None, "", UNKNOWN) else name
