"""A store's figures in a few numbers, held against its arrays, and its size against the disk."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import zarr

from saeflow.harvest import commits
from saeflow.harvest.config import HarvestConfig
from saeflow.harvest.info import (
    bytes_of_other_files,
    bytes_of_shards,
    hook_point_info,
    split_info,
)
from saeflow.harvest.run import harvest_activations
from saeflow.harvest.store import Store


def test_the_figures_are_those_of_the_rows(store: Store) -> None:
    hook_point = store.layout.hook_points[0]
    figures = hook_point_info(store, hook_point, None).figures
    assert figures is not None
    bits = np.asarray(store.array(f"acts/{hook_point.name}")[:], np.uint32) << 16
    rows = bits.view(np.float32).astype(np.float64)
    norms = np.linalg.norm(rows, axis=1)
    assert figures.massive == 0
    assert figures.mean_norm == pytest.approx(norms.mean(), rel=0.03)
    assert figures.mean_square == pytest.approx((norms**2).mean(), rel=1e-6)
    assert figures.norm_of_mean == pytest.approx(np.linalg.norm(rows.mean(0)), rel=1e-6)
    assert figures.std_max == pytest.approx(rows.std(0).max(), rel=1e-6)
    assert figures.std_min == pytest.approx(rows.std(0).min(), rel=1e-6)
    assert figures.absmax == np.abs(rows).max()
    assert figures.absmax_channel == np.unravel_index(np.abs(rows).argmax(), rows.shape)[1]
    for share, norm in figures.norm_quantiles.items():
        assert norm == pytest.approx(np.quantile(norms, share), rel=0.1)
    middle = np.linalg.norm(np.median(rows, axis=0))
    assert figures.norm_of_geometric_median == pytest.approx(middle, rel=0.2)


def test_massive_rows_are_told_with_their_tokens_and_positions(
    tiny_config: Callable[..., HarvestConfig], tiny_model: Path, tmp_path: Path
) -> None:
    """A token with a hundredfold embedding, as language models give their first ones."""
    import shutil

    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    token = AutoTokenizer.from_pretrained(str(tiny_model))("§")["input_ids"][-1]
    model = AutoModelForCausalLM.from_pretrained(str(tiny_model))
    with torch.no_grad():
        model.model.embed_tokens.weight[token] *= 100
    folder = shutil.copytree(tiny_model, tmp_path / "model")
    model.save_pretrained(folder)
    text = tmp_path / "text.txt"
    text.write_text("\n\n".join(["the store reads every row", "the § shard"] * 40))
    config = tiny_config(
        model=str(folder), dataset=str(text), hook=("hook_embed",), tokens=None, held_out=0.0
    )
    store = harvest_activations(config).store
    figures = hook_point_info(store, store.layout.hook_points[0], None).figures
    assert figures is not None
    tokens, positions = (np.asarray(store.array(name)[:]) for name in ("token", "pos"))
    assert figures.massive == (tokens == token).sum() > 10
    assert figures.massive_share == figures.massive / len(tokens)
    assert dict(figures.massive_tokens) == {str(token): figures.massive}
    assert sum(figures.massive_positions.values()) == figures.massive
    assert {int(p) for p in figures.massive_positions} == set(positions[tokens == token])
    assert figures.norm_quantiles[1.0] > 50 * figures.norm_quantiles[0.5]


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"codec": "crc32c"},
        {"codec": "zstd", "order": "sequence"},
        {"dtype": "int8"},
        {"dtype": "float32", "pack": False},
        {"hook": ("blocks.0.hook_resid_post", "blocks.1.attn.hook_z"), "held_out": 0.0},
    ],
    ids=str,
)
def test_the_size_is_that_of_the_files(
    tiny_config: Callable[..., HarvestConfig], options: dict[str, object]
) -> None:
    """By arithmetic, and by the records; both to the byte."""
    config = tiny_config(**options)
    store = harvest_activations(config).store
    records = commits.read_records(Path(config.out))
    hook_points = [hook_point_info(store, h, None) for h in store.layout.hook_points]
    by_arithmetic = bytes_of_shards(store, hook_points, None)
    recorded = [hook_point_info(store, h, records) for h in store.layout.hook_points]
    assert [h.bytes for h in hook_points] == [h.bytes for h in recorded]
    assert by_arithmetic == bytes_of_shards(store, recorded, records)
    on_disk = sum(p.stat().st_size for p in Path(config.out).rglob("*") if p.is_file())
    assert by_arithmetic + bytes_of_other_files(Path(config.out), store.layout) == on_disk


def test_a_split_tells_how_many_of_its_shards_are_there(store: Store) -> None:
    split = store.train
    records: dict[tuple[str, int], commits.Record] = {
        ("train", 0): {},
        ("train", 3): {},
        ("heldout", 0): {},
    }
    found = split_info(store.layout, split, records)
    assert (found.shards_built, found.shards) == (2, split.n_shards)
    documents = zarr.open_array(store.path / "doc", mode="r")[:]
    assert found.documents == len(np.unique(documents))
    assert split_info(store.layout, split, None).shards_built == split.n_shards
