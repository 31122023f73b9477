"""p-anneal: the power falls, the penalty's size doesn't."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from saeflow.train.architecture import Batch
from saeflow.train.p_anneal import PAnneal, power
from saeflow.train.parameters import Parameters
from saeflow.train.relu import ReLU

Make = Callable[..., Parameters]


def batch_of(n: int, d_in: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(n, d_in, generator=generator, dtype=torch.float64)


def with_state(architecture: PAnneal, p: Parameters) -> Parameters:
    state = {name: tensor.double() for name, tensor in architecture.initial(p.d_sae).items()}
    return p.with_more(state, architecture.rules).requires_grad_(True)


def test_the_power_falls_from_one_to_its_end_in_equal_parts() -> None:
    architecture = PAnneal(1.0, p_end=0.2, first=0.25, last=0.75, parts=4)
    powers = [architecture.p(architecture.part(step, 16)) for step in range(16)]
    assert powers == pytest.approx([*[1.0] * 6, *[0.8] * 2, *[0.6] * 2, *[0.4] * 2, *[0.2] * 4])


def test_before_the_fall_it_is_relu_with_l1(random_parameters: Make) -> None:
    architecture, x = PAnneal(2.5), batch_of(9, 6)
    p = with_state(architecture, random_parameters(6, 11))
    batch = Batch(x, torch.linspace(0.1, 1, 9).double(), 0.4, step=0, n_steps=100)
    found, plain = architecture.objective(p, batch), ReLU(2.5).objective(p, batch)
    torch.testing.assert_close(found.loss, plain.loss)
    assert torch.equal(found.reconstruction, plain.reconstruction)
    assert torch.equal(found.fired, plain.fired)


@pytest.mark.usefixtures("unchecked")
def test_the_penalty_keeps_its_size_while_the_power_falls(random_parameters: Make) -> None:
    """On the same rows and weights throughout."""
    architecture, x = PAnneal(1.0, parts=5), batch_of(300, 6)
    p = with_state(architecture, random_parameters(6, 40))
    losses, factors = [], []
    for step in range(100):
        found = architecture.objective(
            p, Batch(x, torch.ones(300).double(), step=step, n_steps=100)
        )
        p.renew(found.state)
        losses.append(found.loss.item())
        factors.append(p.state["c"].item())
    assert losses == pytest.approx([losses[0]] * 100, rel=1e-9)
    assert len(set(factors)) == 6


def test_the_slope_at_zero_is_bounded() -> None:
    latents = torch.zeros(1, 1, requires_grad=True)
    power(latents, 0.2, torch.ones(1)).backward()
    assert latents.grad is not None
    assert 1 < latents.grad.item() < 100


def test_what_is_trained_is_a_relu_sae(random_parameters: Make) -> None:
    architecture = PAnneal(1.0)
    inference, parameters = architecture.trained(with_state(architecture, random_parameters(3, 4)))
    assert inference.to_cfg() == {"architecture": "standard"}
    assert not parameters.state
