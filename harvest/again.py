"""The source of a store, found again: where it is now, and whether it still is the same."""

from collections.abc import Mapping
from dataclasses import dataclass, fields
from functools import cached_property
from pathlib import Path
from typing import Any

from saeflow.config import load_config
from saeflow.devices import choose_device
from saeflow.errors import BadInputError
from saeflow.harvest.config import HarvestConfig
from saeflow.harvest.models import SourceModel, load_model
from saeflow.harvest.provenance import describe, differences, model_spec


@dataclass(frozen=True, kw_only=True)
class Source:
    """Where the source is now, and what it may do.

    Attributes:
        model: the source model, if it is elsewhere than when the store was harvested.
        dataset: the dataset, likewise.
        trust_remote_code: whether code that comes with the model may run.
    """

    model: str | None = None
    dataset: str | None = None
    trust_remote_code: bool = False


@dataclass(frozen=True)
class FoundSource:
    """What a store was made from; nothing is looked for before it is needed.

    Attributes:
        path: the store's folder.
        provenance: of the store.
        source: where the source is.
    """

    path: Path
    provenance: Mapping[str, Any]
    source: Source

    @cached_property
    def config(self) -> HarvestConfig:
        """The options of the harvest, its source where it is now.

        Raises:
            BadInputError: the source is unknown, or brings code that may not run.
        """
        return _config(self.path, self.provenance, self.source)

    @cached_property
    def model(self) -> SourceModel:
        """The source model, loaded."""
        return load_model(model_spec(self.config, choose_device(self.config.device)))

    def refuse_another(self, *, text: bool) -> None:
        """Hold the source against the store's provenance.

        Args:
            text: whether the dataset is needed too.

        Raises:
            BadInputError: as `config`; or it is another one.
        """
        changed = differences(
            _identity(self.provenance, text=text), _identity(self._present, text=text)
        )
        if changed:
            raise BadInputError(
                f"store {self.path} was made from another source ({'; '.join(changed)}): "
                "name the one it was made from with --model and --dataset"
            )

    @property
    def other_versions(self) -> list[str]:
        """The libraries whose versions are not those that made the store, with both versions."""
        now = self._present["versions"]
        there = self.provenance["versions"].items()
        return [f"{name} {v} there, {now.get(name)} now" for name, v in there if now.get(name) != v]

    @cached_property
    def _present(self) -> dict[str, Any]:
        """The provenance that a harvest with these options has now."""
        return describe(self.config, choose_device(self.config.device))


def _config(path: Path, provenance: Mapping[str, Any], source: Source) -> HarvestConfig:
    """The options of a store's harvest, with the source where it is now."""
    model = provenance.get("model")
    if not isinstance(model, Mapping) or not model.get("weights_sha256"):
        raise BadInputError(
            f"store {path} was not harvested from a source model, so its rows can't be made "
            "again: put the damaged files back from a copy, or import them again"
        )
    if model["trust_remote_code"] and not source.trust_remote_code:
        raise BadInputError(
            f"model {model['name']} brings code of its own: repair with --trust-remote-code, "
            "if you trust it"
        )
    known = {option.name for option in fields(HarvestConfig)}
    options: dict[str, Any] = {
        **{key: value for key, value in provenance.items() if key in known},
        "model": source.model or model["name"],
        "dataset": source.dataset or provenance["dataset"],
        "out": path,
        "model_dtype": model["dtype"],
        "device": model["device"],
        "compatibility_mode": model["compatibility_mode"],
        "trust_remote_code": model["trust_remote_code"],
    }
    return load_config(HarvestConfig, None, options)


def _identity(provenance: Mapping[str, Any], *, text: bool) -> dict[str, Any]:
    """What decides the bytes, whatever the places where model and dataset lie are called."""
    places = {"dataset"} if text else {"dataset", "dataset_sha256"}
    about_model = {k: v for k, v in provenance["model"].items() if k not in ("name", "revision")}
    return {**{k: v for k, v in provenance.items() if k not in places}, "model": about_model}
