"""Reconstruction figures against numpy, by hand, and whatever the batches."""

from dataclasses import asdict

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from saeflow.evaluate.explained_variance import ExplainedVariance
from saeflow.evaluate.figures import Reconstruction
from saeflow.evaluate.reconstruction import ReconstructionMetrics


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def unknown(rows: int) -> Tensor:
    return torch.full((rows,), torch.nan)


def figures(
    x: Tensor, x_hat: Tensor, loss: Tensor | None = None, median: float = 1e9
) -> Reconstruction:
    metrics = ReconstructionMetrics(x.mean(0), median)
    metrics.update(x, x_hat, unknown(len(x)) if loss is None else loss)
    return metrics.compute("blocks.0.hook_resid_post")


def test_two_rows_by_hand() -> None:
    found = figures(torch.tensor([[3.0, 4.0], [0.0, 2.0]]), torch.tensor([[3.0, 0.0], [0.0, 2.0]]))
    assert found.hook_point == "blocks.0.hook_resid_post"
    assert found.rows == 2
    assert found.mse == 8  # (16 + 0) / 2
    assert found.cosine == pytest.approx((0.6 + 1) / 2)
    assert found.l2_ratio == pytest.approx((0.6 + 1) / 2)
    assert found.relative_bias == pytest.approx((9 + 4) / (9 + 4))
    # variances: 1st channel 2.25, 2nd 1; of the error: 0 and 4
    assert found.explained_variance == pytest.approx(1 - 4 / 3.25)
    assert found.fvu == pytest.approx(16 / 6.5)
    assert found.row_fvu == pytest.approx((16 / 3.25 + 0) / 2)


def test_random_rows_as_numpy_has_them() -> None:
    x, x_hat = draw(300, 12) + 2, draw(300, 12) + 2 + 0.3 * draw(300, 12, seed=1)
    found = figures(x, x_hat)
    wide, given_ = x.double().numpy(), x_hat.double().numpy()
    error = wide - given_
    norms, given_norms = np.linalg.norm(wide, axis=1), np.linalg.norm(given_, axis=1)
    products = (wide * given_).sum(1)
    assert found.explained_variance == pytest.approx(1 - error.var(0).sum() / wide.var(0).sum())
    assert found.mse == pytest.approx((error**2).sum(1).mean())
    assert found.cosine == pytest.approx((products / norms / given_norms).mean())
    assert found.l2_ratio == pytest.approx((given_norms / norms).mean())
    assert found.relative_bias == pytest.approx((given_norms**2).mean() / products.mean())


def test_shrinking_is_a_relative_bias_below_1() -> None:
    x = draw(100, 5)
    assert figures(x, 0.5 * x).relative_bias == pytest.approx(0.5)


def test_explained_variance_forgives_a_constant_error_and_fvu_does_not() -> None:
    x = draw(100, 5)
    found = figures(x, x + 3)
    assert found.explained_variance == pytest.approx(1)
    assert found.fvu == pytest.approx(9 * 500 / float((x - x.mean(0)).square().sum()))


@pytest.mark.parametrize("mean", [0.0, 1e3, 1e6])
def test_explained_variance_is_exact_however_far_the_mean_is(mean: float) -> None:
    """In float64 from the first number on; what float32 rows are rounded to is theirs."""
    x = (mean + draw(1000, 8)).float()
    x_hat = (x + 0.5 * draw(1000, 8, seed=1)).float()
    metric = ExplainedVariance(8)
    for rows in torch.arange(1000).split(37):
        metric.update(x[rows], x_hat[rows])
    wide = x.double().numpy()
    error = wide - x_hat.double().numpy()
    expected = 1 - error.var(0).sum() / wide.var(0).sum()
    assert metric.compute().item() == pytest.approx(expected, rel=1e-12)


def test_processes_reduce_to_the_whole() -> None:
    """As torch.distributed gathers the states; one of three processes had no rows."""
    x, x_hat = draw(90, 4) + 1000, draw(90, 4, seed=1) + 1000
    others = [ExplainedVariance(4), ExplainedVariance(4)]
    others[0].update(x[:20], x_hat[:20])
    metric = ExplainedVariance(
        4,
        dist_sync_fn=lambda state, **_: [state, *(other.moments for other in others)],
        distributed_available_fn=lambda: True,
    )
    metric.update(x[20:], x_hat[20:])
    wide = x.double().numpy()
    error = wide - x_hat.double().numpy()
    expected = 1 - error.var(0).sum() / wide.var(0).sum()
    assert metric.compute().item() == pytest.approx(expected, rel=1e-12)


def massive() -> tuple[Tensor, Tensor]:
    """Two massive rows among 98, which are given back badly."""
    x = torch.cat([draw(98, 6), torch.full((2, 6), 200.0)])
    return x, torch.cat([0.5 * x[:98], x[98:] - 10])


def test_massive_rows_by_hand() -> None:
    x, x_hat = massive()
    loss = torch.cat([torch.full((90,), 0.1), unknown(8), torch.tensor([3.0, torch.nan])])
    found = figures(x, x_hat, loss, median=float(x.norm(dim=1).median()))
    others = float((0.5 * x[:98]).square().sum())
    assert found.massive_rows == 2
    assert found.massive_share_of_error == pytest.approx(1200 / (1200 + others), rel=1e-6)
    assert found.massive_share_of_loss == pytest.approx(3 / (3 + 9), rel=1e-6)
    assert found.fvu is not None
    assert found.fvu < 0.01
    rows = x[:98].double().numpy()
    assert found.fvu_without_massive == pytest.approx(
        0.25 * (rows**2).sum() / ((rows - rows.mean(0)) ** 2).sum()
    )


@pytest.mark.parametrize("loss", [0.0, 0.0009, -1.0, float("nan")])
def test_no_share_of_a_loss_that_hardly_grows(loss: float) -> None:
    x, x_hat = massive()
    found = figures(x, x_hat, torch.full((100,), loss), median=float(x.norm(dim=1).median()))
    assert found.massive_share_of_loss is None


def test_rows_of_zeros_have_no_cosine_and_no_ratio() -> None:
    x = torch.tensor([[0.0, 0.0], [1.0, 0.0], [2.0, 0.0]])
    found = figures(x, torch.tensor([[1.0, 0.0], [0.0, 0.0], [1.0, 0.0]]))
    assert found.cosine == 0.5  # 0 of the row that became zeros, and 1
    assert found.l2_ratio == 0.25


@given(cuts=st.lists(st.integers(0, 60), max_size=6), seed=st.integers(0, 2**20))
def test_batches_order_and_processes_make_no_difference(cuts: list[int], seed: int) -> None:
    x = draw(60, 6, seed=seed) + 5
    x[:3] *= 50
    x_hat, loss = x + draw(60, 6, seed=seed + 1), draw(60, seed=seed + 2).square()
    loss[::7] = torch.nan
    median = float(x.norm(dim=1).median())
    order = torch.randperm(60, generator=torch.Generator().manual_seed(seed))
    parts = [ReconstructionMetrics(torch.full((6,), 5.0), median) for _ in range(2)]
    for i, (a, b) in enumerate(zip([0, *sorted(cuts)], [*sorted(cuts), 60], strict=True)):
        rows = order[a:b]
        parts[i % 2].update(x[rows], x_hat[rows], loss[rows])
    for name, metric in parts[0].metrics.items():
        metric.merge_state(parts[1].metrics[name])
    whole = ReconstructionMetrics(torch.full((6,), 5.0), median)
    whole.update(x, x_hat, loss)
    found, expected = (list(asdict(each.compute("a")).values())[1:] for each in (parts[0], whole))
    assert found == pytest.approx(expected, rel=1e-9)
