"""The squared error, from the smallest activations to the largest."""

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from saeflow import mean_squared_err

ORDINARY = ["rand_f32", "rand_f64", "prefix_3d", "single_item", "one_vector_1d", "x_1e18"]


def exact(x_hat: Tensor, x: Tensor, norm: bool) -> Tensor:
    """In float64, where float32's largest squares fit."""
    error = (x_hat.double() - x.double()).square()
    return error / x.double().norm(dim=-1, keepdim=True) if norm else error


@pytest.mark.parametrize("norm", [False, True])
@pytest.mark.parametrize("case_name", [*ORDINARY, "x_1e20", "x_large_3e28"])
def test_it_gives_the_seeds_numbers(oracle: Any, case_name: str, norm: bool) -> None:
    """To a millionth of the largest: the original scales before it subtracts, and so rounds."""
    case = oracle("squared_error", case_name)
    found = mean_squared_err(case["x_hat"], case["x"], norm=norm)
    expected = case[f"mse_norm{int(norm)}"]
    atol = 1e-6 * expected[expected.isfinite()].amax().item() if expected.isfinite().any() else 0.0
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=atol)


@pytest.mark.parametrize("norm", [False, True])
@pytest.mark.parametrize(
    "case_name", [*ORDINARY, "x_1e20", "x_large_3e28", "x_tiny_1e-30", "xhat_huge_x_small"]
)
def test_it_is_right_wherever_the_dtype_can_say_it(oracle: Any, case_name: str, norm: bool) -> None:
    """Where the original overflows (huge x_hat) or fades (tiny x) too."""
    case = oracle("squared_error", case_name)
    found = mean_squared_err(case["x_hat"], case["x"], norm=norm)
    expected = exact(case["x_hat"], case["x"], norm).to(found.dtype)
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-44)


@pytest.mark.parametrize("norm", [False, True])
def test_the_gradient_is_the_seeds(oracle: Any, norm: bool) -> None:
    case = oracle("squared_error", "grad")
    x_hat = case["x_hat"].requires_grad_()
    mean_squared_err(x_hat, case["x"], norm=norm).mean().backward()
    torch.testing.assert_close(x_hat.grad, case[f"grad_mean_norm{int(norm)}"], rtol=1e-5, atol=1e-8)


@pytest.mark.parametrize("case_name", ["all_zero_x", "one_zero_row", "both_zero"])
def test_rows_of_zeros_have_the_plain_error(oracle: Any, case_name: str) -> None:
    case = oracle("squared_error", case_name)
    x, x_hat = case["x"], case["x_hat"].requires_grad_()
    zero = (x == 0).all(-1)
    assert zero.any()
    plain, divided = mean_squared_err(x_hat, x), mean_squared_err(x_hat, x, norm=True)
    torch.testing.assert_close(plain.detach(), case["mse_norm0"], rtol=1e-6, atol=0)
    assert torch.equal(divided[zero], plain[zero])
    torch.testing.assert_close(divided[~zero], case["mse_norm1"][~zero], rtol=1e-5, atol=0)
    divided.sum().backward()
    assert x_hat.grad.isfinite().all()


def test_norm_divides_by_the_norm_and_not_by_its_square() -> None:
    x, x_hat = torch.tensor([[3.0, 4.0]]), torch.tensor([[3.0, 14.0]])
    torch.testing.assert_close(mean_squared_err(x_hat, x, norm=True), torch.tensor([[0.0, 20.0]]))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("norm", [False, True])
def test_half_precision_is_computed_and_given_as_float32(dtype: torch.dtype, norm: bool) -> None:
    x, x_hat = torch.full((2, 4), 6e4, dtype=dtype), torch.zeros(2, 4, dtype=dtype)
    found = mean_squared_err(x_hat, x, norm=norm)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, exact(x_hat, x, norm).float())


@given(scale=st.floats(-18, 18), massive=st.floats(0, 19), seed=st.integers(0, 999))
def test_a_row_does_not_depend_on_the_others(scale: float, massive: float, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    x, x_hat = 10**scale * torch.randn(2, 4, 6, generator=generator)
    x[0] *= 10**massive
    for norm in (False, True):
        together = mean_squared_err(x_hat, x, norm=norm)
        for row in range(4):
            assert torch.equal(mean_squared_err(x_hat[row], x[row], norm=norm), together[row])
        torch.testing.assert_close(together, exact(x_hat, x, norm).float(), rtol=1e-5, atol=1e-44)
