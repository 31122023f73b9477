"""Nearest latents, against all cosines at once."""

import numpy as np
import pytest
import torch

from saeflow.evaluate.latents import nearest
from saeflow.evaluate.latents.nearest import nearest_latents


@pytest.fixture
def W_dec() -> torch.Tensor:
    """Decoder rows of different lengths."""
    draw = torch.Generator().manual_seed(0)
    return torch.randn(50, 8, generator=draw) * torch.rand(50, 1, generator=draw)


@pytest.mark.parametrize("at_a_time", [1, 170, 2**24])
def test_they_have_the_largest_cosines(
    W_dec: torch.Tensor, at_a_time: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(nearest, "_COSINES_AT_A_TIME", at_a_time)
    numbers = np.array([3, 4, 11, 49], np.uint32)
    found = nearest_latents(W_dec, numbers)
    cosines = torch.cosine_similarity(W_dec[:, None], W_dec[None], dim=-1).numpy()
    for place, number in enumerate(numbers):
        order = [n for n in np.argsort(-cosines[number]) if n != number][:5]
        assert found.numbers[place].tolist() == order
        assert np.allclose(found.cosines[place], cosines[number, order], atol=1e-6)


def test_a_twin_is_nearest_but_nobody_to_itself(W_dec: torch.Tensor) -> None:
    twins = torch.cat([W_dec, 3 * W_dec])
    found = nearest_latents(twins, np.arange(100, dtype=np.uint32))
    assert found.numbers[:, 0].tolist() == [*range(50, 100), *range(50)]
    assert np.allclose(found.cosines[:, 0], 1)


def test_a_small_sae_has_fewer_and_a_dead_row_no_direction() -> None:
    W_dec = torch.tensor([[1.0, 0.0], [2.0, 0.0], [0.0, 0.0]])
    found = nearest_latents(W_dec, np.arange(3, dtype=np.uint32))
    assert found.numbers.shape == (3, 2)
    assert found.numbers[0].tolist() == [1, 2]
    assert found.cosines[0].tolist() == [1, 0]
    assert found.cosines[2].tolist() == [0, 0]
