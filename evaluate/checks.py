"""An SAE's provenance against what is used, before there is any number.

What the SAE doesn't say is not compared: a foreign one says little.
"""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from saeflow.errors import BadInputError
from saeflow.evaluate.config import EvaluateConfig
from saeflow.evaluate.mismatch import Mismatch, settle
from saeflow.evaluate.opening import OpenedSAE
from saeflow.evaluate.origin import Origin, origin_of, processing_of
from saeflow.evaluate.text import HeldOutText
from saeflow.evaluate.text_source import dataset_name

_OTHER_MODEL = "name the model that it was trained on with --model"
_SHOWN = 12
"""Digits of a hash that a message shows."""


@dataclass(frozen=True)
class Used:
    """What an SAE is evaluated with, as far as it is known.

    Attributes:
        model: as `describe_model` says it.
        widths: of the hook points that are read and replaced; empty before the model
            is loaded.
        text: what the model reads; None before it is chosen.
    """

    model: Mapping[str, Any]
    widths: Mapping[str, int] = field(default_factory=dict)
    text: HeldOutText | None = None


def check_all(config: EvaluateConfig, opened: OpenedSAE, used: Used) -> tuple[Mismatch, ...]:
    """Compare whatever is known on both sides.

    An explicit `--dtype`, or a `--dataset` that is not the SAE's own, is a wish: it is
    among the mismatches, and not refused.

    Args:
        config: whose `allow_mismatch` says what may differ.
        opened: the SAE.
        used: with what.

    Returns:
        The mismatches that are allowed, for the result.

    Raises:
        BadInputError: there is one that isn't; or a width differs, so that nothing
            could be computed.
    """
    origin = origin_of(opened.sae)
    _check_widths(opened, used)
    found = (
        *_model(origin, used),
        *_hook_points(opened, origin),
        *_run(origin, used),
        *(() if used.text is None else _text(origin, used.text)),
    )
    allow = {*config.allow_mismatch, *_wished(config, origin, used.text)}
    for mismatch in found:
        settle(opened.name, mismatch, allow)
    return found


def check_recorded(
    config: EvaluateConfig, opened: OpenedSAE, mismatches: Iterable[Mapping[str, str]]
) -> None:
    """See that the mismatches of an earlier result, made from the same, would be allowed now.

    Raises:
        BadInputError: there is one that isn't.
    """
    allow = {*config.allow_mismatch, *_wished(config, origin_of(opened.sae), None)}
    for said in mismatches:
        settle(opened.name, Mismatch(**said, remedy="give what it was made from"), allow)


def _wished(config: EvaluateConfig, origin: Origin, text: HeldOutText | None) -> Iterator[str]:
    if config.dtype is not None:
        yield "dtype"
    if config.dataset is not None:
        other_name = dataset_name(config.dataset) != origin.dataset
        other_place = config.split is not None or config.text_field is not None
        same_content = text is None or not _content_differs(origin, text)
        if other_name or (other_place and same_content):
            yield "dataset"


def _check_widths(opened: OpenedSAE, used: Used) -> None:
    sae = opened.sae
    expected = dict(zip(sae.hook_points, sae.d_ins, strict=True))
    for name, width in expected.items():
        _check_width(opened, used, "d_in", name, width)
    if sae.kind == "transcoder":
        _check_width(opened, used, "d_out", sae.target_hook_points[0], sae.d_out)


def _check_width(opened: OpenedSAE, used: Used, what: str, hook_point: str, width: int) -> None:
    here = used.widths.get(hook_point, width)
    if here != width:
        raise BadInputError(
            f"width differs: SAE {opened.name} has {what} {width}, but {hook_point} of "
            f"{used.model['name']} has {here}: evaluate it on the model that it was trained on"
        )


def _model(origin: Origin, used: Used) -> Iterator[Mismatch]:
    for name, key, told in (
        ("model", "weights_sha256", "weights"),
        ("model-config", "config_sha256", "config.json"),
        ("tokenizer", "tokenizer_sha256", "tokenizer files"),
    ):
        recorded, here = getattr(origin, key), used.model[key]
        if recorded is not None and recorded != here:
            yield Mismatch(
                name,
                f"{told} {recorded[:_SHOWN]} of {origin.model}",
                f"{told} {here[:_SHOWN]} of {used.model['name']}",
                _OTHER_MODEL,
            )
    if origin.weights_sha256 is None and origin.model is not None:
        here = str(used.model["name"])
        if _last_part(origin.model) != _last_part(here):
            yield Mismatch("model", f"model {origin.model}", f"model {here}", _OTHER_MODEL)


def _last_part(name: str) -> str:
    """What is left of a model's name where one of two is a folder, or without its owner."""
    from transformer_lens.tools.model_registry.registry_io import resolve_model_alias

    return Path(resolve_model_alias(name) or name).name.lower()


def _hook_points(opened: OpenedSAE, origin: Origin) -> Iterator[Mismatch]:
    if origin.hook_points is None:
        return
    for name in dict.fromkeys((*opened.sae.hook_points, *opened.sae.target_hook_points)):
        if name not in origin.hook_points:
            yield Mismatch(
                "hook-point",
                f"rows of {', '.join(origin.hook_points)}",
                f"{name}, by its cfg.json",
                "put the hook point that it was trained on into its cfg.json",
            )


def _run(origin: Origin, used: Used) -> Iterator[Mismatch]:
    here = used.model["dtype"]
    if origin.dtype is not None and origin.dtype != here:
        yield Mismatch(
            "dtype",
            f"a forward pass in {origin.dtype}",
            f"one in {here}",
            f"run it with --dtype {origin.dtype}",
        )
    processing = processing_of(compatibility_mode=used.model["compatibility_mode"])
    if origin.processing is not None and origin.processing != processing:
        yield Mismatch(
            "normalisation",
            f"a model with {_told(origin.processing)}",
            f"one with {_told(processing)}",
            "saeflow can load a model only as it is, or with TransformerLens's compatibility mode",
        )


def _told(processing: frozenset[str]) -> str:
    return ", ".join(sorted(processing)) or "weights as they are"


def _text(origin: Origin, text: HeldOutText) -> Iterator[Mismatch]:
    yield from _dataset(origin, text)
    context = text.packing.context_size
    if origin.context_size is not None and origin.context_size != context:
        yield Mismatch(
            "context-size",
            f"sequences of {origin.context_size} tokens",
            f"sequences of {context}",
            "evaluate it on a model that takes so many, on a --dataset",
        )
    if origin.packed is not None and origin.packed != text.packing.packed:
        yield Mismatch(
            "packing",
            _packing(origin.packed),
            _packing(text.packing.packed),
            "give the store that it was made from, or --dataset",
        )
    if origin.bos is False:
        yield Mismatch(
            "packing",
            "sequences without a BOS token",
            "sequences that begin with one",
            "saeflow has no others",
        )


def _packing(packed: bool) -> str:
    return f"sequences that {'go on into the next document' if packed else 'end with a document'}"


def _dataset(origin: Origin, text: HeldOutText) -> Iterator[Mismatch]:
    remedy = "give the text that it was made from with --dataset"
    if text.store_identity is not None:
        sae, here = origin.store_identity, text.store_identity
        if sae is not None and sae != here:
            yield Mismatch("dataset", f"store {sae[:_SHOWN]}", f"store {here[:_SHOWN]}", remedy)
        return
    if _content_differs(origin, text):
        yield Mismatch(
            "dataset",
            f"{origin.dataset} with content {str(origin.dataset_sha256)[:_SHOWN]}",
            f"{text.dataset} with content {str(text.dataset_sha256)[:_SHOWN]}",
            remedy,
        )
    elif origin.dataset is not None and not _same_dataset(origin, text):
        yield Mismatch("dataset", f"{origin.dataset}", f"{text.dataset}", remedy)
    elif origin.dataset is not None:
        yield from _place_in_dataset(origin, text)


def _place_in_dataset(origin: Origin, text: HeldOutText) -> Iterator[Mismatch]:
    for what, flag, sae, here in (
        ("split", "--split", origin.split, text.split),
        ("field", "--text-field", origin.text_field, text.text_field),
    ):
        if here is not None and here != sae:
            told = f"{what} '{sae}' of {origin.dataset}"
            yield Mismatch("dataset", told, f"{what} '{here}'", f"leave out {flag}")


def _same_dataset(origin: Origin, text: HeldOutText) -> bool:
    """By its name, or under another one by its content."""
    if text.dataset == origin.dataset:
        return True
    return text.dataset_sha256 is not None and text.dataset_sha256 == origin.dataset_sha256


def _content_differs(origin: Origin, text: HeldOutText) -> bool:
    known = origin.dataset_sha256 is not None and text.dataset_sha256 is not None
    return known and origin.dataset_sha256 != text.dataset_sha256
