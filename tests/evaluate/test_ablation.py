"""What ablations put in: nothing, the mean, rows of other tokens."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from saeflow.evaluate.ablation import Resampler, mean_rows, zero_rows

SIZE = 50
SEQUENCES, POSITIONS = torch.arange(SIZE) // 5, torch.arange(SIZE) % 5 + 1
NUMBERS = torch.arange(SIZE, dtype=torch.float32)[:, None]
POOL = {"a": NUMBERS.expand(-1, 3).contiguous(), "b": -NUMBERS}


def resampler(seed: int = 0) -> Resampler:
    return Resampler(POOL, SEQUENCES, POSITIONS, seed)


def test_zero_and_mean() -> None:
    rows = torch.arange(6, dtype=torch.float32).view(3, 2)
    assert zero_rows(rows).tolist() == [[0, 0]] * 3
    assert mean_rows(torch.tensor([1.0, 2.0], dtype=torch.float64), rows).tolist() == [[1, 2]] * 3


@given(st.integers(0, 2**64 - 1), st.integers(1, SIZE - 1))
def test_a_draw_is_of_its_place_alone(seed: int, cut: int) -> None:
    """However sequences are batched, and on whatever side of a cut a row is."""
    whole = resampler(seed).rows("a", SEQUENCES, POSITIONS)
    parts = [
        resampler(seed).rows("a", SEQUENCES[part], POSITIONS[part])
        for part in (slice(cut), slice(cut, None))
    ]
    assert torch.equal(torch.cat(parts), whole)


@given(st.integers(0, 2**32))
def test_no_row_is_given_back_to_its_own_place(seed: int) -> None:
    drawn = resampler(seed).rows("b", SEQUENCES, POSITIONS)
    assert not (drawn == POOL["b"]).any()


def test_with_two_rows_each_gets_the_other() -> None:
    pair = Resampler({"a": POOL["a"][:2]}, SEQUENCES[:2], POSITIONS[:2], seed=3)
    assert pair.rows("a", SEQUENCES[:2], POSITIONS[:2])[:, 0].tolist() == [1, 0]


def test_all_hook_points_get_rows_of_one_token() -> None:
    drawn = [resampler().rows(name, SEQUENCES, POSITIONS)[:, 0] for name in ("a", "b")]
    assert torch.equal(drawn[0], -drawn[1])


def test_seeds_differ_and_every_row_is_as_likely() -> None:
    sequences = torch.arange(20_000)  # of which the pool has none
    drawn = [resampler(seed).rows("b", sequences + 99, sequences % 7) for seed in (0, 1)]
    assert not torch.equal(drawn[0], drawn[1])
    for one in drawn:
        counts = torch.bincount((-one[:, 0]).long(), minlength=SIZE).double()
        expected = len(sequences) / SIZE
        chi_squared = float(((counts - expected) ** 2 / expected).sum())
        assert chi_squared < 49 + 4 * (2 * 49) ** 0.5  # four deviations over its mean


def test_the_hash_is_splitmix64() -> None:
    """Of seed 1234567: the reference implementation's first output is 6457827717110365317."""
    from saeflow.evaluate.ablation import _mix

    assert _mix(torch.tensor([1234567])).tolist() == [6457827717110365317]


def test_a_pool_of_one_row_is_refused() -> None:
    with pytest.raises(ValueError, match="two rows or more"):
        Resampler({"a": POOL["a"][:1]}, SEQUENCES[:1], POSITIONS[:1], seed=0)
