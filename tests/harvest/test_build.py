"""The stored rows, held against the source model run anew."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import zarr
from torch import Tensor
from transformers import AutoModelForCausalLM, PreTrainedTokenizerBase

from saeflow.harvest import build
from saeflow.harvest.capture import capture
from saeflow.harvest.config import HarvestConfig
from saeflow.harvest.layout import Split
from saeflow.harvest.models import SourceModel
from saeflow.harvest.run import harvest_activations
from saeflow.harvest.store import Store, open_store

Options = Callable[..., HarvestConfig]


def names_of(store: Store, split: Split) -> dict[str, np.ndarray]:
    """Token, document, sequence and position of every stored row of a split."""
    return {
        n: np.asarray(store.array(f"{split.folder}{n}")[:]) for n in ("token", "doc", "seq", "pos")
    }


def all_rows(store: Store, split: Split, hook: str) -> Tensor:
    size = split.rows_per_shard
    runs = [range(k, min(k + size, split.n_rows)) for k in range(0, split.n_rows, size)]
    return store.rows(store.hook_point(hook), split, runs)


@pytest.fixture(params=["train", "heldout"])
def split(store: Store, request: pytest.FixtureRequest) -> Split:
    return store.layout.splits[request.param]


@pytest.mark.parametrize("hook", ["blocks.0.hook_resid_post", "blocks.1.attn.hook_z"])
def test_stored_rows_are_those_of_the_cache(
    store: Store, split: Split, source_model: SourceModel, hook: str
) -> None:
    sequences = torch.from_numpy(store.sequences(split, 0, split.n_sequences).astype(np.int64))
    with torch.inference_mode():
        _, cache = source_model.bridge.run_with_cache(sequences, names_filter=hook)
    names, expected = names_of(store, split), cache[hook].flatten(2)
    at = torch.from_numpy(names["seq"].astype(int)), torch.from_numpy(names["pos"].astype(int))
    torch.testing.assert_close(
        all_rows(store, split, hook).float(), expected[at], rtol=2**-8, atol=1e-6
    )


def test_every_token_but_the_first_of_each_sequence_is_stored_once(
    store: Store, split: Split
) -> None:
    names = names_of(store, split)
    stored = set(zip(names["seq"].tolist(), names["pos"].tolist(), strict=True))
    assert len(stored) == split.n_rows
    assert stored == {(s, p) for s in range(split.n_sequences) for p in range(1, 17)}


def test_row_names_agree_with_the_stored_sequences(store: Store, split: Split) -> None:
    names = names_of(store, split)
    sequences = store.sequences(split, 0, split.n_sequences)
    assert np.array_equal(sequences[names["seq"], names["pos"]], names["token"])
    packing = store.layout.packing
    assert packing is not None
    assert np.array_equal(sequences[:, 0], np.full(split.n_sequences, packing.bos))


def test_no_document_is_in_both_splits(store: Store) -> None:
    train, held_out = (
        set(names_of(store, s)["doc"].tolist()) for s in (store.train, store.held_out)
    )
    assert train
    assert held_out
    assert not train & held_out


def test_rows_are_permuted_inside_their_shards(store: Store, split: Split) -> None:
    """Each shard holds the rows that are its own, in another order than the sequences'."""
    names = names_of(store, split)
    numbers = names["seq"].astype(int) * 16 + names["pos"] - 1
    for k in range(split.n_shards):
        own = split.shard(k)
        stored = numbers[own.start : own.stop]
        assert sorted(stored) == list(own)
        assert (np.diff(stored) == 1).mean() < 0.1


def test_the_order_of_sequences_can_be_kept(tiny_config: Options) -> None:
    store = harvest_activations(tiny_config(order="sequence")).store
    for split in store.layout.splits.values():
        names = names_of(store, split)
        numbers = names["seq"].astype(int) * 16 + names["pos"] - 1
        assert numbers.tolist() == list(range(split.n_rows))


def test_the_seed_changes_the_order_and_nothing_else(tiny_config: Options, tmp_path: Path) -> None:
    one, other = (
        harvest_activations(tiny_config(seed=seed, out=tmp_path / str(seed))).store
        for seed in (0, 1)
    )
    names = [names_of(s, s.train) for s in (one, other)]
    assert not np.array_equal(names[0]["seq"], names[1]["seq"])
    assert np.array_equal(one.sequences(one.train, 0, 50), other.sequences(other.train, 0, 50))


@pytest.mark.parametrize(("batch_size", "shard_rows"), [(1, 512), (7, 100), (32, 1000)])
def test_shards_and_batches_need_not_match_the_sequences(
    tiny_config: Options, store: Store, batch_size: int, shard_rows: int
) -> None:
    """Rows of one sequence in two shards, and batches cut by a shard, change no value."""
    config = tiny_config(batch_size=batch_size, shard_rows=shard_rows, order="sequence")
    found = harvest_activations(config).store
    names = names_of(store, store.train)
    order = np.lexsort((names["pos"], names["seq"]))[: found.train.n_rows]
    hook = "blocks.0.hook_resid_post"
    expected = all_rows(store, store.train, hook)[torch.from_numpy(order)]
    rows = all_rows(found, found.train, hook)
    torch.testing.assert_close(rows.float(), expected.float(), rtol=2**-7, atol=1e-6)


def test_batches_never_cross_a_shard(tiny_config: Options, monkeypatch: pytest.MonkeyPatch) -> None:
    """48 sequences a shard and 20 a batch: each shard runs 20, 20, 8, whatever came before."""
    sizes: list[int] = []

    def counted(model: SourceModel, tokens: Tensor, hook_points: object) -> dict[str, Tensor]:
        sizes.append(len(tokens))
        return given(model, tokens, hook_points)  # type: ignore[arg-type]

    given = capture
    monkeypatch.setattr(build, "capture", counted)
    harvest_activations(tiny_config(batch_size=20, shard_rows=48 * 16, held_out=0.0))
    assert sizes == [20, 20, 8, 20, 20, 8, 4]


@pytest.fixture(scope="module")
def unpacked(tiny_model: Path, tiny_text: Path, tmp_path_factory: pytest.TempPathFactory) -> Store:
    """A float32 store of the tiny text with packing off, documents of up to 60 words split."""
    config = HarvestConfig(
        model=str(tiny_model),
        dataset=str(tiny_text),
        hook=("blocks.1.hook_resid_post",),
        out=tmp_path_factory.mktemp("unpacked") / "store",
        context_size=33,
        batch_size=7,
        pack=False,
        dtype="float32",
        shard_rows=500,
        held_out=0.2,
        device="cpu",
    )
    return harvest_activations(config).store


def test_without_packing_every_token_of_every_document_is_stored_once(
    unpacked: Store, tokenizer: PreTrainedTokenizerBase, tiny_text: Path
) -> None:
    found: dict[int, list[int]] = {}
    for split in unpacked.layout.splits.values():
        names = names_of(unpacked, split)
        for row in np.lexsort((names["pos"], names["seq"])):
            found.setdefault(int(names["doc"][row]), []).append(int(names["token"][row]))
    texts = [json.loads(line)["text"] for line in tiny_text.read_text().splitlines()]
    expected = tokenizer(texts, add_special_tokens=False)["input_ids"]
    assert found == dict(enumerate(expected))


def test_without_packing_a_sequence_ends_with_its_document(unpacked: Store) -> None:
    """Long documents are split and not cut: all of a document's sequences but the last are full."""
    for split in unpacked.layout.splits.values():
        names = names_of(unpacked, split)
        lengths = np.asarray(unpacked.array(f"{split.folder}sequences/length")[:])
        document = np.zeros(split.n_sequences, int)
        document[names["seq"]] = names["doc"]
        assert (document[names["seq"]] == names["doc"]).all()  # one document a sequence
        assert np.array_equal(np.bincount(names["seq"]), lengths - 1)
        goes_on = document[1:] == document[:-1]
        assert goes_on.any()
        assert (lengths[:-1][goes_on] == 33).all()
        assert lengths.min() < 33
        assert lengths.max() == 33


def test_without_packing_rows_are_those_of_each_context_run_alone(
    unpacked: Store, source_model: SourceModel
) -> None:
    """Neither the padding nor the other sequences of a batch change a row."""
    hook = "blocks.1.hook_resid_post"
    for split in unpacked.layout.splits.values():
        names, rows = names_of(unpacked, split), all_rows(unpacked, split, hook)
        lengths = np.asarray(unpacked.array(f"{split.folder}sequences/length")[:])
        sequences = unpacked.sequences(split, 0, split.n_sequences).astype(np.int64)
        for k in range(0, split.n_sequences, 5):
            alone = torch.from_numpy(sequences[k : k + 1, : lengths[k]])
            with torch.inference_mode():
                _, cache = source_model.bridge.run_with_cache(alone, names_filter=hook)
            here = np.flatnonzero(names["seq"] == k)
            expected = cache[hook][0, torch.from_numpy(names["pos"][here].astype(int))]
            torch.testing.assert_close(rows[torch.from_numpy(here)], expected, rtol=1e-4, atol=1e-5)


def test_without_packing_too_a_limit_is_rounded_up_to_whole_sequences(
    tiny_config: Options,
) -> None:
    store = harvest_activations(tiny_config(pack=False)).store
    rows = store.train.n_rows + store.held_out.n_rows
    assert 1600 <= rows < 1600 + 16


@pytest.mark.parametrize("pack", [True, False])
def test_int8_is_float32_to_within_half_a_scale(
    tiny_config: Options, tmp_path: Path, pack: bool
) -> None:
    hook, options = "blocks.1.hook_resid_post", {"pack": pack, "tokens": 4000}
    stores = [
        harvest_activations(
            tiny_config(dtype=dtype, out=tmp_path / dtype, hook=(hook,), **options)
        ).store
        for dtype in ("float32", "int8")
    ]
    exact, rough = (zarr.open_group(store.path, mode="r") for store in stores)
    mean, deviation = np.asarray(rough[f"quant/{hook}"])
    for split in stores[0].layout.splits.values():
        expected = np.asarray(exact[f"{split.folder}acts/{hook}"])
        q, scale = (np.asarray(rough[f"{split.folder}{a}/{hook}"]) for a in ("acts", "scale"))
        widened = q * scale[:, None] * deviation + mean
        error = np.abs(widened - expected)
        assert (error <= scale[:, None] * deviation * 0.5001 + 1e-6).all()
        lost = (error**2).sum() / ((expected - expected.mean(0)) ** 2).sum()
        print(f"{split.name}: share of the variance lost {lost:.2e}")
        assert lost < 1e-4
        norms = np.asarray(rough[f"{split.folder}norm/{hook}"])
        np.testing.assert_allclose(norms, np.linalg.norm(widened, axis=1), rtol=1e-5)
        for name in ("token", "doc", "seq", "pos"):
            path = f"{split.folder}{name}"
            assert np.array_equal(np.asarray(exact[path]), np.asarray(rough[path]))
        rows = all_rows(stores[1], split, hook)
        np.testing.assert_allclose(rows.float().numpy(), widened, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("codec", ["crc32c", "zstd"])
def test_a_codec_changes_no_row(tiny_config: Options, tmp_path: Path, codec: str) -> None:
    hook = "blocks.0.hook_resid_post"
    plain, coded = (
        harvest_activations(tiny_config(codec=c, out=tmp_path / c)).store for c in ("bytes", codec)
    )
    for split in plain.layout.splits.values():
        for name in (f"acts/{hook}", f"norm/{hook}", "token", "seq", "pos"):
            one, other = (np.asarray(s.array(f"{split.folder}{name}")[:]) for s in (plain, coded))
            assert np.array_equal(one, other)


@pytest.mark.parametrize(("dtype", "tolerance"), [("float16", 2**-11), ("float32", 1e-5)])
def test_other_precisions(tiny_config: Options, store: Store, dtype: str, tolerance: float) -> None:
    found = harvest_activations(tiny_config(dtype=dtype)).store
    hook = "blocks.0.hook_resid_post"
    rows = all_rows(found, found.train, hook)
    assert rows.dtype is getattr(torch, dtype)
    through_zarr = np.asarray(found.array(f"acts/{hook}")[:])
    assert np.array_equal(through_zarr, rows.numpy())
    expected = all_rows(store, store.train, hook)[:512]
    torch.testing.assert_close(
        rows[:512].float(), expected.float(), rtol=2**-8 + tolerance, atol=1e-6
    )


@pytest.mark.parametrize("layer", [1, 3])
def test_a_thousand_rows_of_the_builtin_model_recomputed_by_transformers(
    tmp_path: Path, layer: int
) -> None:
    """Read by zarr alone, recomputed without TransformerLens; layer 3 is the last one."""
    hook = f"blocks.{layer}.hook_resid_post"
    config = HarvestConfig(
        model="builtin", dataset="builtin", hook=(hook,), out=tmp_path / "store", tokens=5000
    )
    folder = harvest_activations(config).store.path
    group: Any = zarr.open_group(folder, mode="r")
    chosen = np.random.default_rng(0).choice(group["token"].shape[0], 1000, replace=False)
    seq, pos = (group[name][:][chosen].astype(int) for name in ("seq", "pos"))
    stored = torch.from_numpy(group[f"acts/{hook}"][:][chosen]).view(torch.bfloat16).float()

    path = open_store(folder).provenance["model"]["name"]
    assert path == "builtin"
    recomputed = recompute(layer, group["sequences/token"][:])[seq, pos]
    scale = recomputed.norm(dim=1, keepdim=True)
    assert ((stored - recomputed).abs() <= 2**-8 * recomputed.abs() + 1e-5 * scale).all()


def recompute(layer: int, sequences: np.ndarray) -> Tensor:
    from saeflow.harvest.builtin import MODEL_PATH

    model = AutoModelForCausalLM.from_pretrained(str(MODEL_PATH), dtype=torch.float32)
    seen: list[Tensor] = []
    model.model.layers[layer].register_forward_hook(
        lambda _, __, out: seen.append(out[0] if isinstance(out, tuple) else out)
    )
    with torch.inference_mode():
        model(torch.from_numpy(sequences.astype(np.int64)))
    return seen[0]
