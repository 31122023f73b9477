"""Losses, divergence and agreement against a hand's arithmetic and torch's own."""

import math

import pytest
import torch
from torch.distributions import Categorical
from torch.distributions import kl_divergence as torch_kl
from torch.nn import functional as F

from saeflow.evaluate import predictions
from saeflow.evaluate.predictions import agreement, kl_divergence, prediction_losses

EVERY = torch.ones(1, 2, dtype=torch.bool)


def logits_of(*probabilities: list[float]) -> torch.Tensor:
    """Logits of one sequence, whose softmax is known; the last position predicts nothing."""
    return torch.tensor([[*probabilities, [0.25, 0.25, 0.25, 0.25]]]).log()


def test_three_tokens_by_hand() -> None:
    tokens = torch.tensor([[3, 0, 2]])
    clean = logits_of([0.5, 0.25, 0.125, 0.125], [0.1, 0.2, 0.3, 0.4])
    other = logits_of([0.25, 0.25, 0.25, 0.25], [0.1, 0.4, 0.3, 0.2])
    losses = prediction_losses(clean, tokens, EVERY)
    assert losses.tolist() == pytest.approx([math.log(2), -math.log(0.3)])
    assert prediction_losses(other, tokens, EVERY).tolist() == pytest.approx(
        [math.log(4), -math.log(0.3)]
    )
    first = 0.5 * math.log(2) + 0 + 2 * 0.125 * math.log(0.5)
    second = 0.2 * math.log(0.5) + 0.4 * math.log(2)
    assert kl_divergence(clean, other, EVERY).tolist() == pytest.approx([first, second])
    assert agreement(clean, clean, EVERY).tolist() == [True, True]
    assert agreement(clean, other, EVERY).tolist()[1] is False


@pytest.mark.parametrize("chunk", [1, 7, 1024])
def test_against_torch_whatever_the_chunk(monkeypatch: pytest.MonkeyPatch, chunk: int) -> None:
    monkeypatch.setattr(predictions, "_CHUNK", chunk)
    draw = torch.Generator().manual_seed(0)
    clean, other = torch.randn(2, 3, 9, 17, generator=draw) * 3
    tokens = torch.randint(17, (3, 9), generator=draw)
    scored = torch.rand(3, 8, generator=draw) < 0.6
    losses = F.cross_entropy(other[:, :-1].transpose(1, 2), tokens[:, 1:], reduction="none")
    torch.testing.assert_close(prediction_losses(other, tokens, scored), losses[scored])
    expected = torch_kl(Categorical(logits=clean), Categorical(logits=other))[:, :-1][scored]
    torch.testing.assert_close(kl_divergence(clean, other, scored), expected)
    same = (clean.argmax(-1) == other.argmax(-1))[:, :-1][scored]
    assert torch.equal(agreement(clean, other, scored), same)


def test_equal_logits_diverge_by_nothing_at_all() -> None:
    logits = torch.randn(1, 3, 50, generator=torch.Generator().manual_seed(0)) * 20
    assert kl_divergence(logits, logits.clone(), EVERY).tolist() == [0.0, 0.0]


def test_a_token_that_is_ruled_out_adds_nothing() -> None:
    """Some models give unused ids of the vocabulary minus infinity."""
    clean, other = (
        torch.randn(1, 3, 5, generator=torch.Generator().manual_seed(s)) for s in (0, 1)
    )
    expected = kl_divergence(clean, other, EVERY)
    shut = torch.full((1, 3, 2), -torch.inf)
    found = kl_divergence(torch.cat([clean, shut], 2), torch.cat([other, shut], 2), EVERY)
    torch.testing.assert_close(found, expected)


def test_bfloat16_logits_are_taken_to_float32_first() -> None:
    logits = (torch.randn(1, 3, 4096, generator=torch.Generator().manual_seed(0)) * 4).bfloat16()
    tokens = torch.tensor([[0, 1, 2]])
    found = prediction_losses(logits, tokens, EVERY)
    assert found.dtype == torch.float32
    expected = F.cross_entropy(logits[0, :2].double(), tokens[0, 1:], reduction="none")
    torch.testing.assert_close(found.double(), expected, rtol=1e-6, atol=1e-6)


def test_no_scored_prediction_is_no_error() -> None:
    logits, none = torch.randn(2, 3, 5), torch.zeros(2, 2, dtype=torch.bool)
    assert prediction_losses(logits, torch.zeros(2, 3).long(), none).tolist() == []
    assert kl_divergence(logits, logits, none).tolist() == []
    assert agreement(logits, logits, none).tolist() == []
