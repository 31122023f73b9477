"""An import gives a store with every row of its source, once, and what is known of each."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save_file

from saeflow.errors import BadInputError
from saeflow.harvest import commits
from saeflow.harvest.config import HarvestConfig
from saeflow.harvest.importing import gather
from saeflow.harvest.importing.config import ImportConfig
from saeflow.harvest.importing.held_out import BLOCK_ROWS, SplitRows
from saeflow.harvest.importing.run import import_activations, plan_import
from saeflow.harvest.importing.source import flat_slices
from saeflow.harvest.locks import main_lock
from saeflow.harvest.run import harvest_activations
from saeflow.harvest.shards import place_shard
from saeflow.harvest.store import Store
from saeflow.harvest.workers import Worker

HOOK = "blocks.0.hook_resid_post"
Import = Callable[..., Store]
Save = Callable[..., Path]
Contents = Callable[[Path], dict[str, str]]


@pytest.fixture
def imported(tmp_path: Path) -> Import:
    """Import a source into `tmp_path / "store"`, or another `out`, and open the store."""

    def run(source: Path, **options: Any) -> Store:
        options = {"out": tmp_path / "store", **options}
        return import_activations(ImportConfig(source=source, **options)).store

    return run


def activations(*shape: int, dtype: str = "float32") -> np.ndarray:
    """Normal rows, the same in every run."""
    return np.random.default_rng(0).normal(size=shape).astype(dtype)


def stored(store: Store, split: str = "train", hook: str | None = None) -> np.ndarray:
    """All rows of a split, in stored order, in float32."""
    which = store.layout.splits[split]
    runs = [which.shard(k) for k in range(which.n_shards)]
    return store.rows(store.hook_point(hook), which, runs).float().numpy()


def folder_of(store: Store) -> Path:
    assert isinstance(store.path, Path)
    return store.path


def in_order(rows: np.ndarray) -> np.ndarray:
    """Rows sorted, to be compared whatever their order."""
    return rows[np.lexsort(rows.T)]


def everything(store: Store, hook: str | None = None) -> np.ndarray:
    return in_order(np.concatenate([stored(store, s, hook) for s in ("train", "heldout")]))


# Every format.


def _npy(folder: Path, rows: np.ndarray) -> Path:
    np.save(folder / "acts.npy", rows)
    return folder / "acts.npy"


def _big_endian_columns(folder: Path, rows: np.ndarray) -> Path:
    return _npy(folder, np.asfortranarray(rows.astype(">f4")))


def _safetensors(folder: Path, rows: np.ndarray) -> Path:
    save_file({"acts": torch.from_numpy(rows)}, folder / "acts.safetensors")
    return folder / "acts.safetensors"


def _torch_tensor(folder: Path, rows: np.ndarray) -> Path:
    torch.save(torch.from_numpy(rows), folder / "acts.pt")
    return folder / "acts.pt"


def _torch_parameter(folder: Path, rows: np.ndarray) -> Path:
    saved = {"acts": torch.nn.Parameter(torch.from_numpy(rows)), "steps": 7, "layer": "six"}
    torch.save(saved, folder / "acts.pth")
    return folder / "acts.pth"


def _folder_of_files(folder: Path, rows: np.ndarray) -> Path:
    for i, part in enumerate(np.split(rows, [10, 11, 700])):
        np.save(folder / f"{i}.npy", part)
    np.save(folder / "empty.npy", rows[:0])
    return folder


def _sequences(folder: Path, rows: np.ndarray) -> Path:
    return _safetensors(folder, rows.reshape(-1, 25, rows.shape[1]))


@pytest.mark.parametrize(
    "save",
    [
        _npy,
        _big_endian_columns,
        _safetensors,
        _torch_tensor,
        _torch_parameter,
        _folder_of_files,
        _sequences,
    ],
)
def test_every_row_is_there_once(
    imported: Import, tmp_path: Path, save: Callable[[Path, np.ndarray], Path]
) -> None:
    rows = activations(1000, 24)
    folder = tmp_path / "source"
    folder.mkdir()
    store = imported(save(folder, rows), held_out=0.1, shard_rows=256)
    assert abs(store.held_out.n_rows - 100) <= 25
    np.testing.assert_array_equal(everything(store), in_order(rows))


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
@pytest.mark.parametrize("save", [_npy, _safetensors, _torch_tensor])
def test_the_precision_is_the_sources_unless_it_is_chosen(
    imported: Import, tmp_path: Path, save: Callable[[Path, np.ndarray], Path], dtype: str
) -> None:
    rows = activations(64, 8, dtype=dtype)
    source = save(tmp_path, rows)
    kept = imported(source)
    assert kept.layout.dtype == ("float16" if dtype == "float16" else "float32")
    np.testing.assert_array_equal(everything(kept), in_order(rows.astype(np.float32)))
    chosen = imported(source, out=tmp_path / "b", dtype="bfloat16")
    expected = torch.from_numpy(rows).bfloat16().float().numpy()
    np.testing.assert_array_equal(everything(chosen), in_order(expected))


def test_bfloat16_stays_bfloat16(imported: Import, tmp_path: Path) -> None:
    rows = torch.from_numpy(activations(64, 8)).bfloat16()
    save_file({"acts": rows}, tmp_path / "acts.safetensors")
    store = imported(tmp_path / "acts.safetensors")
    assert store.layout.dtype == "bfloat16"
    np.testing.assert_array_equal(everything(store), in_order(rows.float().numpy()))


def test_int8_is_near_the_source(imported: Import, tmp_path: Path) -> None:
    rows = activations(2000, 16) * np.linspace(0.1, 50, 16, dtype=np.float32) + 3
    store = imported(_npy(tmp_path, rows), dtype="int8", held_out=0.0)
    places = place_shard(store.layout, store.train, 0).places
    error = stored(store)[places] - rows
    assert (error**2).sum() / ((rows - rows.mean(0)) ** 2).sum() < 1e-4


def test_one_of_several_tensors_is_chosen_by_its_key(imported: Import, tmp_path: Path) -> None:
    rows = activations(50, 8)
    tensors = {"a": torch.from_numpy(rows), "b": torch.from_numpy(rows + 1)}
    save_file(tensors, tmp_path / "acts.safetensors")
    store = imported(tmp_path / "acts.safetensors", key="b")
    np.testing.assert_array_equal(everything(store), in_order(rows + 1))


def test_rows_of_sequences_know_their_sequence_and_position(
    imported: Import, tmp_path: Path
) -> None:
    folder = tmp_path / "source"
    folder.mkdir()
    values = activations(30, 7, 4)
    np.save(folder / "a.npy", values[:10])
    np.save(folder / "b.npy", values[10:])
    store = imported(folder, held_out=0.2)
    assert store.layout.row_values == ("seq", "pos")
    for split in ("", "heldout/"):
        seq, pos = (np.asarray(store.array(f"{split}{name}")[:]) for name in ("seq", "pos"))
        rows = stored(store, "heldout" if split else "train")
        np.testing.assert_array_equal(rows, values[seq, pos])


def test_bare_rows_pretend_to_know_nothing(imported: Import, tmp_path: Path) -> None:
    store = imported(_npy(tmp_path, activations(64, 8)))
    assert store.layout.row_values == ()
    assert store.layout.packing is None
    assert not [
        name for name in ("token", "doc", "sequences") if (folder_of(store) / name).exists()
    ]
    assert store.hook_point(None).name == "unknown"


def test_the_provenance_says_what_is_known_and_who_says_it(
    imported: Import, tmp_path: Path
) -> None:
    provenance = imported(_npy(tmp_path, activations(64, 8)), model="gpt2", hook=(HOOK,)).provenance
    assert provenance["model"]["name"] == "gpt2"
    assert provenance["model"]["weights_sha256"] is None
    assert provenance["dataset"] == "unknown"
    assert provenance["said_by_user"] == ["model"]
    assert provenance["hook"] == [HOOK]
    about = provenance["imported_from"]
    assert about["format"] == "npy"
    assert about["path"] == str(tmp_path / "acts.npy")
    assert len(about["files_sha256"]) == 64


# The same bytes as a harvest.


def test_the_rows_of_a_harvest_give_the_same_shards(
    tiny_config: Callable[..., HarvestConfig], imported: Import, tmp_path: Path, contents: Contents
) -> None:
    config = tiny_config(dtype="float32", held_out=0.0, seed=3)
    harvested = harvest_activations(config).store
    rows = stored(harvested)
    for k in range(harvested.train.n_shards):
        place = place_shard(harvested.layout, harvested.train, k)
        span = slice(place.rows.start, place.rows.stop)
        rows[span] = rows[span][place.places]
    source = _npy(tmp_path, rows)
    store = imported(
        source, out=tmp_path / "imported", held_out=0.0, seed=3, shard_rows=512, hook=(HOOK,)
    )
    ours, theirs = contents(folder_of(store)), contents(folder_of(harvested))
    same = [n for n in theirs if n.split("/")[0] in ("acts", "crc", "norm", "sample", "stats")]
    assert len(same) > 20
    without = {f"stats/{HOOK}/zarr.json"}  # which tokens are massive is not known
    assert {n: ours.get(n) for n in {*same} - without} == {n: theirs[n] for n in {*same} - without}


# SAELens.


def test_saelens_rows_know_token_sequence_and_position(
    imported: Import, tmp_path: Path, save_saelens: Save
) -> None:
    acts = {HOOK: activations(40, 9, 8), "blocks.1.hook_resid_post": activations(40, 9, 6) + 5}
    tokens = np.random.default_rng(1).integers(0, 50_000, (40, 9))
    store = imported(save_saelens(tmp_path / "cached", acts, tokens), held_out=0.3, shard_rows=128)
    assert store.layout.row_values == ("token", "seq", "pos")
    assert [h.name for h in store.layout.hook_points] == list(acts)
    for split, folder in (("train", ""), ("heldout", "heldout/")):
        names = ("token", "seq", "pos")
        token, seq, pos = (np.asarray(store.array(f"{folder}{name}")[:]) for name in names)
        np.testing.assert_array_equal(token, tokens[seq, pos])
        for hook, values in acts.items():
            np.testing.assert_array_equal(stored(store, split, hook), values[seq, pos])
    assert store.train.n_rows + store.held_out.n_rows == 360


def test_saelens_float16_without_token_ids(
    imported: Import, tmp_path: Path, save_saelens: Save
) -> None:
    acts = activations(40, 9, 8, dtype="float16")
    store = imported(save_saelens(tmp_path / "cached", {HOOK: acts}))
    assert (store.layout.dtype, store.layout.row_values) == ("float16", ("seq", "pos"))
    np.testing.assert_array_equal(
        everything(store), in_order(acts.reshape(-1, 8).astype(np.float32))
    )


def test_one_hook_point_of_a_saelens_dataset(
    imported: Import, tmp_path: Path, save_saelens: Save
) -> None:
    acts = {"a": activations(4, 9, 8), "b": activations(4, 9, 6)}
    store = imported(save_saelens(tmp_path / "cached", acts), hook=("b",))
    assert [h.d_in for h in store.layout.hook_points] == [6]


# llamascopium.


@pytest.fixture
def chunks(tmp_path: Path, save_llamascopium: Save) -> Callable[..., dict[str, Any]]:
    """Two hook points of three chunks each, with whole sequences or without."""

    def save(*, whole: bool, kind: str = "safetensors") -> dict[str, Any]:
        torch.manual_seed(0)
        folder = tmp_path / f"chunks-{whole}-{kind}"
        found: dict[str, Any] = {"folder": folder, "tokens": [], "mask": [], "a": [], "b": []}
        for number in range(3):
            tokens = torch.randint(0, 9, (20, 6))
            mask = tokens > 1
            both = {name: torch.randn(20, 6, 4).bfloat16() for name in "ab"}
            if not whole:
                both = {name: acts[mask] for name, acts in both.items()}
                tokens, mask = tokens[mask], mask[mask]
            for name, acts in both.items():
                save_llamascopium(folder / name, number, acts, tokens, mask, kind)
                found[name].append(acts.float())
            found["tokens"].append(tokens)
            found["mask"].append(mask)
        return {n: v if n == "folder" else torch.cat(v).numpy() for n, v in found.items()}

    return save


@pytest.mark.parametrize("kind", ["safetensors", "pt"])
def test_masked_rows_of_llamascopium_are_dropped_and_counted(
    imported: Import, chunks: Callable[..., dict[str, Any]], kind: str
) -> None:
    source = chunks(whole=True, kind=kind)
    store = imported(source["folder"], held_out=0.3)
    assert store.provenance["imported_from"]["masked_rows"] == (~source["mask"]).sum() > 0
    for split, folder in (("train", ""), ("heldout", "heldout/")):
        token, seq, pos = (
            np.asarray(store.array(f"{folder}{name}")[:]) for name in ("token", "seq", "pos")
        )
        np.testing.assert_array_equal(token, source["tokens"][seq, pos])
        assert source["mask"][seq, pos].all()
        for hook in "ab":
            np.testing.assert_array_equal(stored(store, split, hook), source[hook][seq, pos])
    assert store.train.n_rows + store.held_out.n_rows == source["mask"].sum()


def test_shuffled_chunks_of_llamascopium_know_only_their_tokens(
    imported: Import, chunks: Callable[..., dict[str, Any]]
) -> None:
    source = chunks(whole=False)
    store = imported(source["folder"], held_out=0.0)
    assert store.layout.row_values == ("token",)
    assert store.provenance["imported_from"]["masked_rows"] == 0
    places = place_shard(store.layout, store.train, 0).places
    np.testing.assert_array_equal(stored(store, hook="b")[places], source["b"])
    np.testing.assert_array_equal(np.asarray(store.array("token")[:])[places], source["tokens"])


def test_the_folder_of_one_hook_point_is_named_by_it(
    imported: Import, chunks: Callable[..., dict[str, Any]]
) -> None:
    store = imported(chunks(whole=False)["folder"] / "b")
    assert store.hook_point(None).name == "b"


def test_a_hole_in_the_chunks_is_told(
    imported: Import, chunks: Callable[..., dict[str, Any]], capsys: pytest.CaptureFixture[str]
) -> None:
    folder = chunks(whole=False)["folder"]
    for name in "ab":
        (folder / name / "chunk-00000001.safetensors").unlink()
    imported(folder)
    assert "has 1 holes in its chunks (the first at 1 of shard 0)" in capsys.readouterr().err


# Held out.


def test_whole_blocks_are_held_out_whatever_the_seed(imported: Import, tmp_path: Path) -> None:
    rows = np.arange(300 * BLOCK_ROWS, dtype=np.float32).reshape(-1, 1)
    source = _npy(tmp_path, rows)
    stores = [imported(source, out=tmp_path / str(s), seed=s) for s in range(2)]
    kept = [np.sort(stored(store, "heldout")[:, 0]) for store in stores]
    np.testing.assert_array_equal(kept[0], kept[1])
    blocks = np.unique(kept[0] // BLOCK_ROWS)
    assert len(kept[0]) == 15 * BLOCK_ROWS == len(blocks) * BLOCK_ROWS
    assert blocks.min() < 60
    assert blocks.max() > 240


def test_equal_sequences_are_on_the_same_side(
    imported: Import, tmp_path: Path, save_saelens: Save
) -> None:
    tokens = np.tile(np.random.default_rng(0).integers(0, 99, (25, 5)), (4, 1))
    store = imported(
        save_saelens(tmp_path / "cached", {HOOK: activations(100, 5, 4)}, tokens), held_out=0.4
    )
    sides = [set(np.asarray(store.array(f"{f}seq")[:]) % 25) for f in ("", "heldout/")]
    assert sides[0]
    assert sides[1]
    assert not sides[0] & sides[1]


def test_no_row_is_held_out_if_none_is_wanted(imported: Import, tmp_path: Path) -> None:
    assert imported(_npy(tmp_path, activations(64, 8)), held_out=0.0).held_out.n_rows == 0


# Arithmetic.


@given(
    st.lists(st.integers(0, 3), min_size=1, max_size=3).map(lambda s: [n + 1 for n in s]), st.data()
)
def test_flat_slices_are_the_rows_of_the_flattened_array(
    leading: list[int], data: st.DataObject
) -> None:
    values = np.arange(math.prod(leading) * 2).reshape(*leading, 2)
    stop = data.draw(st.integers(0, math.prod(leading)))
    first = data.draw(st.integers(0, stop))
    taken = [values[slices].reshape(-1, 2) for slices in flat_slices(leading, first, stop)]
    np.testing.assert_array_equal(
        np.concatenate([*taken, values.reshape(-1, 2)[:0]]), values.reshape(-1, 2)[first:stop]
    )


@given(st.lists(st.tuples(st.integers(1, 3), st.integers(1, 4)), min_size=1), st.data())
def test_runs_are_the_rows_of_the_split(
    gaps_and_lengths: list[tuple[int, int]], data: st.DataObject
) -> None:
    gaps, lengths = np.array(gaps_and_lengths).T
    ends = np.cumsum(gaps + lengths)
    rows = SplitRows(ends - lengths, np.concatenate([[0], np.cumsum(lengths)]))
    listed = np.concatenate([np.arange(e - n, e) for e, n in zip(ends, lengths, strict=True)])
    first = data.draw(st.integers(0, rows.n_rows - 1))
    stop = data.draw(st.integers(first + 1, rows.n_rows))
    found = [row for run in rows.runs(range(first, stop)) for row in run]
    assert found == listed[first:stop].tolist()


# Interrupted, refused, repeated.


class Killed(BaseException):
    """Ends an import as a signal would."""


def test_an_import_that_is_stopped_anywhere_ends_with_the_same_bytes(
    imported: Import, tmp_path: Path, contents: Contents, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = _npy(tmp_path, activations(1000, 8))
    options: dict[str, Any] = {"shard_rows": 256, "dtype": "int8", "held_out": 0.3}
    store = imported(source, **options)
    whole, append = contents(folder_of(store)), commits.append
    for stop_at in range(store.train.n_shards + store.held_out.n_shards):
        out = tmp_path / f"stopped-{stop_at}"
        committed = 0

        def stop(*arguments: Any, stop_at: int = stop_at) -> None:
            nonlocal committed
            if committed == stop_at:
                raise Killed
            committed += 1
            append(*arguments)

        with monkeypatch.context() as patched:
            patched.setattr(commits, "append", stop)
            with pytest.raises(Killed):
                imported(source, out=out, **options)
        assert contents(folder_of(imported(source, out=out, **options))) == whole


def test_a_store_that_another_process_writes_is_refused(imported: Import, tmp_path: Path) -> None:
    source = _npy(tmp_path, activations(64, 8))
    with (
        main_lock(tmp_path / "store", Worker()),
        pytest.raises(BadInputError, match="is being written by process"),
    ):
        imported(source)


def test_other_options_are_refused_on_resume(imported: Import, tmp_path: Path) -> None:
    source = _npy(tmp_path, activations(64, 8))
    imported(source)
    with pytest.raises(BadInputError, match="seed: 0 there, 1 now"):
        imported(source, seed=1)
    imported(source, dtype="float32")  # which it is already


def test_a_source_that_changed_is_refused_on_resume(imported: Import, tmp_path: Path) -> None:
    source = _npy(tmp_path, activations(64, 8))
    imported(source)
    np.save(source, activations(64, 8) + 1)
    with pytest.raises(BadInputError, match=r"imported_from\.files_sha256: "):
        imported(source)


def test_rows_are_read_a_few_thousand_at_a_time(
    imported: Import, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = _npy(tmp_path, activations(50_000, 4))
    asked: list[int] = []
    blocks = gather._blocks

    def watched(*arguments: Any) -> Any:
        for part, rows in blocks(*arguments):
            asked.append(len(rows))
            yield part, rows

    monkeypatch.setattr(gather, "_blocks", watched)
    imported(source, held_out=0.0)
    assert sum(asked) == 50_000
    assert max(asked) <= 8192


@pytest.mark.parametrize("codec", ["bytes", "crc32c", "zstd"])
@pytest.mark.parametrize("dtype", ["float16", "int8"])
def test_the_plan_knows_the_bytes_to_two_in_a_hundred(
    tmp_path: Path, dtype: Any, codec: Any
) -> None:
    source = _npy(tmp_path, activations(400, 50, 64))
    options = ImportConfig(source=source, out=tmp_path / "store", dtype=dtype, codec=codec)
    told = plan_import(options).to_json()["bytes_on_disk"]
    assert not options.out.exists()
    assert told == pytest.approx(import_activations(options).to_json()["bytes"], rel=0.02)
