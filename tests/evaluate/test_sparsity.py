"""Activity of latents and cosines of decoder rows, against numpy."""

from dataclasses import asdict

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from saeflow.evaluate import decoder_cosines, sparsity
from saeflow.evaluate.decoder_cosines import cosine_quantiles, largest_cosines
from saeflow.evaluate.figures import Sparsity
from saeflow.evaluate.sparsity import DENSITY_EDGES, ActiveLatents


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def figures(latents: Tensor) -> Sparsity:
    metric = ActiveLatents(latents.shape[1])
    metric.update(latents)
    return metric.sparsity(torch.tensor([0.5]))


def test_two_rows_by_hand() -> None:
    found = figures(torch.tensor([[1.0, 0.0, 2.0, 0.0], [0.0, 0.0, 0.5, 0.0]]))
    assert (found.l0, found.l1, found.dead, found.dense) == (1.5, 1.75, 2, 2)
    assert found.l0_quantiles == {"0.05": 1, "0.25": 1, "0.5": 1, "0.75": 2, "0.95": 2}
    assert found.density_edges == DENSITY_EDGES
    assert sum(found.density_counts) == 2
    assert found.density_counts[-1] == 1  # always; half of the rows is two bins below
    assert found.density_counts[-2] == 1
    assert (found.decoder_cosine_latents, found.decoder_cosine_quantiles["1"]) == (1, 0.5)


def test_rows_by_l0_by_hand() -> None:
    latents = torch.zeros(5, 200)
    for row, active in enumerate([10, 10, 11, 12, 189]):
        latents[row, :active] = 1
    found = figures(latents)
    assert (found.l0_edges[:3], found.l0_edges[-1]) == ((10, 15, 20), 190)
    assert (found.l0_counts[0], found.l0_counts[-1], sum(found.l0_counts)) == (4, 1, 5)
    alike = figures(torch.ones(7, 3))
    assert (alike.l0_edges, alike.l0_counts) == ((3, 4), (7,))


@given(rows=st.integers(1, 80), seed=st.integers(0, 2**20))
def test_the_histogram_of_l0_has_every_row(rows: int, seed: int) -> None:
    latents = draw(rows, 90, seed=seed) - draw(rows, 1, seed=seed + 1)
    l0 = (latents > 0).sum(1).numpy()
    found = figures(latents)
    assert found.l0_counts == tuple(np.histogram(l0, found.l0_edges)[0].tolist())
    assert len(found.l0_counts) <= 40


@given(rows=st.integers(1, 80), seed=st.integers(0, 2**20))
def test_quantiles_are_exact(rows: int, seed: int) -> None:
    latents = draw(rows, 40, seed=seed) - draw(rows, 1, seed=seed + 1)
    l0 = (latents > 0).sum(1).numpy()
    for name, value in figures(latents).l0_quantiles.items():
        assert value == np.quantile(l0, float(name), method="inverted_cdf")


def test_exactly_a_tenth_is_not_dense_and_lies_above_its_edge() -> None:
    latents = torch.zeros(1000, 3)
    latents[:100, 0] = 1
    latents[:101, 1] = 1
    found = figures(latents)
    assert (found.dense, found.dead) == (1, 1)
    assert found.density_counts[DENSITY_EDGES.index(-1.0)] == 2


def test_densities_under_the_first_edge_are_in_the_first_bin() -> None:
    metric = ActiveLatents(2)
    metric.update(torch.tensor([[1.0, 0.0]]))
    metric.rows_by_l0[0] += 10**8
    found = metric.sparsity(torch.tensor([0.5]))
    assert found.density_counts[0] == 1
    assert sum(found.density_counts) == 1
    assert found.dead == 1


@given(cuts=st.lists(st.integers(0, 70), max_size=5), seed=st.integers(0, 2**20))
def test_batches_order_and_processes_make_no_difference(cuts: list[int], seed: int) -> None:
    latents = (draw(70, 20, seed=seed) - 0.5).relu()
    order = torch.randperm(70, generator=torch.Generator().manual_seed(seed))
    parts = [ActiveLatents(20) for _ in range(2)]
    for i, (a, b) in enumerate(zip([0, *sorted(cuts)], [*sorted(cuts), 70], strict=True)):
        parts[i % 2].update(latents[order[a:b]])
    parts[0].merge_state(parts[1])
    found, whole = asdict(parts[0].sparsity(torch.ones(1))), asdict(figures(latents))
    assert found.pop("l1") == pytest.approx(whole.pop("l1"), rel=1e-9)
    whole["decoder_cosine_quantiles"] = found["decoder_cosine_quantiles"]
    assert found == whole
    assert torch.equal(parts[0].compute()["fired"], (latents > 0).sum(0))


def test_large_batches_are_counted_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    latents = (draw(50, 20) - 0.5).relu()
    whole = figures(latents)
    monkeypatch.setattr(sparsity, "_AT_ONCE", 60)
    assert figures(latents).density_counts == whole.density_counts
    assert figures(latents).l0_quantiles == whole.l0_quantiles


def numpy_largest(W_dec: Tensor) -> Tensor:
    rows = W_dec.double().numpy()
    unit = rows / np.linalg.norm(rows, axis=1, keepdims=True)
    cosines = unit @ unit.T
    np.fill_diagonal(cosines, -2)
    return torch.from_numpy(cosines.max(1))


def test_each_latents_nearest_double(monkeypatch: pytest.MonkeyPatch) -> None:
    W_dec = draw(90, 7) * (1 + torch.arange(90.0))[:, None]
    W_dec[3] = 2 * W_dec[80]
    monkeypatch.setattr(decoder_cosines, "_AT_ONCE", 1000)  # 11 latents at a time
    found = largest_cosines(W_dec)
    torch.testing.assert_close(found.double(), numpy_largest(W_dec), rtol=0, atol=1e-6)
    assert found[3].item() == pytest.approx(1)


def test_some_latents_spread_evenly_are_held_against_all() -> None:
    W_dec = draw(101, 7)
    found = largest_cosines(W_dec, latents=5)
    expected = numpy_largest(W_dec)[[0, 25, 50, 75, 100]]
    torch.testing.assert_close(found.double(), expected, rtol=0, atol=1e-6)


def test_opposite_rows_zero_rows_and_a_latent_alone() -> None:
    assert largest_cosines(torch.tensor([[1.0, 0.0], [-1.0, 0.0]])).tolist() == [-1.0, -1.0]
    assert largest_cosines(torch.tensor([[1.0, 0.0], [0.0, 0.0]])).tolist() == [0.0, 0.0]
    alone = largest_cosines(torch.ones(1, 3))
    assert alone.tolist() == []
    assert cosine_quantiles(alone) == {}


def test_quantiles_of_cosines_by_name() -> None:
    found = cosine_quantiles(torch.linspace(0, 1, 101))
    assert found == pytest.approx({"0.05": 0.05, "0.5": 0.5, "0.95": 0.95, "1": 1.0})
