"""How long encoder rows begin: the first reconstructions fit the rows."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from saeflow.train.config import TrainConfig
from saeflow.train.overshoot import best_gain, encoder_scale


def options(**given: Any) -> TrainConfig:
    return TrainConfig(store=Path(), out=Path(), d_sae=2048, **given)


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
    "given", [{}, {"arch": "batchtopk"}, {"arch": "matryoshka", "base": "topk"}]
)
def test_four_fifths_of_what_could_be_is_explained_at_first(given: dict[str, Any]) -> None:
    scale = encoder_scale(options(**given), 64, 2048)
    x, found = reconstructed(32, 64, 2048)
    explained, most = (
        1 - ((gain * found - x).square().sum() / x.square().sum()).item()
        for gain in (scale, best_gain(32, 64, 2048))
    )
    assert explained == pytest.approx(0.8 * most, rel=0.1)
    assert scale > best_gain(32, 64, 2048)


@pytest.mark.parametrize(
    "given",
    [
        {"arch": "matryoshka", "base": "relu"},
        {"arch": "relu"},
        {"arch": "jumprelu", "target_l0": 16.0},
        {"decoder_norm": "free"},
        {"target_hook": "b", "hook": ("a",)},
        {"init_from": Path("sae")},
    ],
)
def test_others_begin_as_the_transpose(given: dict[str, Any]) -> None:
    assert encoder_scale(options(**given), 64, 2048) == 1.0


def test_where_nothing_overshoots_so_do_all() -> None:
    assert encoder_scale(options(), 768, 2304) == 1.0


def test_it_can_be_given() -> None:
    assert encoder_scale(options(encoder_scale=0.3), 64, 2048) == 0.3
