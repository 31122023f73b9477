"""Which rows dead latents are to learn, and the weights that make them."""

import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from saeflow import ActivationResampler, BadInputError
from saeflow.train.seeds.resampling import (
    assign_sampling_probabilities,
    dead_latents,
    new_weights,
    renormalize_and_scale,
    sample_input,
    sample_rows,
)


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("case_name", ["1d", "2d", "one_item", "f64", "negative"])
def test_probabilities_are_the_seeds(oracle: Any, case_name: str) -> None:
    case = oracle("resampler", f"probs_{case_name}")
    found = ActivationResampler.assign_sampling_probabilities(case["loss"])
    torch.testing.assert_close(found, case["probs"], rtol=1e-6, atol=0)


@pytest.mark.parametrize("case_name", ["docstring", "random", "zero_input_row", "no_dead"])
def test_scaled_rows_are_the_seeds(oracle: Any, case_name: str) -> None:
    case = oracle("resampler", f"scale_{case_name}")
    found = ActivationResampler.renormalize_and_scale(
        case["sampled"], case["activity"], case["encoder_weight"]
    )
    torch.testing.assert_close(found, case["out"], rtol=1e-6, atol=0)


def test_samples_are_the_seeds_for_the_same_random_numbers(oracle: Any) -> None:
    case = oracle("resampler", "sample_seed7")
    found = ActivationResampler.sample_input(
        case["probs"], case["inputs"], case["n"].tolist(), seeded(7)
    )
    for component, rows in enumerate(found):
        assert torch.equal(rows, case[f"out{component}"])


def test_a_component_without_loss_draws_uniformly_where_the_seed_has_nan(oracle: Any) -> None:
    case = oracle("resampler", "probs_zeros_one_comp")
    assert case["probs"].isnan().any()
    found = assign_sampling_probabilities(case["loss"])
    torch.testing.assert_close(found, torch.tensor([[0.2, 0.5], [0.8, 0.5]]))


def chi_square(counts: Tensor, probabilities: Tensor) -> float:
    expected = probabilities * counts.sum()
    return float(((counts - expected) ** 2 / expected).sum())


def test_rows_are_drawn_in_proportion_to_the_square_of_their_loss() -> None:
    chances = assign_sampling_probabilities(torch.tensor([1.0, 2.0, 3.0, 0.5]))
    generator = seeded(1)
    drawn = torch.cat([sample_rows(chances, 1, generator) for _ in range(3000)])
    closed_form = torch.tensor([1.0, 4.0, 9.0, 0.25]) / 14.25
    assert chi_square(drawn.bincount(minlength=4), closed_form) < 16.3  # 1 in 1000, 3 degrees


def test_a_second_row_is_drawn_from_those_that_are_left() -> None:
    p = torch.tensor([0.6, 0.3, 0.1])
    generator = seeded(2)
    pairs = [tuple(sample_rows(p, 2, generator).tolist()) for _ in range(3000)]
    closed_form = {(i, j): p[i] * p[j] / (1 - p[i]) for i in range(3) for j in range(3) if i != j}
    assert set(pairs) == set(closed_form)
    counts = torch.tensor([pairs.count(pair) for pair in closed_form])
    assert chi_square(counts, torch.stack(list(closed_form.values()))) < 20.6  # 1 in 1000, 5


@given(
    losses=st.lists(st.just(0.0) | st.floats(1e-3, 1e3), min_size=1, max_size=30),
    seed=st.integers(0, 2**32 - 1),
    data=st.data(),
)
@settings(max_examples=60, deadline=None)
def test_rows_differ_repeat_with_their_generator_and_have_losses_while_there_are_any(
    losses: list[float], seed: int, data: st.DataObject
) -> None:
    n = data.draw(st.integers(0, len(losses)))
    chances = assign_sampling_probabilities(torch.tensor(losses))
    drawn = sample_rows(chances, n, seeded(seed))
    assert torch.equal(drawn, sample_rows(chances, n, seeded(seed)))
    assert len(set(drawn.tolist())) == n
    n_positive = sum(loss > 0 for loss in losses)
    if n_positive:
        assert sum(losses[row] > 0 for row in drawn.tolist()) == min(n, n_positive)


@given(
    n_latents=st.integers(2, 12),
    n_dead=st.integers(1, 11),
    width=st.integers(1, 6),
    seed=st.integers(0, 2**32 - 1),
)
@settings(max_examples=60, deadline=None)
def test_new_latents_point_at_their_rows_with_the_norms_of_the_paper(
    n_latents: int, n_dead: int, width: int, seed: int
) -> None:
    n_dead = min(n_dead, n_latents - 1)
    generator = seeded(seed)
    rows = torch.randn(n_dead, width, generator=generator) + 3
    encoder = torch.randn(n_latents, width, generator=generator)
    activity = torch.ones(n_latents)
    activity[:n_dead] = 0
    update = new_weights(torch.arange(n_dead), rows, activity, encoder)
    alive_norm = sum(math.sqrt(float(row @ row)) for row in encoder[n_dead:])
    norm = 0.2 * alive_norm / (n_latents - n_dead)
    direction = rows / rows.norm(dim=1, keepdim=True)
    torch.testing.assert_close(update.dead_decoder_weight_updates.T, direction)
    torch.testing.assert_close(update.dead_encoder_weight_updates, norm * direction)
    assert not update.dead_encoder_bias_updates.any()


def test_huge_and_tiny_losses_keep_their_proportions() -> None:
    for scale in (1e-30, 1e30):  # their squares are no float32
        chances = assign_sampling_probabilities(scale * torch.tensor([1.0, 2.0, 3.0]))
        torch.testing.assert_close(chances, torch.tensor([1.0, 4.0, 9.0]) / 14)


def test_more_rows_than_torchs_multinomial_takes() -> None:
    n_rows = 2**24 + 1
    with pytest.raises(RuntimeError, match="2\\^24"):
        torch.multinomial(torch.ones(n_rows), 1)
    chances = torch.zeros(n_rows)
    chances[-1] = 1
    assert sample_rows(chances, 1, seeded(0)).tolist() == [n_rows - 1]


def test_a_latent_is_dead_up_to_a_portion_of_the_rows_that_were_counted() -> None:
    activity = torch.tensor([0, 2, 3, 20])
    assert dead_latents(activity, 20).tolist() == [0]
    assert dead_latents(activity, 20, 0.1).tolist() == [0, 1]
    assert dead_latents(activity, 20, 0.149).tolist() == [0, 1]  # 2.98 rows are 2
    assert dead_latents(activity, 20, 1.0).tolist() == [0, 1, 2, 3]


def test_what_cannot_be_drawn_is_refused() -> None:
    with pytest.raises(BadInputError, match="loss of 2 of the rows"):
        assign_sampling_probabilities(torch.tensor([1.0, math.nan, math.inf]))
    with pytest.raises(BadInputError, match="component 1 has 3 dead latents and 2 sampled rows"):
        sample_input(torch.ones(2, 2), torch.ones(2, 2, 4), [1, 3])
    with pytest.raises(BadInputError, match="no latent is alive"):
        renormalize_and_scale(torch.ones(1, 2), torch.zeros(3), torch.ones(3, 2))
