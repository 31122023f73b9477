"""saev's objective: the seeds' numbers, norms that are norms, and a warm-up that works."""

import dataclasses
from typing import Any

import pytest
import torch
from torch import Tensor

from saeflow import Vanilla, VanillaObjective

CASES = ["rand", "rand_coeff", "f64", "single_item", "all_zero_f"]
TERMS = ("mse", "sparsity", "l0", "l1", "loss")


def run(case: dict[str, Tensor], **options: Any) -> Any:
    objective = VanillaObjective(Vanilla(sparsity_coeff=float(case["sparsity_coeff"])))
    return objective(case["x"], case["f_x"], case["x_hat"], **options)


@pytest.mark.parametrize("case_name", CASES)
def test_every_term_is_the_seeds(oracle: Any, case_name: str) -> None:
    case = oracle("vanilla", case_name)
    found = run(case).metrics()
    assert found.keys() == set(TERMS)
    for term in TERMS:
        assert found[term] == pytest.approx(case[term].item(), rel=1e-6)


def test_a_batch_of_zeros_has_its_plain_error_where_the_seed_has_nan(oracle: Any) -> None:
    case = oracle("vanilla", "all_zero_x")
    assert case["mse"].isnan()
    assert run(case).mse.item() == pytest.approx(case["x_hat"].square().mean().item())


def test_negative_latents_are_penalised_where_the_seed_rewards_them(oracle: Any) -> None:
    case = oracle("vanilla", "negative_f")
    found, f_x = run(case), case["f_x"]
    assert found.l1.item() == pytest.approx(f_x.abs().sum(1).mean().item())
    assert found.l0.item() == pytest.approx((f_x != 0).sum(1).double().mean().item())
    assert found.l1 > case["l1"]
    assert found.mse.item() == pytest.approx(case["mse"].item(), rel=1e-6)
    only_negative = VanillaObjective(Vanilla(1.0))(case["x"], -f_x.abs(), case["x_hat"])
    assert only_negative.sparsity > 0


def test_the_penalty_rises_with_the_warm_up(oracle: Any) -> None:
    case = oracle("vanilla", "rand_coeff")
    full = run(case)
    for progress in (0.0, 0.25, 1.0):
        part = run(case, progress=progress)
        assert part.sparsity.item() == pytest.approx(progress * full.sparsity.item())
        assert part.loss.item() == pytest.approx((full.mse + progress * full.sparsity).item())


def test_the_loss_has_a_graph_its_metrics_are_numbers_and_it_cannot_be_changed() -> None:
    f_x = torch.rand(3, 4, requires_grad=True)
    loss = VanillaObjective()(torch.ones(3, 2), f_x, f_x[:, :2] * 2)
    loss.loss.backward()
    assert f_x.grad is not None
    assert {type(value) for value in loss.metrics().values()} == {float}
    with pytest.raises(dataclasses.FrozenInstanceError):
        loss.mse = torch.zeros(())


def test_the_seeds_coefficient_is_the_default() -> None:
    assert VanillaObjective().cfg == Vanilla(sparsity_coeff=4e-4)
