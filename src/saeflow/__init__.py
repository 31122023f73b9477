"""saeflow: a language model's activations into sparse autoencoders that can be trusted.

Public names are loaded when they are first used, so that importing saeflow is instant.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from saeflow.errors import BadInputError as BadInputError
    from saeflow.errors import SaeflowError as SaeflowError
    from saeflow.evaluate.config import EvaluateConfig as EvaluateConfig
    from saeflow.evaluate.result import EvaluationResult as EvaluationResult
    from saeflow.evaluate.run import evaluate_sae as evaluate_sae
    from saeflow.evaluate.run import evaluate_saes as evaluate_saes
    from saeflow.evaluate.splice import splice as splice
    from saeflow.harvest.config import HarvestConfig as HarvestConfig
    from saeflow.harvest.importing.config import ImportConfig as ImportConfig
    from saeflow.harvest.importing.run import import_activations as import_activations
    from saeflow.harvest.run import harvest_activations as harvest_activations
    from saeflow.harvest.store import Store as Store
    from saeflow.harvest.store import open_store as open_store
    from saeflow.harvest.verify import verify_store as verify_store
    from saeflow.train.config import TrainConfig as TrainConfig
    from saeflow.train.folder import load_sae as load_sae
    from saeflow.train.info import StoreInfo as StoreInfo
    from saeflow.train.info import store_info as store_info
    from saeflow.train.run import train_sae as train_sae
    from saeflow.train.sae import SAE as SAE
    from saeflow.train.seeds.activation_resampler import ActivationResampler as ActivationResampler
    from saeflow.train.seeds.adam_with_reset import AdamWithReset as AdamWithReset
    from saeflow.train.seeds.capacity import CapacityMetric as CapacityMetric
    from saeflow.train.seeds.classwise import ClasswiseWrapperWithMean as ClasswiseWrapperWithMean
    from saeflow.train.seeds.firing import FeatureDensityMetric as FeatureDensityMetric
    from saeflow.train.seeds.firing import NeuronActivityMetric as NeuronActivityMetric
    from saeflow.train.seeds.firing import NeuronFiredCountMetric as NeuronFiredCountMetric
    from saeflow.train.seeds.l0_norm import L0NormMetric as L0NormMetric
    from saeflow.train.seeds.lit_config import (
        LitSparseAutoencoderConfig as LitSparseAutoencoderConfig,
    )
    from saeflow.train.seeds.lit_module import LitSparseAutoencoder as LitSparseAutoencoder
    from saeflow.train.seeds.losses import L1AbsoluteLoss as L1AbsoluteLoss
    from saeflow.train.seeds.losses import L2ReconstructionLoss as L2ReconstructionLoss
    from saeflow.train.seeds.losses import SparseAutoencoderLoss as SparseAutoencoderLoss
    from saeflow.train.seeds.matryoshka import Matryoshka as Matryoshka
    from saeflow.train.seeds.matryoshka import MatryoshkaObjective as MatryoshkaObjective
    from saeflow.train.seeds.score import ReconstructionScoreMetric as ReconstructionScoreMetric
    from saeflow.train.seeds.squared_error import mean_squared_err as mean_squared_err
    from saeflow.train.seeds.vanilla import Vanilla as Vanilla
    from saeflow.train.seeds.vanilla import VanillaObjective as VanillaObjective

_HOMES = {
    "ActivationResampler": "saeflow.train.seeds.activation_resampler",
    "AdamWithReset": "saeflow.train.seeds.adam_with_reset",
    "BadInputError": "saeflow.errors",
    "CapacityMetric": "saeflow.train.seeds.capacity",
    "ClasswiseWrapperWithMean": "saeflow.train.seeds.classwise",
    "EvaluateConfig": "saeflow.evaluate.config",
    "EvaluationResult": "saeflow.evaluate.result",
    "FeatureDensityMetric": "saeflow.train.seeds.firing",
    "HarvestConfig": "saeflow.harvest.config",
    "ImportConfig": "saeflow.harvest.importing.config",
    "L0NormMetric": "saeflow.train.seeds.l0_norm",
    "L1AbsoluteLoss": "saeflow.train.seeds.losses",
    "L2ReconstructionLoss": "saeflow.train.seeds.losses",
    "LitSparseAutoencoder": "saeflow.train.seeds.lit_module",
    "LitSparseAutoencoderConfig": "saeflow.train.seeds.lit_config",
    "Matryoshka": "saeflow.train.seeds.matryoshka",
    "MatryoshkaObjective": "saeflow.train.seeds.matryoshka",
    "NeuronActivityMetric": "saeflow.train.seeds.firing",
    "NeuronFiredCountMetric": "saeflow.train.seeds.firing",
    "ReconstructionScoreMetric": "saeflow.train.seeds.score",
    "SAE": "saeflow.train.sae",
    "SaeflowError": "saeflow.errors",
    "SparseAutoencoderLoss": "saeflow.train.seeds.losses",
    "Store": "saeflow.harvest.store",
    "StoreInfo": "saeflow.train.info",
    "TrainConfig": "saeflow.train.config",
    "Vanilla": "saeflow.train.seeds.vanilla",
    "VanillaObjective": "saeflow.train.seeds.vanilla",
    "evaluate_sae": "saeflow.evaluate.run",
    "evaluate_saes": "saeflow.evaluate.run",
    "harvest_activations": "saeflow.harvest.run",
    "import_activations": "saeflow.harvest.importing.run",
    "load_sae": "saeflow.train.folder",
    "mean_squared_err": "saeflow.train.seeds.squared_error",
    "open_store": "saeflow.harvest.store",
    "splice": "saeflow.evaluate.splice",
    "store_info": "saeflow.train.info",
    "train_sae": "saeflow.train.run",
    "verify_store": "saeflow.harvest.verify",
}

_NEEDS_AN_EXTRA = {"LitSparseAutoencoder"}
"""What `from saeflow import *` must leave out, since it may not be installed."""

__all__ = sorted(set(_HOMES) - _NEEDS_AN_EXTRA)


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'saeflow' has no attribute '{name}'")
    return getattr(import_module(_HOMES[name]), name)
