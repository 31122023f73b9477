"""TopK: the objective is the textbook's, and what is active is what was asked for."""

from collections.abc import Callable

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from saeflow.train.architecture import Batch
from saeflow.train.parameters import Parameters
from saeflow.train.topk import TopK, from_cfg

Make = Callable[..., Parameters]


def batch_of(n: int, d_in: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(n, d_in, generator=generator, dtype=torch.float64)


def dense_latents(architecture: TopK, p: Parameters, x: Tensor) -> Tensor:
    return architecture.activate((x - p.b_dec) @ p.W_enc + p.b_enc)


def test_activate_by_hand() -> None:
    pre = torch.tensor([[3.0, -1.0, 2.0, 5.0], [-4.0, -3.0, -2.0, 1.0]])
    assert TopK(2).activate(pre).tolist() == [[3.0, 0.0, 0.0, 5.0], [0.0, 0.0, 0.0, 1.0]]


@given(st.integers(1, 12), st.integers(0, 2**20))
def test_as_many_latents_are_active_as_k_or_as_are_positive(k: int, seed: int) -> None:
    pre = batch_of(20, 12, seed) - 0.5
    latents = TopK(k).activate(pre)
    assert torch.equal((latents > 0).sum(1), (pre > 0).sum(1).clamp(max=k))
    assert torch.equal(latents[latents > 0], pre[latents > 0])
    weakest_kept = torch.where(latents > 0, latents, torch.inf).amin(1)
    strongest_left = torch.where(latents > 0, -torch.inf, pre).amax(1)
    assert torch.all((weakest_kept >= strongest_left) | (weakest_kept == torch.inf))


def test_activate_takes_any_leading_axes() -> None:
    pre = batch_of(24, 7).view(2, 3, 4, 7)
    assert torch.equal(TopK(2).activate(pre).view(24, 7), TopK(2).activate(pre.view(24, 7)))


@pytest.mark.parametrize("k", [1, 3, 11])
def test_the_objective_is_the_dense_formula(random_parameters: Make, k: int) -> None:
    p, x, weights = random_parameters(6, 11), batch_of(9, 6), torch.linspace(0.1, 1, 9).double()
    found = TopK(k).objective(p, Batch(x, weights))

    latents = dense_latents(TopK(k), p, x)
    reconstruction = latents @ p.W_dec + p.b_dec
    loss = (weights * (x - reconstruction).square().sum(1)).sum() / 9

    torch.testing.assert_close(found.loss, loss)
    torch.testing.assert_close(found.reconstruction, reconstruction.detach())
    assert torch.equal(found.fired, (latents > 0).sum(0).float())
    everything = list(p.parameters())
    torch.testing.assert_close(
        torch.autograd.grad(found.loss, everything), torch.autograd.grad(loss, everything)
    )


def test_the_reconstruction_carries_no_graph(random_parameters: Make) -> None:
    found = TopK(2).objective(random_parameters(4, 8), Batch(batch_of(3, 4), torch.ones(3)))
    assert found.loss.requires_grad
    assert not found.reconstruction.requires_grad
    assert not found.fired.requires_grad


def test_a_row_of_weight_zero_has_no_say(random_parameters: Make) -> None:
    p, x = random_parameters(4, 8), batch_of(2, 4)
    moved = torch.stack([x[0], x[1] * 1000])
    weights = torch.tensor([1.0, 0.0]).double()
    losses = [TopK(2).objective(p, Batch(rows, weights)).loss.item() for rows in (x, moved)]
    assert losses[0] == losses[1]


def test_cfg_round_trip() -> None:
    assert from_cfg(TopK(7).to_cfg()) == TopK(7)
    assert TopK(7).to_cfg()["architecture"] == "topk"
