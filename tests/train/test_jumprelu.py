"""JumpReLU: exact forwards, pseudo-derivatives of the papers backwards."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from saeflow.train.architecture import Batch
from saeflow.train.jumprelu import JumpReLU, from_cfg, jump, step
from saeflow.train.parameters import Parameters

Make = Callable[..., Parameters]


def batch_of(n: int, d_in: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(n, d_in, generator=generator, dtype=torch.float64)


def with_thresholds(p: Parameters) -> Parameters:
    threshold = torch.linspace(0.0, 2.0, p.d_sae, dtype=torch.float64)
    return p.with_more({"threshold": threshold}, JumpReLU.rules).requires_grad_(True)


def test_what_is_not_above_its_threshold_is_zero() -> None:
    p = Parameters(torch.eye(3), torch.zeros(3), torch.eye(3), torch.zeros(3))
    p = p.with_more({"threshold": torch.tensor([0.0, 1.0, 1.0])}, JumpReLU.rules)
    x = torch.tensor([[0.5, 0.5, 1.0], [-2.0, 1.5, 3.0]])
    assert JumpReLU().encode(p, x).tolist() == [[0.5, 0.0, 0.0], [0.0, 1.5, 3.0]]


def test_the_gradients_of_the_jump_by_hand() -> None:
    """A threshold of 1, a bandwidth of 0.5: pre-activations from 0.75 to 1.25 teach it."""
    pre = torch.tensor([[0.7], [0.8], [1.2], [1.3]], requires_grad=True)
    threshold = torch.tensor([1.0], requires_grad=True)
    upstream = torch.tensor([[1.0], [10.0], [100.0], [1000.0]])
    (jump(pre, threshold, 0.5, to_input=False) * upstream).sum().backward()
    assert pre.grad is not None
    assert threshold.grad is not None
    assert pre.grad.flatten().tolist() == [0.0, 0.0, 100.0, 1000.0]
    assert threshold.grad.tolist() == [-(10.0 + 100.0) * 1.0 / 0.5]


def test_gradients_of_the_jump_may_go_to_the_input_too() -> None:
    pre = torch.tensor([[0.7], [0.8], [1.2], [1.3]], requires_grad=True)
    jump(pre, torch.tensor([1.0]), 0.5, to_input=True).sum().backward()
    assert pre.grad is not None
    assert pre.grad.flatten().tolist() == [0.0, 2.0, 3.0, 1.0]


def test_the_gradients_of_the_count_by_hand() -> None:
    pre = torch.tensor([[0.7], [0.8], [1.2], [1.3]])
    threshold = torch.tensor([1.0], requires_grad=True)
    counted = step(pre, threshold, 0.5)
    counted.sum().backward()
    assert counted.flatten().tolist() == [0.0, 0.0, 1.0, 1.0]
    assert threshold.grad is not None
    assert threshold.grad.tolist() == [-2 / 0.5]


PENALTIES: dict[str, tuple[dict[str, Any], Callable[[Tensor], Tensor]]] = {
    "step": ({}, lambda z: (z > 0).double().sum(1).mean()),
    "tanh": ({"penalty": "tanh"}, lambda z: (4 * z).tanh().sum(1).mean()),
    "target": ({"target": 3.0}, lambda z: 6 * ((z > 0).double().sum(1).mean() / 3 - 1) ** 2),
}


@pytest.mark.parametrize("name", PENALTIES)
def test_the_loss_is_the_papers(random_parameters: Make, name: str) -> None:
    settings, penalty = PENALTIES[name]
    p, x = with_thresholds(random_parameters(6, 11)), batch_of(9, 6)
    architecture = JumpReLU(weight=0.7, **settings)
    found = architecture.objective(p, Batch(x, torch.ones(9).double(), warm_up=0.5))
    latents = architecture.encode(p, x)
    reconstruction = latents @ p.W_dec + p.b_dec
    expected = (x - reconstruction).square().sum(1).mean() + 0.7 * 0.5 * penalty(latents)
    torch.testing.assert_close(found.loss, expected)
    torch.testing.assert_close(found.reconstruction, reconstruction.detach())
    assert torch.equal(found.fired, (latents > 0).sum(0).float())


@pytest.mark.parametrize("target", [0.5, 1.0])
def test_too_many_active_latents_raise_the_thresholds(
    random_parameters: Make, target: float
) -> None:
    p, x = with_thresholds(random_parameters(6, 11)), batch_of(200, 6)
    weights = torch.ones(200).double()
    with_penalty, without = (
        torch.autograd.grad(
            JumpReLU(weight=w, target=target).objective(p, Batch(x, weights)).loss,
            [p.more("threshold")],
        )[0]
        for w in (1.0, 0.0)
    )
    assert torch.all(with_penalty <= without)
    assert torch.any(with_penalty < without)


def test_dead_latents_are_pulled_towards_their_thresholds(random_parameters: Make) -> None:
    p, x = with_thresholds(random_parameters(6, 11)), batch_of(9, 6)
    with torch.no_grad():
        p.b_enc[3] = -50.0
    for dead, sign in ((torch.tensor([3]), -1), (torch.tensor([], dtype=torch.int64), 0)):
        batch = Batch(x, torch.ones(9).double(), dead=dead)
        (grad,) = torch.autograd.grad(JumpReLU(weight=1.0).objective(p, batch).loss, [p.b_enc])
        assert grad[3].sign() == sign


def test_what_is_active_in_the_batch_is_pulled_no_more(random_parameters: Make) -> None:
    p, x = with_thresholds(random_parameters(6, 11)), batch_of(9, 6)
    with torch.no_grad():
        p.b_enc[3] = 50.0
    losses = [
        JumpReLU(weight=1.0).objective(p, Batch(x, torch.ones(9).double(), dead=dead)).loss
        for dead in (torch.tensor([3]), None)
    ]
    torch.testing.assert_close(*losses)


def test_an_inference_folder_holds_no_penalty() -> None:
    assert from_cfg(JumpReLU(weight=3.0).to_cfg()) == JumpReLU()
