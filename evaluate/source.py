"""The source model of an SAE: found by the SAE's provenance, and held against it."""

from collections.abc import Mapping
from typing import Any

from saeflow import console
from saeflow.config import require
from saeflow.devices import choose_device
from saeflow.errors import BadInputError
from saeflow.evaluate.config import EvaluateConfig
from saeflow.evaluate.splice import check_spliceable
from saeflow.harvest.capture import probe_hook_points
from saeflow.harvest.importing.source import UNKNOWN
from saeflow.harvest.models import ModelSpec, SourceModel, describe_model, load_model
from saeflow.train.sae import SAE


def model_spec(config: EvaluateConfig, sae: SAE) -> ModelSpec:
    """Which model, run how: as given, else as the SAE's store was made.

    Raises:
        BadInputError: neither says which; or it is no SAE that can be spliced.
    """
    require(
        sae.kind == "sae",
        f"{config.sae} holds a {sae.kind}: evaluate can't splice a {sae.kind} yet, only an SAE "
        "that reconstructs the rows of one hook point",
    )
    recorded = _recorded_model(sae)
    names = config.model, recorded.get("name"), sae.cfg.get("metadata", {}).get("model_name")
    name = next((name for name in names if name and name != UNKNOWN), None)
    if name is None:
        raise BadInputError(f"SAE {config.sae} does not say its source model: give --model")
    return ModelSpec(
        name=name,
        dtype=recorded.get("dtype") or "float32",
        device=choose_device(config.device),
        compatibility_mode=bool(recorded.get("compatibility_mode")),
        trust_remote_code=config.trust_remote_code,
    )


def source_model(config: EvaluateConfig, sae: SAE) -> SourceModel:
    """Load the model that an SAE will be spliced into.

    Raises:
        BadInputError: it is not to be had, or the SAE doesn't fit it.
    """
    spec = model_spec(config, sae)
    if sae.cfg.get("metadata", {}).get("hook_name") in (None, "", UNKNOWN):
        raise BadInputError(f"SAE {config.sae} does not say its hook point: add metadata.hook_name")
    check_spliceable(sae.hook_point)
    _check_weights(config, spec, sae)
    model = load_model(spec)
    (hook_point,) = probe_hook_points(model, [sae.hook_point])
    if hook_point.d_in != sae.d_in:
        raise BadInputError(
            f"SAE {config.sae} has d_in {sae.d_in}, but {sae.hook_point} of {spec.name} has "
            f"{hook_point.d_in}: evaluate it on the model that it was trained on"
        )
    return model


def _check_weights(config: EvaluateConfig, spec: ModelSpec, sae: SAE) -> None:
    recorded = _recorded_model(sae)
    weights = recorded.get("weights_sha256")  # null where nobody knows
    if weights and describe_model(spec)["weights_sha256"] != weights:
        told = f"model {spec.name} does not have the weights that SAE {config.sae} was trained on"
        if config.model is None:
            raise BadInputError(f"{told}: find the right one, or name this one with --model")
        console.warn(told)


def _recorded_model(sae: SAE) -> Mapping[str, Any]:
    """What the SAE's provenance says of its model; nothing, if it is a foreign one."""
    provenance = sae.cfg.get("metadata", {}).get("saeflow", {})
    model: Mapping[str, Any] = provenance.get("store", {}).get("provenance", {}).get("model", {})
    return model
