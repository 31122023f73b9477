"""int8 and back: how far a number can move, and what massive rows and odd channels do to it."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from saeflow.harvest.quantise import Quantisation, calibrate

D_IN = 256


def rows_of(n: int, seed: int = 0, d_in: int = D_IN) -> Tensor:
    """Channels whose deviations go from 0.001 to 1000, each with a mean of its own."""
    generator = torch.Generator().manual_seed(seed)
    deviation = torch.logspace(-3, 3, d_in)
    mean = deviation * torch.randn(d_in, generator=generator) * 3
    return torch.randn(n, d_in, generator=generator) * deviation + mean


def there_and_back(quantisation: Quantisation, rows: Tensor) -> Tensor:
    return quantisation.dequantise(*quantisation.quantise(rows))


def test_the_numbers_of_one_row_by_hand() -> None:
    quantisation = Quantisation(torch.tensor([1.0, 0.0, 0.0]), torch.tensor([2.0, 1.0, 4.0]))
    q, scale = quantisation.quantise(torch.tensor([[128.0, -31.6, 0.4]]))
    assert scale.tolist() == [0.5]  # (128 - 1) / 2 is 63.5, and that is 127 scales
    assert q.tolist() == [[127, -63, 0]]
    assert quantisation.dequantise(q, scale).tolist() == [[128.0, -31.5, 0.0]]


@given(seed=st.integers(0, 10_000), massive=st.floats(1, 1e4), d_in=st.integers(1, 300))
def test_no_number_moves_by_more_than_half_a_scale(seed: int, massive: float, d_in: int) -> None:
    rows = rows_of(20, seed, d_in)
    rows[3] *= massive
    quantisation = calibrate(rows_of(200, seed + 1, d_in))
    q, scale = quantisation.quantise(rows)
    moved = (quantisation.dequantise(q, scale) - rows).abs() / quantisation.deviation
    rounding = 2**-22 * (rows.abs() + quantisation.mean.abs()) / quantisation.deviation
    assert (moved <= scale[:, None] * (0.5 + 1e-4) + rounding).all()
    assert (q.int().abs().amax(1) == 127).all()  # so -128 is free for absent rows


def test_the_share_of_the_variance_that_is_lost_is_a_twelfth_of_the_squared_scales() -> None:
    """Rounding moves a number by anything up to half a scale: a variance of scale**2 / 12."""
    rows = rows_of(4000)
    quantisation = calibrate(rows)
    _, scale = quantisation.quantise(rows)
    error = (there_and_back(quantisation, rows) - rows).double().square().mean(0)
    lost = error / rows.double().var(0, correction=0)
    print(f"share of the variance lost: {lost.mean():.2e}, worst channel {lost.max():.2e}")
    torch.testing.assert_close(
        lost, scale.double().square().mean().div(12).expand(D_IN), rtol=0.1, atol=0
    )
    assert lost.max() < 1e-4


def test_massive_rows_do_not_harm_ordinary_ones_and_keep_their_own_shape() -> None:
    """As in language models: a few rows, most of them one channel, a hundred times the rest."""
    rows, massive = rows_of(2000), torch.arange(0, 2000, 100)
    clean = calibrate(rows[[i for i in range(2000) if i % 100]])
    rows[massive, D_IN - 3] += 5e5
    quantisation = calibrate(rows)
    assert np.array_equal(quantisation.to_array(), clean.to_array())
    error = (there_and_back(quantisation, rows) - rows).double().square()
    ordinary = torch.ones(2000, dtype=torch.bool)
    ordinary[massive] = False
    lost = error[ordinary].sum() / (rows[ordinary] - rows[ordinary].mean(0)).square().sum()
    assert lost < 1e-4
    relative = error[massive].sum(1) / rows[massive].double().square().sum(1)
    print(f"massive rows: relative squared error {relative.max():.2e}")
    assert relative.max() < 1e-3


def test_calibration_is_the_mean_and_deviation_of_ordinary_rows() -> None:
    rows = rows_of(500)
    ordinary = rows.double().numpy()
    rows = torch.cat([rows, rows[:7] * 1000])
    found = calibrate(rows)
    np.testing.assert_allclose(found.mean, ordinary.mean(0), rtol=1e-5, atol=1e-9)
    np.testing.assert_allclose(found.deviation, ordinary.std(0), rtol=1e-6)


def test_a_constant_channel_comes_back_exactly_and_costs_the_others_nothing() -> None:
    rows = rows_of(500)
    without = there_and_back(calibrate(rows[:, 1:]), rows[:, 1:])
    rows[:, 0] = 0.1
    back = there_and_back(calibrate(rows), rows)
    assert (back[:, 0] == rows[:, 0]).all()
    assert torch.equal(back[:, 1:], without)


@pytest.mark.parametrize("noise", [0.0, 1e-7])
def test_a_channel_that_was_constant_and_then_is_not_ruins_no_row(noise: float) -> None:
    """A neuron that slept during calibration: other channels keep what they had."""
    seen = rows_of(500, d_in=64) / 1000
    seen[:, 5] = 0.5 + noise * torch.randn(500)
    row = seen[:1].clone()
    quantisation = calibrate(seen)
    before = there_and_back(quantisation, row) - row
    row[0, 5] = 0.8
    error = there_and_back(quantisation, row) - row
    assert error.norm() < 10 * before.norm()
    assert error[0, 5].abs() < 0.1


@pytest.mark.parametrize("n_rows", [1, 2, 50])
@pytest.mark.parametrize("value", [0.0, 0.1, -1e6, 1e-30])
def test_equal_rows_come_back(n_rows: int, value: float) -> None:
    rows = torch.full((n_rows, 5), value)
    quantisation = calibrate(rows)
    torch.testing.assert_close(there_and_back(quantisation, rows), rows, rtol=1e-6, atol=0)
    others = torch.randn(3, 5)
    error = there_and_back(quantisation, others) - others
    assert error.abs().max() <= (others - value).abs().max() / 127


def test_one_row_calibrates_others() -> None:
    rows = torch.randn(40, 8)
    error = there_and_back(calibrate(rows[:1]), rows) - rows
    assert error.abs().max() <= (rows - rows[0]).abs().max() / 254 * 1.001


def test_rows_of_lower_precision_are_widened_first() -> None:
    rows = rows_of(50).bfloat16()
    quantisation = calibrate(rows)
    assert torch.equal(
        there_and_back(quantisation, rows), there_and_back(quantisation, rows.float())
    )


def test_the_array_brings_the_quantisation_back() -> None:
    quantisation = calibrate(rows_of(50))
    array = quantisation.to_array()
    assert array.dtype == np.float32
    assert array.shape == (2, D_IN)
    back = Quantisation.from_array(array)
    assert torch.equal(back.mean, quantisation.mean)
    assert torch.equal(back.deviation, quantisation.deviation)
