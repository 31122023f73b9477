"""Hot strips out of memory maps: the same rows, and only where that is safe and quick."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from saeflow.errors import SaeflowError
from saeflow.harvest.reader import RowArray, RowReader
from saeflow.harvest.store import Store
from saeflow.train.fill import Share, StripFiller, wait_for
from saeflow.train.mapped import MappedStrips
from saeflow.train.order import StreamOrder

HOOK = "blocks.0.hook_resid_post"


def array_of(store: Store) -> RowArray:
    return store.activations(store.hook_point(HOOK), store.train)


def bits(store: Store) -> np.ndarray:
    return np.asarray(store.array(f"acts/{HOOK}")[:])


def filled(store: Store, order: StreamOrder, batch: int, step: int, *, mapped: bool) -> bytes:
    filler = StripFiller([array_of(store)], order, Share(batch), mapped=mapped)
    target = bytearray(batch * 64)
    wait_for(filler.begin(step, [memoryview(target)]))
    filler.close()
    return bytes(target)


@given(
    rows_per_strip=st.sampled_from([1, 8, 64]),
    batch=st.integers(1, 700),
    step=st.integers(0, 40),
    copying=st.sampled_from([1, 2]),
)
def test_batches_of_any_size_are_the_orders_rows(
    store: Store, rows_per_strip: int, batch: int, step: int, copying: int
) -> None:
    """Also those that begin or end within a strip, or at the border of two epochs."""
    order = StreamOrder(store.train.n_rows, rows_per_strip, seed=5)
    expected = bits(store)[order.rows(step * batch, batch)].tobytes()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("saeflow.train.fill.COPYING", copying)
        for mapped in (False, True):
            assert filled(store, order, batch, step, mapped=mapped) == expected


def test_hot_strips_are_copied_and_cold_ones_left_to_others(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    reader = RowReader(array_of(store))
    maps, strips = MappedStrips(reader, 64), [9, 0, 3]
    rows = np.concatenate([np.arange(s * 64, s * 64 + 64) for s in strips])
    target = bytearray(len(rows) * 64)
    assert bits(store)[rows].tobytes() != target
    assert maps.copy(strips, memoryview(target))
    assert target == bits(store)[rows].tobytes()
    monkeypatch.setattr(MappedStrips, "_are_cached", lambda *_: False)
    assert not maps.copy(strips, memoryview(target))
    maps.close()


def test_a_damaged_shard_is_not_mapped(store: Store, tmp_path: Path) -> None:
    array = array_of(store)
    for shard in (0, 1):
        content = (Path(array.path) / array.file(shard)).read_bytes()
        file = tmp_path / array.file(shard)
        file.parent.mkdir(parents=True)
        file.write_bytes(content[: len(content) - 9 * shard])
    copy = RowArray(**{**vars(array), "path": str(tmp_path)})
    maps, target = MappedStrips(RowReader(copy), 64), memoryview(bytearray(64 * 64))
    assert maps.copy([0], target)
    with pytest.raises(SaeflowError, match="c/1/0 is damaged"):
        maps.copy([512 // 64], target)
    maps.close()


@pytest.mark.parametrize(
    "changed",
    [
        {"codec": "zstd"},
        {"rows_per_chunk": 0},
        {"width": 3, "rows_per_shard": 100},
        {"path": "https://example.org/store/acts/h"},
    ],
    ids=str,
)
def test_what_does_not_fit_is_read_in_another_way(store: Store, changed: dict[str, Any]) -> None:
    array = array_of(store)
    assert MappedStrips.fit(array)
    assert not MappedStrips.fit(RowArray(**{**vars(array), **changed}))
