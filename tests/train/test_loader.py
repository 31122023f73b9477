"""The loader: what zarr reads at those rows, in that order, whoever reads them ahead."""

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from saeflow.errors import SaeflowError
from saeflow.harvest.store import Store, open_store
from saeflow.train.choose import choose_order
from saeflow.train.fill import Share, StripFiller
from saeflow.train.filters import kept_bits
from saeflow.train.loader import Loader
from saeflow.train.reader_process import Kind, Reader, Task
from saeflow.train.row_filter import RowFilter

HOOKS = ("blocks.0.hook_resid_post", "blocks.1.attn.hook_z")
CPU = torch.device("cpu")
SHARE = Share(300)
ALL = RowFilter()


def loader_of(
    store: Store,
    *hooks: str,
    share: Share = SHARE,
    kind: Kind = "thread",
    wanted: RowFilter = ALL,
    window_rows: int | None = None,
) -> Loader:
    hook_points = tuple(store.hook_point(hook) for hook in hooks or HOOKS[:1])
    order = choose_order(
        store.layout,
        store.train,
        hook_points[0],
        batch_size=share.batch_size,
        seed=0,
        window_rows=window_rows,
        kept_bits=kept_bits(store, hook_points[0], wanted),
    )
    return Loader(store, hook_points, order, share, CPU, kind)


def rows_of(loader: Loader, step: int) -> list[int]:
    return list(map(int, loader.order.rows(loader.share.first(step), loader.share.rows)))


def read_all(loader: Loader, n_steps: int) -> list[Tensor]:
    return list(loader.batches(0, n_steps))


def alike(ours: list[Tensor], theirs: list[Tensor]) -> bool:
    return all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))


@pytest.mark.parametrize("kind", ["thread", "process"])
@pytest.mark.parametrize("window_rows", [None, 1024], ids=["strips", "windows"])
def test_batches_are_what_zarr_reads(
    store: Store, zarr_rows: Callable[[str], Tensor], kind: Kind, window_rows: int | None
) -> None:
    wanted = RowFilter(special=True, first_position=2)
    loader = loader_of(store, kind=kind, wanted=wanted, window_rows=window_rows)
    expected = zarr_rows(HOOKS[0])
    n_steps = 2 * loader.order.rows_per_epoch // 300 + 1  # over the border of two epochs
    for step, batch in enumerate(loader.batches(0, n_steps)):
        assert batch.dtype == torch.float32
        assert torch.equal(batch, expected[rows_of(loader, step)])
    assert step == n_steps - 1


def test_several_hook_points_of_the_same_rows(
    store: Store, zarr_rows: Callable[[str], Tensor]
) -> None:
    loader, expected = loader_of(store, *HOOKS), [zarr_rows(hook) for hook in HOOKS]
    for step, batches in enumerate(loader.all_batches(0, 3)):
        rows = rows_of(loader, step)
        assert alike(list(batches), [hook[rows] for hook in expected])


@pytest.mark.parametrize("world", [2, 3])
def test_ranks_read_their_parts_of_the_same_batches(store: Store, world: int) -> None:
    whole = read_all(loader_of(store), 12)
    parts = [read_all(loader_of(store, share=Share(300, r, world)), 12) for r in range(world)]
    assert alike([torch.cat(shares) for shares in zip(*parts, strict=True)], whole)


@pytest.mark.parametrize("window_rows", [None, 1024], ids=["strips", "windows"])
def test_from_a_later_step_the_batches_are_the_same(store: Store, window_rows: int | None) -> None:
    whole = read_all(loader_of(store, window_rows=window_rows), 24)
    for first in (1, 7, 23):
        rest = list(loader_of(store, window_rows=window_rows).batches(first, 24))
        assert alike(rest, whole[first:])


def test_a_batch_read_alone_is_the_same(store: Store) -> None:
    loader = loader_of(store)
    assert alike([loader.read(step) for step in range(4)], read_all(loader, 4))


def test_no_row_is_of_a_held_out_document(store: Store) -> None:
    loader = loader_of(store)
    read = np.concatenate([rows_of(loader, step) for step in range(store.train.n_rows // 300 + 1)])
    trained_on = set(np.asarray(store.array("doc")[:])[read].tolist())
    held_out = set(np.asarray(store.array("heldout/doc")[:]).tolist())
    assert len(trained_on) > 50
    assert len(held_out) > 10
    assert not trained_on & held_out


def test_slow_reads_do_not_change_the_order(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    plain, fill = read_all(loader_of(store), 8), StripFiller._fill

    def unsteady(self: StripFiller, step: int, targets: Any) -> Any:
        time.sleep(0.02 if step % 2 == 0 else 0)
        return fill(self, step, targets)

    monkeypatch.setattr(StripFiller, "_fill", unsteady)
    loader = loader_of(store)
    assert alike(read_all(loader, 8), plain)
    assert loader.waited > 0.02
    figures = loader.figures()
    assert 0 < figures["waited"] <= 1
    assert figures["rows_per_s"] == pytest.approx(2400 / loader.seconds, rel=0.01)
    assert figures["gb_per_s"] == pytest.approx(2400 * 64 / loader.seconds / 1e9, abs=1e-3)


def test_rows_that_are_not_in_the_page_cache_are_read_too(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = read_all(loader_of(store), 8)
    monkeypatch.setattr("saeflow.harvest.reader._NO_WAIT", None)
    assert alike(read_all(loader_of(store), 8), plain)


# What is stored is read as it is, and widened by the loader.


@pytest.fixture(params=["float32", "float16", "int8", "crc32c", "zstd", "sequence"])
def unlike(
    request: pytest.FixtureRequest, tiny_config: Callable[..., Any], tmp_path: Path
) -> Store:
    """A store that differs from the default one in its precision, its codec or its order."""
    from saeflow.harvest.run import harvest_activations

    name = request.param
    option = {"crc32c": "codec", "zstd": "codec", "sequence": "order"}.get(name, "dtype")
    config = tiny_config(**{option: name}, out=tmp_path / name)
    return harvest_activations(config).store


def test_any_kind_of_store_is_read_row_by_row_as_its_store_reads_it(unlike: Store) -> None:
    loader = loader_of(unlike, share=Share(100))
    hook_point = loader.hook_points[0]
    everything = unlike.rows(
        hook_point,
        unlike.train,
        [unlike.train.shard(k) for k in range(unlike.train.n_shards)],
    ).float()
    assert (loader.order.window > 0) == (
        unlike.layout.codec != "bytes" or unlike.layout.order == "sequence"
    )
    for step, batch in enumerate(loader.batches(0, 25)):
        assert torch.equal(batch, everything[rows_of(loader, step)])


def test_int8_rows_are_nearly_those_of_bfloat16(tiny_config: Callable[..., Any]) -> None:
    from saeflow.harvest.run import harvest_activations

    out = tiny_config().out
    plain, small = (
        harvest_activations(tiny_config(dtype=d, out=out / d)).store for d in ("float32", "int8")
    )
    exact, rounded = (
        torch.cat(read_all(loader_of(s, share=Share(100)), 12)) for s in (plain, small)
    )
    variance = exact.var(0).sum()
    assert 0 < (exact - rounded).square().sum(1).mean() < 1e-3 * variance


# What goes wrong.


def damaged(store: Path, tmp_path: Path) -> tuple[Path, Path]:
    """A copy of the store, and one shard file of it."""
    copy = shutil.copytree(store, tmp_path / "copy")
    return copy, copy / "acts" / HOOKS[0] / "c" / "3" / "0"


@pytest.mark.parametrize("kind", ["thread", "process"])
def test_a_missing_shard_is_an_error_of_the_trainer(
    tiny_store: Path, tmp_path: Path, kind: Kind
) -> None:
    copy, shard = damaged(tiny_store, tmp_path)
    shard.unlink()
    with pytest.raises(SaeflowError, match=f"{shard} can't be opened"):
        read_all(loader_of(open_store(copy), kind=kind), 40)


def test_a_shard_cut_short_is_an_error_of_the_trainer(tiny_store: Path, tmp_path: Path) -> None:
    copy, shard = damaged(tiny_store, tmp_path)
    shard.write_bytes(shard.read_bytes()[:-100])
    with pytest.raises(SaeflowError, match=f"{shard} is damaged"):
        read_all(loader_of(open_store(copy)), 40)


def test_the_batches_before_a_damaged_one_are_delivered(tiny_store: Path, tmp_path: Path) -> None:
    sound = read_all(loader_of(open_store(tiny_store), share=Share(32)), 60)
    copy, shard = damaged(tiny_store, tmp_path)
    shard.unlink()
    loader = loader_of(open_store(copy), share=Share(32))
    first = next(s for s in range(60) if any(r // 512 == 3 for r in rows_of(loader, s)))
    batches = loader.batches(0, 60)
    taken = [next(batches) for _ in range(first)]
    with pytest.raises(SaeflowError):
        next(batches)
    assert alike(taken, sound[:first])


def test_a_damaged_chunk_is_named(tiny_config: Callable[..., Any]) -> None:
    from saeflow.harvest.run import harvest_activations

    for codec in ("crc32c", "zstd"):
        config = tiny_config(codec=codec, out=tiny_config().out / codec)
        store = harvest_activations(config).store
        file = config.out / "acts" / HOOKS[0] / "c/1/0"
        content = bytearray(file.read_bytes())
        content[1000] ^= 4
        file.write_bytes(content)
        loader = loader_of(store, share=Share(100))
        line = rf"acts/{HOOKS[0]}, shard 1, chunk 0 \(rows 512 to 1023\) is damaged in {file}"
        with pytest.raises(SaeflowError, match=line):
            read_all(loader, 30)


# The reader's process.


def reader_of(store: Store, kind: Kind = "process", steps: int = 10_000) -> Reader:
    loader = loader_of(store)
    return Reader(Task(loader.arrays, loader.order, loader.share, range(steps)), kind)


def left_open() -> tuple[set[Path], int]:
    """Named pieces of shared memory, and descriptors of this process."""
    return set(Path("/dev/shm").iterdir()), len(list(Path("/proc/self/fd").iterdir()))


def gone(pid: int) -> bool:
    """Whether a process ends within some seconds."""
    for _ in range(600):
        try:
            if Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z":
                return True
        except FileNotFoundError:
            return True
        time.sleep(0.05)
    return False


def test_who_stops_early_leaves_no_process_and_no_memory(store: Store) -> None:
    before = left_open()
    reader = reader_of(store)
    reader.next()
    reader.close()
    assert gone(reader.pid)
    reader.close()  # again is harmless
    del reader
    assert left_open() == before


def test_the_reader_reads_no_further_than_its_ring(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[int] = []
    fill = StripFiller._fill

    def noted(self: StripFiller, step: int, targets: Any) -> Any:
        seen.append(step)
        return fill(self, step, targets)

    monkeypatch.setattr(StripFiller, "_fill", noted)
    batches = loader_of(store).batches(0, 1000)
    next(batches)
    batches.close()
    assert len(seen) <= 6


def test_the_death_of_the_reader_is_an_error_of_the_trainer(store: Store) -> None:
    reader = reader_of(store)
    reader.next()
    os.kill(reader.pid, signal.SIGKILL)
    with pytest.raises(SaeflowError, match=r"has died \(signal 9\): run again"):
        take_all(reader)
    reader.close()


def take_all(reader: Reader) -> None:
    for _ in range(100):
        reader.give_back()
        reader.next()


def test_the_reader_ends_when_its_trainer_is_killed(tiny_store: Path) -> None:
    code = (
        "import sys, time, torch; from pathlib import Path\n"
        "from saeflow.harvest.store import open_store\n"
        "from saeflow.train.choose import choose_order\n"
        "from saeflow.train.fill import Share\n"
        "from saeflow.train.reader_process import Reader, Task\n"
        "store = open_store(Path(sys.argv[1])); h = store.layout.hook_points[0]\n"
        "order = choose_order(store.layout, store.train, h, batch_size=64, seed=0)\n"
        "arrays = (store.activations(h, store.train),)\n"
        "reader = Reader(Task(arrays, order, Share(64), range(10**6)), 'process')\n"
        "reader.next(); print(reader.pid, flush=True); time.sleep(600)\n"
    )
    trainer = subprocess.Popen(
        [sys.executable, "-c", code, str(tiny_store)], stdout=subprocess.PIPE, text=True
    )
    assert trainer.stdout is not None
    pid = int(trainer.stdout.readline())
    assert Path(f"/proc/{pid}").is_dir()
    trainer.kill()
    trainer.wait()
    trainer.stdout.close()
    assert gone(pid)


def test_the_reader_does_not_load_torch() -> None:
    code = (
        "import sys, saeflow.train.reader_process; print(*{m.split('.')[0] for m in sys.modules})"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert not {"torch", "zarr", "transformers", "obstore"} & set(out.stdout.split())


def test_little_is_read_by_a_thread_and_much_by_a_process(store: Store) -> None:
    few, many = (reader_of(store, "auto", steps) for steps in (10, 10**6))
    assert (few.in_process, many.in_process) == (False, True)
    few.close()
    many.close()


def test_a_bug_in_the_thread_is_raised_in_the_trainer(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(self: StripFiller, step: int, targets: Any) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr(StripFiller, "_fill", broken)
    with pytest.raises(ZeroDivisionError):
        read_all(loader_of(store), 3)
