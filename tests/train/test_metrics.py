"""The metrics against numpy: closed forms, any batching, and means far from zero."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from saeflow.train.metrics import FVU, L0, DeadLatents, RowFVU, reconstruction_metrics


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def numpy_fvu(x: Tensor, reconstruction: Tensor) -> float:
    rows, found = x.double().numpy(), reconstruction.double().numpy()
    return float(((rows - found) ** 2).sum() / ((rows - rows.mean(0)) ** 2).sum())


def test_fvu_by_hand() -> None:
    x = torch.tensor([[0.0, 0.0], [2.0, 0.0]])  # mean (1, 0), squares 1 + 1
    metric = FVU(torch.zeros(2))
    metric.update(x, torch.tensor([[1.0, 0.0], [2.0, 0.0]]))  # error 1
    assert metric.compute().item() == 0.5


def test_fvu_of_the_perfect_and_of_the_mean() -> None:
    x = draw(50, 4) + 3
    for reconstruction, expected in ((x, 0.0), (x.mean(0).expand(50, 4), 1.0)):
        metric = FVU(torch.zeros(4))
        metric.update(x, reconstruction)
        assert metric.compute().item() == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("centre", ["at the mean", "at the origin"])
def test_fvu_with_a_mean_a_thousand_times_the_deviation(centre: str) -> None:
    mean = torch.full((16,), 1000.0)
    x = mean + draw(500, 16)
    reconstruction = x + 0.3 * draw(500, 16, seed=1)
    metric = FVU(mean if centre == "at the mean" else torch.zeros(16))
    metric.update(x, reconstruction)
    assert metric.compute().item() == pytest.approx(numpy_fvu(x, reconstruction), rel=1e-6)


def test_the_centre_saves_the_digits_that_a_huge_mean_costs() -> None:
    mean = torch.full((4,), 1e8, dtype=torch.float64)
    x = mean + draw(500, 4).double()
    metric = FVU(mean)
    metric.update(x, x + 0.3)
    assert metric.compute().item() == pytest.approx(numpy_fvu(x, x + 0.3), rel=1e-6)


def test_row_fvu_by_hand() -> None:
    metric = RowFVU(torch.tensor([1.0, 0.0]))
    x = torch.tensor([[3.0, 0.0], [1.0, 1.0]])  # squared distances 4 and 1
    metric.update(x, torch.tensor([[2.0, 0.0], [1.0, 0.5]]))  # squared errors 1 and 0.25
    assert metric.compute().item() == 0.25


def test_a_massive_row_rules_fvu_and_not_row_fvu() -> None:
    x = torch.cat([draw(99, 8), torch.full((1, 8), 1000.0)])
    reconstruction = torch.cat([x[:99] * 0.5, x[99:]])
    fvu, row_fvu = FVU(torch.zeros(8)), RowFVU(torch.zeros(8))
    for metric in (fvu, row_fvu):
        metric.update(x, reconstruction)
    assert fvu.compute().item() < 0.001
    assert row_fvu.compute().item() == pytest.approx(0.25 * 99 / 100)


def test_l0_by_hand() -> None:
    latents = torch.tensor([[1.0, 0.0, 2.0], [0.0, 0.0, 0.5]])
    metric = L0()
    metric.update(torch.zeros(2, 4), (latents > 0).sum(0).float())
    assert metric.compute().item() == 1.5


def test_dead_latents_are_those_that_no_batch_wakes() -> None:
    metric = DeadLatents(4)
    metric.update(torch.tensor([1.0, 0.0, 0.0, 0.0]))
    metric.update(torch.tensor([5.0, 0.0, 2.0, 0.0]))
    assert metric.compute().item() == 2


@given(cuts=st.lists(st.integers(1, 59), max_size=6, unique=True), seed=st.integers(0, 2**20))
def test_batching_makes_no_difference(cuts: list[int], seed: int) -> None:
    x, latents = draw(60, 6, seed=seed) + 5, draw(60, 9, seed=seed + 2)
    reconstruction = x + draw(60, 6, seed=seed + 1)

    def values(borders: list[int]) -> dict[str, float]:
        metrics = reconstruction_metrics(torch.ones(6))
        for first, stop in zip([0, *borders], [*borders, 60], strict=True):
            fired = (latents[first:stop] > 0).sum(0).float()
            metrics.update(x=x[first:stop], reconstruction=reconstruction[first:stop], fired=fired)
        return {name: float(value) for name, value in metrics.compute().items()}

    assert values(sorted(cuts)) == pytest.approx(values([]), rel=1e-9)


def test_the_collection_says_the_same_as_its_parts_and_resets() -> None:
    x, reconstruction, fired = draw(30, 6), draw(30, 6, seed=1), torch.arange(10.0)
    metrics = reconstruction_metrics(x.mean(0))
    metrics.update(x=x * 100, reconstruction=x, fired=fired * 2)
    metrics.reset()
    metrics.update(x=x, reconstruction=reconstruction, fired=fired)
    values = {name: value.item() for name, value in metrics.compute().items()}
    distances = (x - x.mean(0)).square().sum(1)
    assert values == {
        "fvu": pytest.approx(numpy_fvu(x, reconstruction)),
        "row_fvu": pytest.approx(
            float(np.mean(((x - reconstruction).square().sum(1) / distances).numpy()))
        ),
        "l0": pytest.approx(45 / 30),
    }


def test_two_processes_sums_add_up() -> None:
    """What torch.distributed would add: every state is a sum."""
    x, reconstruction = draw(40, 6) + 2, draw(40, 6, seed=1)
    whole, first, second = (FVU(torch.zeros(6)) for _ in range(3))
    whole.update(x, reconstruction)
    first.update(x[:15], reconstruction[:15])
    second.update(x[15:], reconstruction[15:])
    for name in ("error", "rows", "squares", "total"):
        setattr(first, name, getattr(first, name) + getattr(second, name))
    assert first.compute().item() == pytest.approx(whole.compute().item())
