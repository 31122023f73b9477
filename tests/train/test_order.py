"""The stream of rows: each once an epoch, well mixed, and known at any step."""

from dataclasses import replace
from itertools import chain

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from saeflow.harvest.layout import HookPoint, Layout, Split
from saeflow.harvest.store import Store
from saeflow.harvest.tokens import Packing
from saeflow.train.order import StreamOrder, choose_order

orders = st.builds(
    StreamOrder,
    n_rows=st.integers(1, 300),
    rows_per_strip=st.sampled_from([1, 2, 4, 8, 64, 512]),
    seed=st.integers(0, 2**32),
)


def stream(order: StreamOrder, first: int, count: int) -> list[int]:
    return [row for run in order.runs(first, count) for row in run]


@given(orders, st.integers(0, 1000))
def test_every_row_comes_once_an_epoch(order: StreamOrder, epoch: int) -> None:
    rows = stream(order, epoch * order.n_rows, order.n_rows)
    assert sorted(rows) == list(range(order.n_rows))


@given(orders, st.integers(1, 97))
def test_batches_of_any_size_are_cuts_of_one_stream(order: StreamOrder, batch: int) -> None:
    n_steps = -(-3 * order.n_rows // batch)
    batches = [stream(order, step * batch, batch) for step in range(n_steps)]
    assert {len(rows) for rows in batches} == {batch}
    assert list(chain.from_iterable(batches)) == stream(order, 0, n_steps * batch)


@given(orders, st.integers(1, 50))
def test_resumed_at_any_step_the_rest_is_the_same(order: StreamOrder, batch: int) -> None:
    n_steps = min(20, 2 * order.n_rows // batch + 1)
    whole = stream(order, 0, n_steps * batch)
    for step in range(n_steps):
        rest = stream(order, step * batch, (n_steps - step) * batch)
        assert rest == whole[step * batch :]


@given(orders, st.integers(0, 2000), st.integers(1, 700))
def test_no_run_crosses_a_strip(order: StreamOrder, first: int, count: int) -> None:
    for run in order.runs(first, count):
        assert len(run) > 0
        assert run.start // order.rows_per_strip == (run.stop - 1) // order.rows_per_strip
        assert 0 <= run.start < run.stop <= order.n_rows


def test_a_short_last_strip_comes_last() -> None:
    assert stream(StreamOrder(10, 4, seed=3), 8, 2) == [8, 9]


def test_epochs_differ() -> None:
    order = StreamOrder(4096, 8, seed=0)
    first, second = stream(order, 0, 4096), stream(order, 4096, 4096)
    assert np.mean(np.equal(first, second)) < 0.05


def test_seeds_differ() -> None:
    one, other = (stream(StreamOrder(4096, 8, seed), 0, 4096) for seed in (0, 1))
    assert np.mean(np.equal(one, other)) < 0.05


def layout(rows_per_shard: int, dtype: str = "bfloat16") -> Layout:
    return Layout(
        dtype=dtype,
        packing=Packing(context_size=16, bos=0, separator=1),
        order="permuted",
        seed=0,
        rows_per_shard=rows_per_shard,
        hook_points=(),
    )


@given(
    rows_per_shard=st.integers(1, 2**18),
    d_in=st.integers(1, 20_000),
    batch_size=st.integers(1, 2**16),
    dtype=st.sampled_from(["bfloat16", "float32"]),
)
def test_strips_never_cross_a_shard(
    rows_per_shard: int, d_in: int, batch_size: int, dtype: str
) -> None:
    split = Split("train", 0, 10 * rows_per_shard, 0, rows_per_shard)
    chosen = choose_order(
        layout(rows_per_shard, dtype), split, HookPoint("h", (d_in,)), batch_size=batch_size, seed=0
    )
    assert rows_per_shard % chosen.rows_per_strip == 0
    assert chosen.rows_per_strip == 1 or batch_size // chosen.rows_per_strip >= 32


def test_wider_rows_are_read_in_shorter_strips() -> None:
    split = Split("train", 0, 2**20, 0, 2**16)
    lengths = [
        choose_order(
            layout(2**16), split, HookPoint("h", (d_in,)), batch_size=2**14, seed=0
        ).rows_per_strip
        for d_in in (512, 2048, 8192)
    ]
    assert lengths[0] > lengths[1] > lengths[2]


def test_a_store_in_sequence_order_is_read_row_by_row(store: Store) -> None:
    hook_point = store.layout.hook_points[0]

    def strip(layout: Layout) -> int:
        return choose_order(layout, store.train, hook_point, batch_size=512, seed=0).rows_per_strip

    assert strip(replace(store.layout, order="sequence")) == 1
    assert strip(store.layout) > 1


def test_batches_are_mixed_from_all_over_the_store() -> None:
    n_rows, n_shards, batch = 2**16, 16, 2048
    rows = np.array(stream(StreamOrder(n_rows, 64, seed=7), 0, n_rows))
    assert abs(np.corrcoef(np.arange(n_rows), rows)[0, 1]) < 0.1
    for shards in rows.reshape(-1, batch) // (n_rows // n_shards):
        assert len(set(shards)) > n_shards / 2
        assert np.bincount(shards).max() < batch / 3


def test_the_epochs_do_not_follow_each_other() -> None:
    """What was late in one epoch is neither late nor early in the next."""
    order = StreamOrder(2**15, 16, seed=1)
    first, second = (np.argsort(stream(order, e * 2**15, 2**15)) for e in (0, 1))
    assert abs(np.corrcoef(first, second)[0, 1]) < 0.1
