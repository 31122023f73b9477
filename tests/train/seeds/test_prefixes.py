"""Prefix lengths and what prefixes decode."""

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from saeflow import BadInputError
from saeflow.train.seeds.prefixes import decode_prefixes, prefix_probabilities, sample_prefixes


def test_lengths_are_as_likely_as_in_the_seed(oracle: Any) -> None:
    case = oracle("matryoshka", "prefix_probabilities_d16")
    assert case["lengths"].tolist() == list(range(1, 16))
    torch.testing.assert_close(prefix_probabilities(16), case["probs"], rtol=1e-6, atol=1e-9)


@given(d_sae=st.integers(1, 40), seed=st.integers(0, 999), data=st.data())
def test_lengths_differ_rise_and_end_with_all(d_sae: int, seed: int, data: Any) -> None:
    n_prefixes = data.draw(st.integers(1, d_sae))
    lengths = sample_prefixes(d_sae, n_prefixes, generator=torch.Generator().manual_seed(seed))
    assert len(lengths) == n_prefixes
    assert lengths[-1] == d_sae
    assert lengths[0] >= 1
    assert (lengths.diff() > 0).all()


def test_the_same_generator_gives_the_same_lengths_and_leaves_the_global_one_alone() -> None:
    torch.manual_seed(5)
    before = torch.get_rng_state()
    first, second = (
        sample_prefixes(1000, 10, generator=torch.Generator().manual_seed(3)) for _ in range(2)
    )
    assert first.tolist() == second.tolist()
    assert torch.equal(before, torch.get_rng_state())


def test_short_lengths_are_drawn_more_often() -> None:
    generator = torch.Generator().manual_seed(0)
    drawn = torch.cat([sample_prefixes(100, 2, generator=generator)[:1] for _ in range(2000)])
    expected = prefix_probabilities(100)[:9].sum().item()  # lengths 1 to 9
    assert (drawn < 10).double().mean().item() == pytest.approx(expected, abs=0.04)


@pytest.mark.parametrize("n_prefixes", [0, 9])
def test_more_lengths_than_there_are_or_none_are_refused(n_prefixes: int) -> None:
    with pytest.raises(BadInputError, match=f"n_prefixes is {n_prefixes} with 8 latents: give fro"):
        sample_prefixes(8, n_prefixes)


@pytest.mark.parametrize("case_name", ["relu", "topk4", "topk14_negatives_kept", "batchtopk3"])
def test_prefixes_decode_as_in_the_seed(oracle: Any, case_name: str) -> None:
    case = oracle("matryoshka", case_name)
    found = decode_prefixes(case["f_x"], case["W_dec"], case["b_dec"], case["prefixes"])
    torch.testing.assert_close(found, case["x_hats_prefixes"], rtol=1e-5, atol=1e-6)


@given(seed=st.integers(0, 99), data=st.data())
def test_a_prefix_is_the_latents_before_its_end(seed: int, data: Any) -> None:
    generator = torch.Generator().manual_seed(seed)
    f_x, W_dec = torch.rand(3, 9, generator=generator), torch.rand(9, 4, generator=generator)
    ends = [*sorted(data.draw(st.sets(st.integers(1, 8)))), 9]
    b_dec = torch.rand(4, generator=generator)
    found = decode_prefixes(f_x, W_dec, b_dec, torch.tensor(ends))
    for index, end in enumerate(ends):
        torch.testing.assert_close(found[:, index], f_x[:, :end] @ W_dec[:end] + b_dec)
