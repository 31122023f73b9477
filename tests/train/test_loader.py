"""The loader: what zarr reads at those rows, in that order, whatever the threads do."""

import shutil
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from saeflow.errors import SaeflowError
from saeflow.harvest.store import Store, open_store
from saeflow.train.loader import Loader
from saeflow.train.order import choose_order

HOOKS = ("blocks.0.hook_resid_post", "blocks.1.attn.hook_z")


def loader_of(store: Store, hook: str = HOOKS[0], batch_size: int = 300, seed: int = 0) -> Loader:
    hook_point = store.hook_point(hook)
    order = choose_order(store.layout, store.train, hook_point, batch_size=batch_size, seed=seed)
    return Loader(store, hook_point, order, batch_size, torch.device("cpu"))


def rows_of(loader: Loader, step: int) -> list[int]:
    runs = loader.order.runs(step * loader.batch_size, loader.batch_size)
    return [row for run in runs for row in run]


@pytest.mark.parametrize("hook", HOOKS)
def test_batches_are_what_zarr_reads(
    store: Store, zarr_rows: Callable[[str], Tensor], hook: str
) -> None:
    loader, expected = loader_of(store, hook), zarr_rows(hook)
    n_steps = 2 * store.train.n_rows // 300  # over the border of two epochs
    for step, batch in enumerate(loader.batches(0, n_steps)):
        assert batch.dtype == torch.float32
        assert torch.equal(batch, expected[rows_of(loader, step)])
    assert step == n_steps - 1


def test_no_row_is_of_a_held_out_document(store: Store) -> None:
    loader = loader_of(store)
    read = np.concatenate([rows_of(loader, step) for step in range(store.train.n_rows // 300 + 1)])
    trained_on = set(np.asarray(store.array("doc")[:])[read].tolist())
    held_out = set(np.asarray(store.array("heldout/doc")[:]).tolist())
    assert len(trained_on) > 50
    assert len(held_out) > 10
    assert not trained_on & held_out


def test_from_a_later_step_the_batches_are_the_same(store: Store) -> None:
    loader = loader_of(store)
    whole = list(loader.batches(0, 12))
    rest = list(loader_of(store).batches(7, 12))
    assert len(rest) == 5
    assert all(torch.equal(a, b) for a, b in zip(rest, whole[7:], strict=True))


def test_reading_ahead_does_not_change_the_order(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    loader = loader_of(store)
    plain = [loader.read(step).float() for step in range(8)]
    read = Loader.read

    def unsteady(self: Loader, step: int) -> Tensor:
        time.sleep(0.02 if step % 3 == 0 else 0)
        return read(self, step)

    monkeypatch.setattr(Loader, "read", unsteady)
    ahead = list(loader.batches(0, 8))
    assert all(torch.equal(a, b) for a, b in zip(plain, ahead, strict=True))


def test_little_is_read_ahead(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """A trainer that stops early leaves no queue, and memory is bounded."""
    seen: list[int] = []
    read = Loader.read

    def noted(self: Loader, step: int) -> Tensor:
        seen.append(step)
        return read(self, step)

    monkeypatch.setattr(Loader, "read", noted)
    batches = loader_of(store).batches(0, 1000)
    next(batches)
    batches.close()  # type: ignore[attr-defined]  # it is a generator
    assert len(seen) <= 4


def test_waiting_for_slow_storage_is_counted(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    loader, read = loader_of(store), Loader.read

    def slow(self: Loader, step: int) -> Tensor:
        time.sleep(0.05)
        return read(self, step)

    monkeypatch.setattr(Loader, "read", slow)
    assert len(list(loader.batches(0, 4))) == 4
    assert loader.waited > 0.1


def damaged(store: Path, tmp_path: Path) -> tuple[Path, Path]:
    """A copy of the store, and one shard file of it."""
    copy = shutil.copytree(store, tmp_path / "copy")
    return copy, copy / "acts" / HOOKS[0] / "c" / "3" / "0"


def test_a_missing_shard_is_an_error_of_the_trainer(tiny_store: Path, tmp_path: Path) -> None:
    copy, shard = damaged(tiny_store, tmp_path)
    shard.unlink()
    with pytest.raises(SaeflowError, match=f"{shard} can't be opened"):
        list(loader_of(open_store(copy)).batches(0, 40))


def test_a_shard_cut_short_is_an_error_of_the_trainer(tiny_store: Path, tmp_path: Path) -> None:
    copy, shard = damaged(tiny_store, tmp_path)
    shard.write_bytes(shard.read_bytes()[:-100])
    with pytest.raises(SaeflowError, match=f"{shard} is damaged"):
        list(loader_of(open_store(copy)).batches(0, 40))
