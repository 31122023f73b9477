"""Same-document mates in a batch: counted, reckoned, and as few as a default store promises."""

from dataclasses import replace
from itertools import combinations
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from saeflow.harvest.layout import Codec, HookPoint, Layout, Order, Split, choose_rows_per_shard
from saeflow.harvest.shards import place_shard
from saeflow.harvest.store import Store
from saeflow.harvest.tokens import Packing
from saeflow.train.choose import choose_order
from saeflow.train.mixing import expected_mates, ideal_mates, mates, measure_mixing
from saeflow.train.order import StreamOrder

BATCH = 4096


def stored_documents(
    lengths: np.ndarray, *widths: int, order: Order = "permuted", codec: Codec = "bytes"
) -> tuple[Layout, np.ndarray]:
    """The layout that a harvest would choose, and the document of each of its stored rows."""
    n_rows = int(lengths.sum())
    rows_per_shard = choose_rows_per_shard(max(widths), 2, n_rows)
    split = Split("train", 0, n_rows, len(lengths), rows_per_shard)
    layout = Layout(
        dtype="bfloat16",
        packing=Packing(context_size=129, bos=0, separator=1),
        order=order,
        codec=codec,
        seed=0,
        rows_per_shard=rows_per_shard,
        hook_points=tuple(HookPoint(f"{width} wide", (width,)) for width in widths),
        splits={"train": split},
    )
    stream = np.repeat(np.arange(len(lengths), dtype=np.uint32), lengths)
    stored = np.empty_like(stream)
    for k in range(split.n_shards):
        place = place_shard(layout, split, k)
        stored[place.rows.start + place.places] = stream[place.rows.start : place.rows.stop]
    return layout, stored


def mates_in_batches(layout: Layout, stored: np.ndarray) -> tuple[float, StreamOrder]:
    """Mates in eight batches of the order that `saeflow train` would take, and that order."""
    split, found = layout.splits["train"], []
    for seed in range(8):
        order = choose_order(layout, split, layout.hook_points[0], batch_size=BATCH, seed=seed)
        found.append(mates(stored[order.rows(37 * seed * BATCH, BATCH)]))
    return float(np.mean(found)), order


def lengths_of(kind: str, n_rows: int = 2**22) -> np.ndarray:
    """Documents of 512 rows on average, to `n_rows` together."""
    if kind == "equal":
        return np.full(n_rows // 512, 512)
    drawn = np.random.default_rng(0).geometric(1 / 512, n_rows // 256)
    whole = drawn[: np.searchsorted(np.cumsum(drawn), n_rows)]
    return np.append(whole, n_rows - whole.sum())


@pytest.mark.parametrize("kind", ["equal", "geometric"])
@pytest.mark.parametrize("d_in", [768, 4096])
def test_a_default_store_is_mixed_as_promised(d_in: int, kind: str) -> None:
    """At most 0.6 mates more than a shuffle of all rows has, and what arithmetic says."""
    lengths = lengths_of(kind)
    layout, stored = stored_documents(lengths, d_in)
    found, order = mates_in_batches(layout, stored)
    ideal = ideal_mates(lengths, BATCH)
    expected = expected_mates(lengths, order, layout.rows_per_shard, BATCH)
    unshuffled = mates(np.repeat(np.arange(len(lengths), dtype=np.uint32), lengths)[:BATCH])
    print(
        f"d_in {d_in}, {kind} documents: {found:.2f} mates, ideal {ideal:.2f}, "
        f"arithmetic {expected:.2f}, unshuffled {unshuffled:.0f}"
    )
    assert found <= ideal + 0.6
    assert found == pytest.approx(expected, rel=0.1)
    assert unshuffled > 300


def test_a_narrow_hook_point_beside_a_wide_one_is_mixed_as_well() -> None:
    """Its rows could be read in strips that are long for the shards, which the wide one sets."""
    lengths = lengths_of("equal")
    layout, stored = stored_documents(lengths, 128, 4096)
    found, _ = mates_in_batches(layout, stored)
    assert found <= ideal_mates(lengths, BATCH) + 0.6


@pytest.mark.parametrize(
    ("options", "excess"), [({"codec": "zstd"}, 0.6), ({"order": "sequence"}, 2)], ids=str
)
def test_windows_mix_what_strips_alone_would_not(options: dict[str, Any], excess: float) -> None:
    lengths = lengths_of("equal")
    layout, stored = stored_documents(lengths, 768, **options)
    found, order = mates_in_batches(layout, stored)
    block = order.rows_per_strip if layout.order == "sequence" else layout.rows_per_shard
    assert order.window > 0
    assert found <= ideal_mates(lengths, BATCH) + excess
    assert found == pytest.approx(expected_mates(lengths, order, block, BATCH), rel=0.1)


def test_mates_are_the_other_rows_of_a_rows_document() -> None:
    assert mates(np.array([1, 1, 1, 2], np.uint32)) == (2 + 2 + 2 + 0) / 4
    assert mates(np.array([5], np.uint32)) == 0


@given(st.lists(st.integers(1, 5), min_size=1, max_size=4), st.integers(1, 6))
def test_the_ideal_is_the_average_over_all_batches_there_are(
    lengths: list[int], batch_size: int
) -> None:
    documents = np.repeat(np.arange(len(lengths), dtype=np.uint32), lengths)
    batch_size = min(batch_size, len(documents))
    every = [mates(np.array(batch)) for batch in combinations(documents, batch_size)]
    assert ideal_mates(np.array(lengths), batch_size) == pytest.approx(np.mean(every))


@given(
    st.lists(st.integers(1, 40), min_size=1, max_size=20),
    st.sampled_from([1, 2, 8, 16]),
    st.sampled_from([0, 3]),
)
def test_a_store_of_one_permuted_shard_is_mixed_ideally(
    lengths: list[int], rows_per_strip: int, window: int
) -> None:
    n_rows = sum(lengths)
    order = StreamOrder(n_rows, rows_per_strip, seed=0, window=window)
    batch_size = min(n_rows, 16)
    expected = expected_mates(np.array(lengths), order, n_rows, batch_size)
    assert expected == pytest.approx(ideal_mates(np.array(lengths), batch_size))


def test_a_real_store_is_measured_as_its_arrays_say(store: Store) -> None:
    """The documents' numbers that are read strip by strip are those of the rows."""
    hook_point = store.layout.hook_points[0]
    found = measure_mixing(store, hook_point)
    assert found is not None
    documents = np.asarray(store.array("doc")[:])
    n_steps = store.train.n_rows // found.batch_size
    by_hand = []
    for k in range(found.batches):
        order = choose_order(
            store.layout, store.train, hook_point, batch_size=found.batch_size, seed=k
        )
        step = k * n_steps // found.batches
        rows = order.rows(step * found.batch_size, found.batch_size)
        by_hand.append(mates(documents[rows]))
    assert found.mates == pytest.approx(np.mean(by_hand))
    assert found.batch_size == BATCH
    assert found.rows_per_strip == order.rows_per_strip
    _, lengths = np.unique(documents, return_counts=True)
    assert found.ideal == pytest.approx(ideal_mates(lengths, BATCH))
    assert found.mates == pytest.approx(found.expected, rel=0.1)


def test_a_store_that_does_not_say_which_rows_are_of_one_document(store: Store) -> None:
    imported = replace(store, layout=replace(store.layout, packing=None, row_values=("token",)))
    assert measure_mixing(imported, store.layout.hook_points[0]) is None
