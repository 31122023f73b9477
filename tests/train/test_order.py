"""The stream of rows: each once an epoch, well mixed, and known at any step."""

from dataclasses import replace
from itertools import chain
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from saeflow.harvest.layout import HookPoint, Layout, Split
from saeflow.harvest.store import Store
from saeflow.harvest.tokens import Packing
from saeflow.train.choose import choose_order
from saeflow.train.fill import Share
from saeflow.train.order import KeptRows, StreamOrder


@st.composite
def all_orders(draw: st.DrawFn) -> StreamOrder:
    """Strips or windows, filtered or not, over splits down to a single row."""
    n_rows = draw(st.integers(1, 300))
    rows_per_strip = draw(st.sampled_from([1, 2, 4, 8, 64, 512]))
    kept = None
    if draw(st.booleans()):
        keep = np.random.default_rng(draw(st.integers(0, 99))).random(n_rows) < draw(
            st.sampled_from([0.02, 0.5, 0.98])
        )
        keep[draw(st.integers(0, n_rows - 1))] = True
        kept = KeptRows.of(np.packbits(keep, bitorder="little"), n_rows, rows_per_strip)
    window = draw(st.sampled_from([0, 0, 1, 2, 3, 100]))
    return StreamOrder(n_rows, rows_per_strip, draw(st.integers(0, 2**32)), window, kept)


orders = all_orders()


def kept_rows(order: StreamOrder) -> list[int]:
    """The rows that an epoch must hold."""
    if order.kept is None:
        return list(range(order.n_rows))
    return list(map(int, np.flatnonzero(np.unpackbits(order.kept.bits, bitorder="little"))))


def stream(order: StreamOrder, first: int, count: int) -> list[int]:
    return list(map(int, order.rows(first, count)))


@given(orders, st.integers(0, 1000))
def test_every_kept_row_comes_once_an_epoch(order: StreamOrder, epoch: int) -> None:
    rows = stream(order, epoch * order.rows_per_epoch, order.rows_per_epoch)
    assert sorted(rows) == kept_rows(order)


@given(orders, st.integers(1, 97))
def test_batches_of_any_size_are_cuts_of_one_stream(order: StreamOrder, batch: int) -> None:
    batch = min(batch, 2 * order.rows_per_epoch)
    n_steps = min(20, -(-3 * order.rows_per_epoch // batch))
    batches = [stream(order, step * batch, batch) for step in range(n_steps)]
    assert {len(rows) for rows in batches} == {batch}
    assert list(chain.from_iterable(batches)) == stream(order, 0, n_steps * batch)


@settings(max_examples=300)
@given(orders, st.integers(2, 8), st.sampled_from([1, 2, 3]))
def test_resumed_at_any_step_of_three_epochs_the_rest_is_the_same(
    order: StreamOrder, n_steps: int, world: int
) -> None:
    """Whoever starts at whatever step, alone or as one of several, reads what is left."""
    batch = max(world, -(-3 * order.rows_per_epoch // n_steps))
    whole = stream(order, 0, n_steps * batch)
    shares = [Share(batch, rank, world) for rank in range(world)]
    for step in range(n_steps):
        fresh = replace(order)  # which remembers nothing of an earlier step
        parts = [stream(fresh, share.first(step), share.rows) for share in shares]
        assert list(chain.from_iterable(parts)) == whole[step * batch : (step + 1) * batch]


@given(orders, st.integers(1, 97), st.integers(1, 6))
def test_the_rest_is_the_same_read_in_one_go(order: StreamOrder, batch: int, step: int) -> None:
    batch = min(batch, order.rows_per_epoch)
    rest = stream(replace(order), step * batch, (7 - step) * batch)
    assert rest == stream(order, 0, 7 * batch)[step * batch :]


@given(orders, st.integers(0, 2000), st.integers(1, 700))
def test_no_run_crosses_a_strip(order: StreamOrder, first: int, count: int) -> None:
    for run in order.runs(first, min(count, 3 * order.rows_per_epoch)):
        assert len(run) > 0
        assert run.start // order.rows_per_strip == (run.stop - 1) // order.rows_per_strip
        assert 0 <= run.start < run.stop <= order.n_rows


@given(orders, st.integers(0, 2000), st.integers(0, 700))
def test_runs_and_strips_are_the_same_rows(order: StreamOrder, first: int, count: int) -> None:
    count = min(count, 3 * order.rows_per_epoch)
    rows = stream(order, first, count)
    assert [row for run in order.runs(first, count) for row in run] == rows
    if not order.window:
        strips = order.strips(first, count)
        assert [row for runs in strips for run in runs for row in run] == rows


def test_a_filter_takes_rows_out_of_the_order_and_moves_no_other() -> None:
    keep = np.arange(4096) % 7 != 0
    kept = KeptRows.of(np.packbits(keep, bitorder="little"), 4096, 8)
    whole, filtered = StreamOrder(4096, 8, seed=1), StreamOrder(4096, 8, seed=1, kept=kept)
    expected = [row for row in stream(whole, 0, 4096) if keep[row]]
    assert stream(filtered, 0, len(expected)) == expected


def test_a_window_mixes_its_strips() -> None:
    order = StreamOrder(2**15, 256, seed=0, window=16)
    rows = np.array(stream(order, 0, 2**15)).reshape(-1, 16 * 256)
    for window in rows:
        assert len(set(window // 256)) == 16
        assert np.mean(np.diff(window) == 1) < 0.01
        assert len(set(window[:256] // 256)) == 16


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


@pytest.mark.parametrize(
    "changed", [{"order": "sequence"}, {"codec": "zstd"}, {"codec": "crc32c"}], ids=str
)
def test_what_is_not_permuted_or_not_plain_is_read_in_windows(
    store: Store, changed: dict[str, Any]
) -> None:
    hook_point = store.layout.hook_points[0]

    def choose(layout: Layout, **options: Any) -> StreamOrder:
        return choose_order(layout, store.train, hook_point, batch_size=512, seed=0, **options)

    chunk = store.layout.rows_per_chunk(hook_point)
    whole = -(-store.train.n_rows // chunk)
    assert choose(store.layout).window == 0
    windowed = choose(replace(store.layout, **changed))
    assert (windowed.rows_per_strip, windowed.window) == (chunk, whole)
    assert choose(store.layout, remote=True).window == whole
    assert choose(store.layout, window_rows=chunk + 1).window == 2


def test_windows_are_a_million_rows_of_a_store_in_sequence_order() -> None:
    split = Split("train", 0, 2**22, 0, 2**16)
    by_order = {
        order: choose_order(
            replace(layout(2**16), order=order, codec="crc32c"),
            split,
            HookPoint("h", (768,)),
            batch_size=4096,
            seed=0,
        )
        for order in ("sequence", "permuted")
    }
    assert by_order["sequence"].window * by_order["sequence"].rows_per_strip == 2**20
    assert by_order["permuted"].window == 64


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
