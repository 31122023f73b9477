"""saev's Matryoshka objective against its numbers; the auxiliary loss without its bias."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from saeflow import BadInputError, Matryoshka, MatryoshkaObjective, VanillaObjective
from saeflow.train.seeds.auxiliary import AuxK, auxiliary_loss


def keep(values: Tensor, k: int) -> Tensor:
    """All but the k largest of each row to zero."""
    kept, places = values.topk(k, dim=1)
    return torch.zeros_like(values).scatter(1, places, kept)


ACTIVATIONS: dict[str, tuple[Callable[[Tensor], Tensor], float]] = {  # and the L1 coefficient
    "relu": (torch.relu, 4e-4),
    "relu_l1_0.02": (torch.relu, 0.02),
    "topk4": (lambda h: keep(h, 4), 0.0),
    "topk14_negatives_kept": (lambda h: keep(h, 14), 0.0),
    "batchtopk3": (lambda h: keep(h.flatten()[None], 3 * len(h)).view_as(h), 0.0),
}
WEIGHTS = ("W_enc", "W_dec", "b_enc", "b_dec")


@pytest.mark.parametrize("n_prefixes", [1, 4])
@pytest.mark.parametrize("name", ACTIVATIONS)
def test_three_training_steps_give_the_seeds_numbers(
    oracle: Any, name: str, n_prefixes: int
) -> None:
    """All but the auxiliary loss, which has no bias here; where no latent is dead, that too."""
    activate, sparsity_coeff = ACTIVATIONS[name]
    sae, steps = oracle("matryoshka", name), oracle("matryoshka", f"{name}_P{n_prefixes}")
    W_enc, W_dec, b_enc, b_dec = weights = [sae[key].requires_grad_() for key in WEIGHTS]
    aux = None if name.startswith("relu") else AuxK()
    objective = MatryoshkaObjective(
        Matryoshka(n_prefixes, sparsity_coeff, dead_threshold_tokens=14, aux=aux)
    )
    for step in range(3):
        x = steps[f"x_{step}"]
        h_x = x @ W_enc + b_enc
        prefixes = steps[f"prefixes_{step}"]
        loss = objective(x, activate(h_x), W_dec, b_dec, h_x=h_x, prefixes=prefixes)
        found, dead = loss.metrics(), int(steps[f"n_dead_{step}"])
        exact = ["mse", "sparsity", "l0", "l1"] + ["aux", "loss"] * (dead == 0)
        for term in exact:
            assert found[term] == pytest.approx(steps[f"{term}_{step}"].item(), rel=1e-6)
        assert found["n_dead"] == dead
        since = steps[f"toks_since_active_{step}"]
        assert objective.rows_since_active.tolist() == since.tolist()
    if dead == 0:
        gradients = torch.autograd.grad(loss.loss, weights)
        for gradient, key in zip(gradients, WEIGHTS, strict=True):
            torch.testing.assert_close(gradient, steps[f"grad_{key}"], rtol=1e-5, atol=2e-6)


@pytest.mark.parametrize("k", [2, 4, 512])
def test_the_auxiliary_loss_is_the_seeds_without_the_bias(oracle: Any, k: int) -> None:
    """The seed decodes with a bias; that is the same as to take it from the error."""
    case = oracle("matryoshka", f"auxk{k}")
    error, cfg = case["x"] - case["x_hat"], AuxK(k, float(case["alpha"]))
    dead = case["h_x"], case["dead"], case["W_dec"]
    found = auxiliary_loss(error - case["b_dec"], *dead, cfg)
    assert found.item() == pytest.approx(case["loss"].item(), rel=1e-6)
    assert auxiliary_loss(error, *dead, cfg).item() != pytest.approx(case["loss"].item(), rel=1e-3)


def test_the_auxiliary_loss_vanishes_where_dead_latents_decode_the_error() -> None:
    error, h_x = torch.tensor([[0.0, 3.0]]), torch.tensor([[9.0, 3.0]], requires_grad=True)
    W_dec = torch.eye(2)
    loss = auxiliary_loss(error, h_x, torch.tensor([False, True]), W_dec, AuxK())
    assert loss.item() == 0.0
    auxiliary_loss(2 * error, h_x, torch.tensor([False, True]), W_dec, AuxK()).backward()
    assert h_x.grad is not None
    assert h_x.grad[0, 0] == 0  # a living latent is left alone
    assert h_x.grad[0, 1] < 0


def batch(seed: int = 0) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    x, f_x = torch.randn(5, 4, generator=generator), torch.rand(5, 8, generator=generator)
    return x, f_x, torch.randn(8, 4, generator=generator), torch.randn(4, generator=generator)


def test_in_evaluation_it_is_the_vanilla_objective_and_counts_nothing() -> None:
    x, f_x, W_dec, b_dec = batch()
    objective = MatryoshkaObjective(Matryoshka(n_prefixes=3, aux=AuxK())).eval()
    found = [objective(x, f_x, W_dec, b_dec).metrics() for _ in range(3)]
    plain = VanillaObjective()(x, f_x, f_x @ W_dec + b_dec).metrics()
    assert found[0] == found[1] == found[2]
    for term, value in plain.items():
        assert found[0][term] == pytest.approx(value, rel=1e-6)
    assert found[0]["mse_whole"] == pytest.approx(plain["mse"], rel=1e-6)
    assert objective.rows_since_active.tolist() == [0] * 8


def test_in_training_prefixes_are_drawn_from_the_generator() -> None:
    def losses(seed: int) -> list[float]:
        generator = torch.Generator().manual_seed(seed)
        objective = MatryoshkaObjective(Matryoshka(n_prefixes=3), generator)
        return [objective(*batch()).mse.item() for _ in range(4)]

    assert losses(0) == losses(0)
    assert len(set(losses(0))) > 1
    assert losses(0) != losses(1)


def test_the_whole_dictionarys_error_is_told_apart_from_the_mean_over_prefixes() -> None:
    x, f_x, W_dec, b_dec = batch()
    x = f_x @ W_dec + b_dec  # only the whole dictionary is right
    loss = MatryoshkaObjective()(x, f_x, W_dec, b_dec, prefixes=torch.tensor([2, 5, 8]))
    assert loss.mse > 0.1
    assert loss.mse_whole.item() == pytest.approx(0, abs=1e-10)


def test_the_penalty_rises_with_the_warm_up() -> None:
    objective = MatryoshkaObjective(Matryoshka(n_prefixes=1, sparsity_coeff=0.5))
    full, half = (objective(*batch(), progress=progress) for progress in (1.0, 0.5))
    assert half.sparsity.item() == pytest.approx(full.sparsity.item() / 2)
    assert half.loss.item() == pytest.approx((half.mse + half.sparsity).item())


def test_the_counts_of_dead_latents_are_saved_and_go_on() -> None:
    x, f_x, W_dec, b_dec = batch()
    f_x[:, 3] = 0
    cfg = Matryoshka(n_prefixes=1, dead_threshold_tokens=10)
    first, second = MatryoshkaObjective(cfg), MatryoshkaObjective(cfg)
    assert first(x, f_x, W_dec, b_dec).metrics()["n_dead"] == 0
    second.load_state_dict(first.state_dict())
    for objective in (first, second):
        loss = objective(x, f_x, W_dec, b_dec)
        assert objective.rows_since_active.tolist() == [0, 0, 0, 10, 0, 0, 0, 0]
        assert loss.metrics()["n_dead"] == 1


def test_metrics_are_plain_numbers() -> None:
    values = MatryoshkaObjective(Matryoshka(n_prefixes=2))(*batch()).metrics()
    assert {type(value) for value in values.values()} == {float, int}


def test_bad_input_is_refused() -> None:
    with pytest.raises(BadInputError, match="n_prefixes is 0: give at least 1"):
        Matryoshka(n_prefixes=0)
    with pytest.raises(BadInputError, match="n_prefixes is 10 with 8 latents: give from 1 to 8"):
        MatryoshkaObjective()(*batch())
    with pytest.raises(BadInputError, match="h_x is missing: the auxiliary loss needs"):
        MatryoshkaObjective(Matryoshka(n_prefixes=2, aux=AuxK()))(*batch())
