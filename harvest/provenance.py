"""What a store was made from, so that a later run, an SAE and a score can be held against it."""

from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

from saeflow.config import to_plain
from saeflow.harvest.config import HarvestConfig
from saeflow.harvest.models import ModelSpec, describe_model, hash_files

_NOT_IDENTITY = (
    "model",
    "model_dtype",
    "compatibility_mode",
    "trust_remote_code",
    "out",
    "device",
    "worker",
    "staging",
)
_LIBRARIES = ("saeflow", "torch", "transformers", "transformer-lens", "zarr")


def model_spec(config: HarvestConfig, device: str) -> ModelSpec:
    """The source model that a harvest asks for."""
    return ModelSpec(
        name=config.model,
        dtype=config.model_dtype,
        device=device,
        compatibility_mode=config.compatibility_mode,
        trust_remote_code=config.trust_remote_code,
    )


def describe(config: HarvestConfig, device: str) -> dict[str, Any]:
    """Everything that decides a store's bytes, and the versions that made them.

    Raises:
        BadInputError: the model can't be found.
    """
    options = {k: v for k, v in to_plain(config).items() if k not in _NOT_IDENTITY}
    dataset = Path(config.dataset).expanduser()
    if dataset.exists():
        options["dataset"] = str(dataset.resolve())
        files = [dataset] if dataset.is_file() else [p for p in dataset.rglob("*") if p.is_file()]
        options["dataset_sha256"] = hash_files(files)
    return {
        "model": {**describe_model(model_spec(config, device)), "device": device},
        **options,
        "versions": {name: version(name) for name in _LIBRARIES},
    }


def differences(stored: Mapping[str, Any], present: Mapping[str, Any]) -> list[str]:
    """Where two provenances differ, one `key: stored -> present` each; versions don't count."""
    left, right = _flat(stored), _flat(present)
    return [
        f"{key}: {left.get(key)!r} there, {right.get(key)!r} now"
        for key in sorted({*left, *right})
        if left.get(key) != right.get(key) and not key.startswith("versions.")
    ]


def _flat(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        if isinstance(value, Mapping):
            flat.update(_flat(value, f"{prefix}{key}."))
        else:
            flat[f"{prefix}{key}"] = value
    return flat
