"""The source model of SAEs: found by what they say of it, and held against that."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from saeflow.devices import choose_device
from saeflow.errors import BadInputError
from saeflow.evaluate.checks import Used, check_all
from saeflow.evaluate.config import EvaluateConfig
from saeflow.evaluate.opening import OpenedSAE
from saeflow.evaluate.origin import Origin, origin_of, processing_of
from saeflow.harvest.capture import probe_hook_points
from saeflow.harvest.importing.source import UNKNOWN
from saeflow.harvest.layout import HookPoint
from saeflow.harvest.models import ModelSpec, SourceModel, describe_model, load_model
from saeflow.train.sae import SAE

_SHARED = ("model", "weights_sha256", "dtype", "processing", "store_identity", "dataset")
"""What the SAEs of one evaluation have to say the same of."""


@dataclass(frozen=True)
class FoundModel:
    """A source model that is not loaded yet.

    Attributes:
        spec: which, and how it is run.
        described: what identifies it, as `describe_model` says it; this took a read of its files.
    """

    spec: ModelSpec
    described: Mapping[str, Any]


@dataclass(frozen=True)
class Source:
    """A source model, and what was found of it.

    Attributes:
        model: loaded.
        described: what identifies it, as `describe_model` says it.
        hook_points: all that the SAEs read and replace, by name.
    """

    model: SourceModel
    described: Mapping[str, Any]
    hook_points: Mapping[str, HookPoint]

    @property
    def used(self) -> Used:
        """What the SAEs are held against; the text is not known yet."""
        widths = {name: hook_point.d_in for name, hook_point in self.hook_points.items()}
        return Used(self.described, widths)


def model_spec_of(config: EvaluateConfig, saes: Sequence[OpenedSAE]) -> ModelSpec:
    """Which model, run how: as given, else as the SAEs say.

    Raises:
        BadInputError: neither says which, the SAEs don't agree, or one's metadata are not
            what they must be.
    """
    origin = _agreed([(opened, origin_of(opened.sae, opened.folder)) for opened in saes])
    name = config.model or (origin.model and _official(origin))
    if name is None:
        raise BadInputError(f"SAE {config.sae} does not say its source model: give --model")
    return ModelSpec(
        name=name,
        dtype=config.dtype or _dtype(origin, config),
        device=choose_device(config.device),
        compatibility_mode=bool(origin.processing)
        and origin.processing == processing_of(compatibility_mode=True),
        trust_remote_code=config.trust_remote_code,
    )


def find_model_of(config: EvaluateConfig, saes: Sequence[OpenedSAE]) -> FoundModel:
    """Find the model that SAEs will be spliced into, and hash its files.

    Raises:
        BadInputError: as `model_spec_of` and `hook_points_of`; or it is not to be had.
    """
    for opened in saes:
        hook_points_of(opened)
    spec = model_spec_of(config, saes)
    return FoundModel(spec, describe_model(spec))


def source_model_of(config: EvaluateConfig, saes: Sequence[OpenedSAE], model: FoundModel) -> Source:
    """Load the model that SAEs will be spliced into, and look at their hook points.

    What identifies the model is compared before it is loaded, widths afterwards.

    Raises:
        BadInputError: an SAE doesn't fit it, or was made from something else that
            `config.allow_mismatch` doesn't name.
    """
    names = dict.fromkeys(name for opened in saes for name in hook_points_of(opened))
    for opened in saes:
        check_all(config, opened, Used(model.described))
    loaded = load_model(model.spec)
    found = {hook_point.name: hook_point for hook_point in probe_hook_points(loaded, list(names))}
    source = Source(loaded, model.described, found)
    for opened in saes:
        check_all(config, opened, source.used)
    return source


def hook_points_of(opened: OpenedSAE) -> tuple[str, ...]:
    """The hook points that an SAE reads, and those that it replaces.

    Raises:
        BadInputError: it doesn't say which, or is of one attention head only.
    """
    sae = opened.sae
    metadata = sae.cfg.get("metadata", {})
    wanted = {"hook_name": sae.kind != "crosscoder", "hook_name_out": sae.kind == "transcoder"}
    for key, needed in wanted.items():
        if needed and metadata.get(key) in (None, "", UNKNOWN):
            raise BadInputError(
                f"SAE {opened.folder} does not say its hook point: add metadata.{key} to its "
                "cfg.json"
            )
    if metadata.get("hook_head_index") is not None:
        raise BadInputError(
            f"SAE {opened.folder} is of attention head {metadata['hook_head_index']} alone: "
            "saeflow can splice only all heads of a hook point together"
        )
    return _named(sae)


def _named(sae: SAE) -> tuple[str, ...]:
    return tuple(dict.fromkeys((*sae.hook_points, *sae.target_hook_points)))


def _agreed(origins: Sequence[tuple[OpenedSAE, Origin]]) -> Origin:
    """What all SAEs say of their model and their text."""
    first, said = origins[0]
    for opened, origin in origins[1:]:
        for name in _SHARED:
            if getattr(origin, name) != getattr(said, name):
                raise BadInputError(
                    f"SAEs {first.name} and {opened.name} were not made from the same ({name}: "
                    f"{getattr(said, name)} and {getattr(origin, name)}): evaluate them one by one"
                )
    return said


def _official(origin: Origin) -> str:
    """The name that the hub has; TransformerLens has had shorter ones, which SAELens writes."""
    assert origin.model is not None
    if origin.store_identity is not None:
        return origin.model
    from transformer_lens.tools.model_registry.registry_io import resolve_model_alias

    return resolve_model_alias(origin.model) or origin.model


def _dtype(origin: Origin, config: EvaluateConfig) -> str:
    dtype = origin.dtype or "float32"
    if dtype not in ("float32", "bfloat16", "float16"):
        raise BadInputError(
            f"SAE {config.sae} is of a forward pass in {dtype}: choose another with --dtype"
        )
    return dtype
