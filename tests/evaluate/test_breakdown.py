"""Losses by bins against plain means, and the bins' borders."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from saeflow.errors import BadInputError
from saeflow.evaluate.breakdown import LossBreakdown, frequency_bins, joined, position_bins


def test_positions_double() -> None:
    bins = position_bins(100)
    assert bins.labels == ("0", "1", "2-3", "4-7", "8-15", "16-31", "32-63", "64-100")
    positions = torch.tensor([0, 1, 2, 3, 4, 7, 8, 31, 32, 63, 64, 100])
    assert bins.of(positions).tolist() == [0, 1, 2, 2, 3, 3, 4, 5, 6, 6, 7, 7]


@given(last=st.integers(0, 5000))
def test_every_position_is_in_the_bin_whose_label_has_it(last: int) -> None:
    bins = position_bins(last)
    found = bins.of(torch.arange(last + 1)).tolist()
    assert set(found) == set(range(len(bins.labels)))
    for position, bin_ in enumerate(found):
        low, _, high = bins.labels[bin_].partition("-")
        assert int(low) <= position <= int(high or low)


def test_frequencies_by_powers_of_ten() -> None:
    bins = frequency_bins()
    assert bins.labels == (
        "under 1e-6",
        "1e-6 to 1e-5",
        "1e-5 to 1e-4",
        "1e-4 to 1e-3",
        "1e-3 to 1e-2",
        "over 1e-2",
    )
    shares = torch.tensor([0.0, 9e-7, 1e-6, 5e-5, 1e-4, 0.009, 0.01, 1.0], dtype=torch.float64)
    assert bins.of(shares).tolist() == [0, 0, 1, 2, 3, 4, 5, 5]


def test_means_by_hand_and_an_empty_bin() -> None:
    metric = LossBreakdown(("0", "1", "2-3"), ("clean", "spliced"))
    metric.update(
        torch.tensor([2, 0, 2]),
        {"clean": torch.tensor([1.0, 5.0, 2.0]), "spliced": torch.tensor([2.0, 6.0, 4.0])},
    )
    found = metric.breakdown()
    assert found.labels == ("0", "1", "2-3")
    assert found.count == (1, 0, 2)
    assert found.losses == {"clean": (5.0, None, 1.5), "spliced": (6.0, None, 3.0)}


def draw(seed: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    loss = torch.rand(90, generator=generator) * 10
    return torch.randint(5, (90,), generator=generator), loss


@given(cuts=st.lists(st.integers(0, 90), max_size=5), seed=st.integers(0, 2**20))
def test_batches_order_and_processes_make_no_difference(cuts: list[int], seed: int) -> None:
    bins, loss = draw(seed)
    order = torch.randperm(90, generator=torch.Generator().manual_seed(seed))
    parts = [LossBreakdown("abcde", ["clean"]) for _ in range(2)]
    for i, (a, b) in enumerate(zip([0, *sorted(cuts)], [*sorted(cuts), 90], strict=True)):
        rows = order[a:b]
        parts[i % 2].update(bins[rows], {"clean": loss[rows]})
    parts[0].merge_state(parts[1])
    expected = torch.stack([loss.double()[bins == each].mean() for each in range(5)])
    torch.testing.assert_close(parts[0].compute()[0], expected, rtol=1e-9, atol=0, equal_nan=True)


def test_shared_and_own_passes_are_joined() -> None:
    bins, loss = draw(0)
    shared, own = LossBreakdown("abcde", ["clean"]), LossBreakdown("abcde", ["spliced"])
    shared.update(bins, {"clean": loss})
    own.update(bins, {"spliced": loss * 2})
    both = joined(shared.breakdown(), own.breakdown())
    assert both.losses["spliced"] == pytest.approx([2 * (x or 0) for x in both.losses["clean"]])
    own.update(bins[:1], {"spliced": loss[:1]})
    with pytest.raises(BadInputError, match="breakdowns of 90 and of 91 predictions"):
        joined(shared.breakdown(), own.breakdown())


def test_a_pass_without_losses_is_refused() -> None:
    metric = LossBreakdown("ab", ["clean", "spliced"])
    with pytest.raises(BadInputError, match="losses of clean where clean, spliced are broken"):
        metric.update(torch.tensor([0]), {"clean": torch.ones(1)})
