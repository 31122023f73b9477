"""saeflow: a language model's activations into sparse autoencoders that can be trusted.

Public names are loaded when they are first used, so that importing saeflow is instant.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from saeflow.errors import BadInputError as BadInputError
    from saeflow.errors import SaeflowError as SaeflowError
    from saeflow.evaluate.config import EvaluateConfig as EvaluateConfig
    from saeflow.evaluate.run import evaluate_sae as evaluate_sae
    from saeflow.harvest.config import HarvestConfig as HarvestConfig
    from saeflow.harvest.run import harvest_activations as harvest_activations
    from saeflow.harvest.store import Store as Store
    from saeflow.harvest.store import open_store as open_store
    from saeflow.train.config import TrainConfig as TrainConfig
    from saeflow.train.folder import load_sae as load_sae
    from saeflow.train.run import train_sae as train_sae
    from saeflow.train.sae import SAE as SAE

_HOMES = {
    "BadInputError": "saeflow.errors",
    "EvaluateConfig": "saeflow.evaluate.config",
    "HarvestConfig": "saeflow.harvest.config",
    "SAE": "saeflow.train.sae",
    "SaeflowError": "saeflow.errors",
    "Store": "saeflow.harvest.store",
    "TrainConfig": "saeflow.train.config",
    "evaluate_sae": "saeflow.evaluate.run",
    "harvest_activations": "saeflow.harvest.run",
    "load_sae": "saeflow.train.folder",
    "open_store": "saeflow.harvest.store",
    "train_sae": "saeflow.train.run",
}

__all__ = sorted(_HOMES)


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'saeflow' has no attribute '{name}'")
    return getattr(import_module(_HOMES[name]), name)
