"""The names that people import, the examples that they read, and what importing loads."""

import doctest
import importlib
import json
import pkgutil
import subprocess
import sys

import pytest

import saeflow
from saeflow.train import seeds

MODULES = sorted(module.name for module in pkgutil.iter_modules(seeds.__path__))
NAMES = [
    "ActivationResampler",
    "AdamWithReset",
    "CapacityMetric",
    "ClasswiseWrapperWithMean",
    "FeatureDensityMetric",
    "L0NormMetric",
    "L1AbsoluteLoss",
    "L2ReconstructionLoss",
    "LitSparseAutoencoderConfig",
    "Matryoshka",
    "MatryoshkaObjective",
    "NeuronActivityMetric",
    "NeuronFiredCountMetric",
    "ReconstructionScoreMetric",
    "SparseAutoencoderLoss",
    "Vanilla",
    "VanillaObjective",
    "mean_squared_err",
]


@pytest.mark.parametrize("name", NAMES)
def test_a_name_is_imported_from_saeflow(name: str) -> None:
    assert name in saeflow.__all__
    assert getattr(saeflow, name).__module__.startswith("saeflow.train.seeds.")


@pytest.mark.parametrize("name", MODULES)
def test_the_examples_in_a_module_are_true(name: str) -> None:
    if name == "lit_module":
        pytest.importorskip("lightning", reason="it is made with an optional extra")
    found = doctest.testmod(importlib.import_module(f"saeflow.train.seeds.{name}"))
    assert found.failed == 0
    assert found.attempted > 0 or name in ("axes", "gather")


@pytest.mark.parametrize("name", [name for name in NAMES if name not in ("Matryoshka", "Vanilla")])
def test_every_name_has_an_example(name: str) -> None:
    assert ">>> " in (getattr(saeflow, name).__doc__ or "")


def test_the_metrics_do_not_load_the_language_models_libraries() -> None:
    code = (
        "import json, sys, saeflow\n"
        f"for name in {NAMES!r}: getattr(saeflow, name)\n"
        "print(json.dumps(sorted({m.split('.')[0] for m in sys.modules})))"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    loaded = set(json.loads(run.stdout))
    assert {"torch", "torchmetrics"} <= loaded
    assert not {"transformers", "transformer_lens", "datasets", "lightning"} & loaded
