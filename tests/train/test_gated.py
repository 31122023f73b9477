"""Gated: a gate that says whether, a magnitude that says how much."""

from collections.abc import Callable

import torch
from torch import Tensor

from saeflow.train.architecture import Batch
from saeflow.train.gated import Gated
from saeflow.train.parameters import Parameters

Make = Callable[..., Parameters]


def draw(seed: int, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def gated(p: Parameters) -> Parameters:
    extra = {"b_mag": draw(1, p.d_sae), "r_mag": 0.5 * draw(2, p.d_sae)}
    return p.with_more(extra, Gated.rules).requires_grad_(True)


def test_encode_by_hand() -> None:
    """Open and positive; open, but of negative magnitude; shut, though of positive magnitude."""
    p = Parameters(torch.eye(3), torch.tensor([0.0, 0.0, -9.0]), torch.eye(3), torch.zeros(3))
    extra = {"b_mag": torch.tensor([1.0, -9.0, 0.0]), "r_mag": torch.tensor([2.0, 0.0, 0.0]).log()}
    extra["r_mag"][1:] = 0.0
    p = p.with_more(extra, Gated.rules)
    found = Gated(1.0).encode(p, torch.tensor([[3.0, 3.0, 3.0]]))
    torch.testing.assert_close(found, torch.tensor([[7.0, 0.0, 0.0]]))


def test_the_objective_is_the_papers(random_parameters: Make) -> None:
    p, x, weights = gated(random_parameters(6, 11)), draw(3, 9, 6), torch.linspace(0.1, 1, 9)
    weights = weights.double()
    found = Gated(2.5).objective(p, Batch(x, weights, warm_up=0.4))

    h = (x - p.b_dec) @ p.W_enc
    gate, magnitude = h + p.b_enc, h * p.more("r_mag").exp() + p.more("b_mag")
    latents = magnitude.relu() * (gate > 0)
    reconstruction = latents @ p.W_dec + p.b_dec
    by_gate = gate.relu() @ p.W_dec.detach() + p.b_dec.detach()
    errors = sum((x - back).square().sum(1) for back in (reconstruction, by_gate))
    loss = (weights * (errors + 2.5 * 0.4 * gate.relu().sum(1))).sum() / 9

    torch.testing.assert_close(found.loss, loss)
    torch.testing.assert_close(found.reconstruction, reconstruction.detach())
    assert torch.equal(found.fired, (latents > 0).sum(0).float())
    everything = list(p.parameters())
    torch.testing.assert_close(
        torch.autograd.grad(found.loss, everything), torch.autograd.grad(loss, everything)
    )


def test_magnitudes_scale_with_the_rows_and_their_factor_does_not(random_parameters: Make) -> None:
    p, x = gated(random_parameters(6, 11)), draw(3, 9, 6)
    raw = p.copy_for_rows_divided_by(0.05)
    assert torch.equal(raw.more("r_mag"), p.more("r_mag").detach())
    architecture = Gated(1.0)
    torch.testing.assert_close(
        architecture.encode(raw, x / 0.05), architecture.encode(p, x).detach() / 0.05
    )
