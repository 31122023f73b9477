"""The reconstruction score: a ratio of sums, by hand."""

import math
from itertools import pairwise

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from saeflow.evaluate.score import ReconstructionScore


def losses(*values: float) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float32)


def test_by_hand() -> None:
    score = ReconstructionScore()
    score.update(losses(1, 1), losses(2, 2), losses(5, 5))
    assert score.compute().item() == 0.75  # (5 - 2) / (5 - 1)
    assert score.losses() == {"clean": 1.0, "spliced": 2.0, "zero_ablated": 5.0}


def test_it_is_a_ratio_of_sums_not_a_mean_of_ratios() -> None:
    score = ReconstructionScore()
    score.update(losses(1), losses(1), losses(2))  # alone: 1
    score.update(losses(0, 0, 0), losses(9, 9, 9), losses(9, 9, 9))  # alone: 0
    assert score.compute().item() == 1 / 28
    assert score.tokens.item() == 4


@given(st.lists(st.integers(1, 39), max_size=5, unique=True), st.integers(0, 2**20))
def test_batching_makes_no_difference(cuts: list[int], seed: int) -> None:
    clean, spliced, zero = torch.rand(3, 40, generator=torch.Generator().manual_seed(seed))
    borders = [0, *sorted(cuts), 40]
    score = ReconstructionScore()
    for first, stop in pairwise(borders):
        score.update(clean[first:stop], spliced[first:stop], zero[first:stop] + 3)
    clean_mean, zero_mean = clean.double().mean(), (zero + 3).double().mean()
    expected = (zero_mean - spliced.double().mean()) / (zero_mean - clean_mean)
    assert score.compute().item() == pytest.approx(expected.item(), rel=1e-9)


def test_the_ends_of_the_scale_are_exact() -> None:
    clean, zero = torch.rand(100), torch.rand(100) + 4
    for spliced, expected in ((clean, 1.0), (zero, 0.0)):
        score = ReconstructionScore()
        score.update(clean, spliced, zero)
        assert score.compute().item() == expected


@pytest.mark.parametrize("cost", [0.0, 0.0005, -2.0])
def test_there_is_no_score_where_ablation_costs_nothing(cost: float) -> None:
    score = ReconstructionScore()
    score.update(losses(3, 3), losses(3, 3), losses(3 + cost, 3 + cost))
    assert math.isnan(score.compute().item())


def test_reset_forgets() -> None:
    score = ReconstructionScore()
    score.update(losses(1), losses(8), losses(9))
    score.reset()
    score.update(losses(1), losses(2), losses(3))
    assert score.compute().item() == 0.5
