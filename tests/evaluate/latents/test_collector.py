"""What is collected of latents, against all rows looked at together."""

from dataclasses import dataclass

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from saeflow.evaluate.latents.collector import LatentCollector
from saeflow.evaluate.latents.result import NO_TOKEN, NOWHERE, Latents
from saeflow.evaluate.latents.windows import AFTER, BEFORE, SAME_TOKENS, WIDTH

D_SAE, CONTEXT, KEPT = 6, 40, 3


@dataclass(frozen=True)
class Given:
    """One sequence as the collector gets it, with latents at every position."""

    tokens: Tensor
    chosen: Tensor
    own: Tensor
    everywhere: Tensor


def make_text(seed: int, n: int = 12) -> list[Given]:
    """Sequences of which some repeat the words of others; some end in padding."""
    draw = torch.Generator().manual_seed(seed)
    words = torch.randint(1000, (4, CONTEXT), generator=draw)
    text = []
    for _ in range(n):
        which = int(torch.randint(4, (), generator=draw))
        length = int(torch.randint(4, CONTEXT + 1, (), generator=draw))
        own = torch.arange(CONTEXT) < length
        chosen = own & (torch.rand(CONTEXT, generator=draw) < 0.8)
        everywhere = torch.randn(CONTEXT, D_SAE, generator=draw).clamp(min=0)
        everywhere[:, 0] = 0  # a dead latent
        everywhere[:, 1] *= torch.rand(CONTEXT, generator=draw) < 0.01
        text.append(Given(torch.where(own, words[which], 2), chosen, own, everywhere))
    return text


def collect(
    text: list[Given], order: list[int] | None = None, numbers: np.ndarray | None = None
) -> Latents:
    collector = LatentCollector(D_SAE, numbers, n_contexts=KEPT)
    for number in order or range(len(text)):
        one = text[number]
        rows = one.everywhere[one.chosen]
        documents = torch.where(one.own, 100 + number, NOWHERE)
        collector.update(number, one.tokens, one.chosen, rows, own=one.own, documents=documents)
    return collector.result()


def places(text: list[Given], latent: int) -> list[tuple[float, int, int]]:
    """By the rule: the peak of each sequence, the best of each eight words, the largest first."""
    peaks = []
    for number, one in enumerate(text):
        values = torch.where(one.chosen, one.everywhere[:, latent], 0)
        if values.max() > 0:
            peaks.append((float(values.max()), number, int(values.argmax())))
    best: dict[tuple[int, ...], tuple[float, int, int]] = {}
    for peak in sorted(peaks, reverse=True):
        _, number, position = peak
        first = max(position - SAME_TOKENS + 1, 0)
        words = text[number].tokens[first : position + 1].tolist()
        best.setdefault(tuple(words), peak)
    return list(best.values())[:KEPT]


@settings(max_examples=25)
@given(st.integers(0, 2**31), st.permutations(range(12)))
def test_contexts_are_those_of_all_rows_at_once(seed: int, order: list[int]) -> None:
    text = make_text(seed)
    contexts = collect(text, order).contexts
    for latent in range(D_SAE):
        expected = places(text, latent)
        n = len(expected)
        found = zip(
            contexts.values[latent].tolist(),
            contexts.sequences[latent].tolist(),
            contexts.positions[latent].tolist(),
            strict=True,
        )
        unused = [(0.0, NOWHERE, NOWHERE)] * (KEPT - n)
        assert list(found) == expected + unused
        numbers = [100 + number for _, number, _ in expected]
        assert contexts.documents[latent].tolist() == numbers + [NOWHERE] * (KEPT - n)


def test_the_example_has_latents_with_all_few_and_no_contexts() -> None:
    """So that the property above says something."""
    counts = {len(places(make_text(seed), latent)) for seed in range(5) for latent in range(D_SAE)}
    assert counts == {0, 1, 2, 3}


@settings(max_examples=25)
@given(st.integers(0, 2**31))
def test_windows_are_the_text_around_and_end_where_it_ends(seed: int) -> None:
    text = make_text(seed)
    contexts = collect(text).contexts
    assert contexts.before == BEFORE
    assert contexts.tokens.shape == (D_SAE, KEPT, WIDTH)
    for latent, context in np.ndindex(D_SAE, KEPT):
        tokens, shares = contexts.tokens[latent, context], contexts.activations[latent, context]
        value = float(contexts.values[latent, context])
        if value == 0:
            assert (tokens == NO_TOKEN).all()
            assert (shares == 0).all()
            continue
        one = text[contexts.sequences[latent, context]]
        centre = int(contexts.positions[latent, context])
        for place, position in enumerate(range(centre - BEFORE, centre + AFTER + 1)):
            there = 0 <= position < CONTEXT and bool(one.own[position])
            assert tokens[place] == (int(one.tokens[position]) if there else NO_TOKEN)
            active = there and bool(one.chosen[position])
            activation = float(one.everywhere[position, latent]) if active else 0
            assert shares[place] == pytest.approx(activation / value, rel=1e-3, abs=1e-6)
        assert shares[BEFORE] == 1


@settings(max_examples=25)
@given(st.integers(0, 2**31))
def test_counts_are_those_of_all_rows_at_once(seed: int) -> None:
    text = make_text(seed)
    found = collect(text)
    rows = torch.cat([one.everywhere[one.chosen] for one in text]).numpy()
    active = rows > 0
    assert found.rows == len(rows)
    assert np.array_equal(found.fired, active.sum(0))
    assert np.allclose(found.density, active.mean(0))
    assert np.array_equal(found.maximum, rows.max(0))
    sums = rows.sum(0, dtype=np.float64)
    assert np.allclose(found.mean, sums / np.maximum(active.sum(0), 1), rtol=1e-6)
    edges = found.histogram_edges.astype(np.float64)
    for latent in range(D_SAE):
        values = rows[active[:, latent], latent]
        counts, _ = np.histogram(np.maximum(values, 2**-16), edges)
        assert np.array_equal(found.histogram_counts[latent], counts)


def test_bins_are_half_octaves_and_hold_what_is_beyond_them() -> None:
    values = torch.tensor([1e-9, 1.0, 1.3, 1.5, 2.0, 1e30])
    collector = LatentCollector(1)
    everywhere = torch.ones(6, dtype=torch.bool)
    collector.update(0, torch.arange(6), everywhere, values[:, None])
    found = collector.result()
    assert found.histogram_edges[[0, -1]].tolist() == [2.0**-16, 2.0**24]
    assert np.allclose(found.histogram_edges[1:] / found.histogram_edges[:-1], 2**0.5)
    counts = dict(
        zip(found.histogram_edges.tolist(), found.histogram_counts[0].tolist(), strict=False)
    )
    assert counts[1.0] == 2
    assert counts[float(np.float32(2**0.5))] == 1
    assert counts[2.0] == 1
    assert found.histogram_counts[0, [0, -1]].tolist() == [1, 1]
    assert found.histogram_counts.sum() == 6


def test_chosen_latents_are_those_of_all() -> None:
    text = make_text(7)
    numbers = np.array([1, 4, 5])
    every, some = collect(text), collect(text, numbers=numbers)
    assert some.d_sae == D_SAE
    assert some.numbers.tolist() == [1, 4, 5]
    assert np.array_equal(some.fired, every.fired[numbers])
    assert np.array_equal(some.contexts.values, every.contexts.values[numbers])
    assert np.array_equal(some.contexts.tokens, every.contexts.tokens[numbers])
    assert np.array_equal(some.contexts.activations, every.contexts.activations[numbers])


def test_large_activations_keep_their_shape() -> None:
    """Shares of the largest fit a half; 300,000 does not."""
    collector = LatentCollector(1)
    rows = torch.tensor([[150_000.0], [300_000.0]])
    collector.update(0, torch.tensor([5, 6]), torch.ones(2, dtype=torch.bool), rows)
    contexts = collector.result().contexts
    assert contexts.values[0, 0] == 300_000
    assert contexts.activations[0, 0, BEFORE - 1 : BEFORE + 1].tolist() == [0.5, 1]


def test_a_sequence_without_chosen_positions_adds_nothing() -> None:
    collector = LatentCollector(3)
    nothing = torch.zeros(5, dtype=torch.bool)
    collector.update(0, torch.arange(5), nothing, torch.zeros(0, 3))
    found = collector.result()
    assert found.rows == 0
    assert found.density.tolist() == [0, 0, 0]
    assert (found.contexts.sequences == NOWHERE).all()


def test_65536_latents_take_150_megabytes_and_no_more_with_more_text() -> None:
    collector = LatentCollector(65_536)
    before = collector.nbytes
    chosen = torch.ones(128, dtype=torch.bool)
    for number in range(2):
        latents = torch.zeros(128, 65_536)
        latents[torch.arange(128), torch.arange(128) + 100 * number] = 1.0
        collector.update(number, torch.arange(128), chosen, latents)
    assert before == collector.nbytes < 150e6
    assert collector.result().fired.sum() == 256
