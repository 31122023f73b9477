"""ReLU with an L1 penalty: the objective is the textbook's, the penalty warms up."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from saeflow.train.architecture import Batch
from saeflow.train.parameters import Parameters
from saeflow.train.relu import ReLU, default_l1, from_cfg

Make = Callable[..., Parameters]


def batch_of(n: int, d_in: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(n, d_in, generator=generator, dtype=torch.float64)


def test_activate_by_hand() -> None:
    assert ReLU(1.0).activate(torch.tensor([3.0, -1.0, 0.0])).tolist() == [3.0, 0.0, 0.0]


@pytest.mark.parametrize(("l1", "progress"), [(0.0, 1.0), (2.5, 1.0), (2.5, 0.3)])
def test_the_objective_is_the_dense_formula(
    random_parameters: Make, l1: float, progress: float
) -> None:
    p, x, weights = random_parameters(6, 11), batch_of(9, 6), torch.linspace(0.1, 1, 9).double()
    found = ReLU(l1).objective(p, Batch(x, weights, progress))

    latents = ReLU(l1).activate((x - p.b_dec) @ p.W_enc + p.b_enc)
    reconstruction = latents @ p.W_dec + p.b_dec
    per_row = (x - reconstruction).square().sum(1) + l1 * progress * latents.abs().sum(1)
    loss = (weights * per_row).sum() / 9

    torch.testing.assert_close(found.loss, loss)
    torch.testing.assert_close(found.reconstruction, reconstruction.detach())
    assert torch.equal(found.fired, (latents > 0).sum(0).float())
    everything = list(p.parameters())
    torch.testing.assert_close(
        torch.autograd.grad(found.loss, everything), torch.autograd.grad(loss, everything)
    )


def test_the_penalty_rises_in_proportion_to_progress(random_parameters: Make) -> None:
    p, x = random_parameters(5, 9), batch_of(7, 5)
    at = [ReLU(3.0).objective(p, Batch(x, torch.ones(7), t)).loss.item() for t in (0.0, 0.5, 1.0)]
    assert at[2] > at[0]
    assert at[1] == pytest.approx((at[0] + at[2]) / 2)


def test_the_folder_says_standard_and_holds_no_penalty() -> None:
    cfg = ReLU(3.0).to_cfg()
    assert cfg == {"architecture": "standard"}
    pre = torch.tensor([1.0, -1.0])
    assert torch.equal(from_cfg(cfg).activate(pre), ReLU(3.0).activate(pre))


@pytest.mark.parametrize("d_in", [64, 1024])
def test_the_default_penalty_balances_the_error_alike_at_every_width(d_in: int) -> None:
    """Of a normalised row that 30 latents share, the penalty is the same part."""
    latents = torch.full((30,), (d_in / 30) ** 0.5)
    assert latents.square().sum().item() == pytest.approx(d_in)
    assert default_l1(d_in) * latents.sum().item() / d_in == pytest.approx(0.1 * 30**0.5)
