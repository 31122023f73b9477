"""The permutation of rows inside a shard."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from saeflow.harvest.permutation import derive_key, permute

KEYS = st.integers(0, 2**64 - 1)


@given(n=st.integers(1, 5000), key=KEYS)
def test_every_place_is_taken_once(n: int, key: int) -> None:
    assert sorted(permute(np.arange(n), n, key)) == list(range(n))


@given(n=st.integers(1, 2**40), key=KEYS, index=st.integers(0, 2**40))
def test_a_row_goes_to_the_same_place_alone_and_among_others(n: int, key: int, index: int) -> None:
    index %= n
    alone = permute(np.array([index]), n, key)
    among = permute(np.array([0, index, n - 1]), n, key)
    assert 0 <= alone[0] < n
    assert among[1] == alone[0]


@given(n=st.integers(100, 2000), key=KEYS)
def test_another_key_is_another_order(n: int, key: int) -> None:
    rows = np.arange(n)
    one, other = permute(rows, n, key), permute(rows, n, key ^ 1)
    assert (one == other).mean() < 0.1
    assert (one == rows).mean() < 0.1


def test_neighbours_are_spread_over_the_whole_shard() -> None:
    """Any 64 consecutive stored rows come from everywhere: no strip holds one context."""
    n = 2**14
    origin = np.argsort(permute(np.arange(n), n, derive_key(0, "shard")))
    in_quarters = np.stack(
        [np.bincount(s // (n // 4), minlength=4) for s in origin.reshape(-1, 64)]
    )
    assert in_quarters.min() > 0
    assert abs(np.corrcoef(origin[:-1], origin[1:])[0, 1]) < 0.03


def test_keys_follow_the_seed_and_every_name() -> None:
    keys = [
        derive_key(0, "a", "b"),
        derive_key(1, "a", "b"),
        derive_key(0, "ab"),
        derive_key(0, "a"),
    ]
    assert len(set(keys)) == 4
    assert derive_key(0, "a", "b") == keys[0]
    assert all(0 <= key < 2**64 for key in keys)
