"""Every metric gives the seeds' own numbers, batch by batch and over all batches."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

import saeflow

CASES = {  # components of each stored case; None where its activations have no such axis
    "c2_3batches": 2,
    "c3_1batch": 3,
    "c1_axis": 1,
    "noaxis_2d": None,
    "single_item_c2": 2,
    "single_item_c1": 1,
    "single_item_2d": None,
    "all_zero_c2": 2,
    "negatives_c2": 2,
    "one_dead_comp": 2,
    "float64_c2": 2,
}
L1_COEFFICIENT = 0.013
METRICS: dict[str, Callable[[int | None], Any]] = {
    "L1": saeflow.L1AbsoluteLoss,
    "L2": saeflow.L2ReconstructionLoss,
    "SAE": lambda c: saeflow.SparseAutoencoderLoss(c, L1_COEFFICIENT),
    "L1_keep": lambda c: saeflow.L1AbsoluteLoss(c, keep_batch_dim=True),
    "L2_keep": lambda c: saeflow.L2ReconstructionLoss(c, keep_batch_dim=True),
    "SAE_keep": lambda c: saeflow.SparseAutoencoderLoss(c, L1_COEFFICIENT, keep_batch_dim=True),
    "L0": saeflow.L0NormMetric,
    "activity_t0": lambda c: saeflow.NeuronActivityMetric(7, c),
    "activity_t03": lambda c: saeflow.NeuronActivityMetric(7, c, 0.3),
    "fired": lambda c: saeflow.NeuronFiredCountMetric(7, c),
    "density": lambda c: saeflow.FeatureDensityMetric(7, c),
    "capacity": lambda _: saeflow.CapacityMetric(),
}


def batches(case: dict[str, Tensor]) -> list[dict[str, Tensor]]:
    return [
        {f"{name}_activations": case[f"{name}_{i}"] for name in ("learned", "source", "decoded")}
        for i in range(sum(name.startswith("learned_") for name in case))
    ]


@pytest.mark.parametrize("name", METRICS)
@pytest.mark.parametrize("case_name", CASES)
def test_a_metric_gives_the_seeds_numbers(oracle: Any, case_name: str, name: str) -> None:
    case = oracle("metrics", case_name)
    if f"{name}_compute_all" not in case:
        assert name == "capacity"  # the original raises without a component axis
        assert CASES[case_name] is None
        return
    metric = METRICS[name](CASES[case_name])
    for i, batch in enumerate(batches(case)):
        torch.testing.assert_close(
            metric(**batch), case[f"{name}_forward_{i}"], rtol=1e-6, atol=0, equal_nan=True
        )
    torch.testing.assert_close(
        metric.compute(), case[f"{name}_compute_all"], rtol=1e-6, atol=0, equal_nan=True
    )


@pytest.mark.parametrize("case_name", CASES)
def test_the_plain_functions_give_the_seeds_numbers(oracle: Any, case_name: str) -> None:
    case = oracle("metrics", case_name)
    learned, decoded, source = (case[f"{name}_0"] for name in ("learned", "decoded", "source"))
    torch.testing.assert_close(
        saeflow.L1AbsoluteLoss.calculate_abs_sum(learned), case["L1_static"], rtol=1e-6, atol=0
    )
    torch.testing.assert_close(
        saeflow.L2ReconstructionLoss.calculate_mse(decoded, source),
        case["L2_static"],
        rtol=1e-6,
        atol=0,
    )


@pytest.mark.parametrize("case_name", ["noaxis_2d", "single_item_2d"])
def test_one_component_takes_activations_without_the_axis(oracle: Any, case_name: str) -> None:
    """The seeds' losses have 1 as their default."""
    case = oracle("metrics", case_name)
    for name in ("L1", "L2", "SAE"):
        metric = METRICS[name](1)
        for batch in batches(case):
            metric.update(**batch)
        torch.testing.assert_close(metric.compute(), case[f"{name}_compute_all"], rtol=1e-6, atol=0)
