"""The schedule's shape, and decoder rows that never leave the unit sphere."""

from collections.abc import Callable

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from saeflow.train.optimizer import Schedule, default_rate, make_optimizer, step_on_sphere
from saeflow.train.parameters import Parameters


def test_the_rate_rises_stays_and_falls() -> None:
    schedule = Schedule(peak=2.0, n_steps=10, warm_up=4, decay=2)
    rates = [schedule.rate(step) for step in range(11)]
    assert rates == [0.5, 1.0, 1.5, 2.0, 2.0, 2.0, 2.0, 2.0, 2.0, 1.0, 0.0]


@given(
    n_steps=st.integers(1, 200),
    warm_up=st.floats(0, 1),
    decay=st.floats(0, 1),
)
def test_the_rate_never_jumps_down_or_over_the_peak(
    n_steps: int, warm_up: float, decay: float
) -> None:
    warm_up_steps = round(warm_up * n_steps)
    decay_steps = min(round(decay * n_steps), n_steps - warm_up_steps)
    schedule = Schedule(1.0, n_steps, warm_up_steps, decay_steps)
    rates = [schedule.rate(step) for step in range(n_steps)]
    assert all(0 < rate <= 1 for rate in rates)
    peak = rates.index(max(rates))
    assert rates == sorted(rates[:peak]) + sorted(rates[peak:], reverse=True)
    if decay_steps:
        assert rates[-1] == pytest.approx(1 / decay_steps)


def test_without_warm_up_and_decay_the_rate_is_constant() -> None:
    schedule = Schedule(peak=0.3, n_steps=5, warm_up=0, decay=0)
    assert {schedule.rate(step) for step in range(5)} == {0.3}
    assert schedule.progress(0) == 1.0


def test_progress_reaches_one_and_stays() -> None:
    schedule = Schedule(peak=1.0, n_steps=100, warm_up=4, decay=0)
    assert [schedule.progress(s) for s in (0, 1, 2, 3, 4, 99)] == [0.25, 0.5, 0.75, 1, 1, 1]


def test_wider_saes_learn_slower() -> None:
    assert default_rate(1024) > default_rate(4096) > default_rate(65536) > 0


def test_decoder_rows_keep_unit_norm(random_parameters: Callable[..., Parameters]) -> None:
    p = random_parameters(6, 20).float()
    optimizer = make_optimizer(p, 1e-1)
    before = p.W_dec.detach().clone()
    for step in range(20):
        torch.manual_seed(step)
        (p.W_dec * torch.randn(20, 6)).sum().backward()
        step_on_sphere(optimizer, p, 1e-1)
        torch.testing.assert_close(p.W_dec.norm(dim=1), torch.ones(20))
    assert not torch.allclose(before, p.W_dec, atol=0.1)


def test_the_gradient_along_a_row_is_taken_out(
    random_parameters: Callable[..., Parameters],
) -> None:
    """Adam's moments hold only directions in which a row can move."""
    p = random_parameters(6, 20).float()
    optimizer, rows = make_optimizer(p, 1e-3), p.W_dec.detach().clone()
    (p.W_dec * torch.randn(20, 6)).sum().backward()
    step_on_sphere(optimizer, p, 1e-3)
    moment = optimizer.state[p.W_dec]["exp_avg"]
    assert moment.norm(dim=1).min() > 1e-3
    torch.testing.assert_close((moment * rows).sum(1), torch.zeros(20))


def test_a_gradient_only_along_the_rows_moves_nothing() -> None:
    """Adam would make a full step of rounding noise: parallel gradients are exact here."""
    p = Parameters(torch.zeros(4, 4), torch.zeros(4), torch.eye(4), torch.zeros(4))
    p.W_dec.square().sum().backward()
    step_on_sphere(make_optimizer(p, 0.1), p, 0.1)
    assert torch.equal(p.W_dec, torch.eye(4))


def test_the_rate_of_the_step_is_used(random_parameters: Callable[..., Parameters]) -> None:
    p = random_parameters(3, 4).float()
    optimizer, before = make_optimizer(p, 1.0), p.b_dec.detach().clone()
    (p.b_dec.sum() + p.W_dec.sum()).backward()
    step_on_sphere(optimizer, p, 0.25)
    torch.testing.assert_close(before - p.b_dec.detach(), torch.full((3,), 0.25))
    assert p.b_dec.grad is None
