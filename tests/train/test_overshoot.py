"""How long encoder rows begin: the first reconstructions fit the rows."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from saeflow.train.config import TrainConfig
from saeflow.train.overshoot import best_gain, encoder_scale


def reconstructed(k: int, d_in: int, d_sae: int) -> tuple[Tensor, Tensor]:
    """Gaussian rows, and the sums of their k best random unit rows."""
    draw = torch.Generator().manual_seed(0)
    x = torch.randn(512, d_in, generator=draw)
    rows = F.normalize(torch.randn(d_sae, d_in, generator=draw), dim=1)
    values, best = (x @ rows.T).topk(k)
    return x, (values.relu()[..., None] * rows[best]).sum(1)


@pytest.mark.parametrize(
    ("k", "d_in", "d_sae"), [(32, 576, 2304), (32, 128, 2048), (8, 64, 2048), (4, 32, 48)]
)
def test_the_gain_is_that_of_least_squares(k: int, d_in: int, d_sae: int) -> None:
    x, found = reconstructed(k, d_in, d_sae)
    exact = (x * found).sum() / found.square().sum()
    assert best_gain(k, d_in, d_sae) == pytest.approx(exact.item(), rel=0.15)


def test_without_it_the_first_error_can_be_larger_than_the_row() -> None:
    x, found = reconstructed(32, 64, 2048)
    error, shorter = (
        ((gain * found - x).square().sum() / x.square().sum()).item()
        for gain in (1.0, best_gain(32, 64, 2048))
    )
    assert error > 1
    assert shorter < 0.5


@pytest.mark.parametrize(
    ("given", "scaled"),
    [
        ({}, True),
        ({"arch": "batchtopk"}, True),
        ({"arch": "matryoshka", "base": "topk"}, True),
        ({"arch": "matryoshka", "base": "relu"}, False),
        ({"arch": "relu"}, False),
        ({"decoder_norm": "free"}, False),
        ({"target_hook": "b", "hook": ("a",)}, False),
        ({"init_from": Path("sae")}, False),
    ],
)
def test_where_k_latents_of_unit_rows_are_kept(given: dict[str, Any], scaled: bool) -> None:
    config = TrainConfig(store=Path(), out=Path(), d_sae=2304, **given)
    expected = best_gain(32, 576, 2304) if scaled else 1.0
    assert encoder_scale(config, 576, 2304) == expected


def test_it_can_be_given() -> None:
    config = TrainConfig(store=Path(), out=Path(), d_sae=2304, encoder_scale=0.3)
    assert encoder_scale(config, 576, 2304) == 0.3
