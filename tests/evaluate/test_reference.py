"""What rows are held against: a store's figures, an SAE's own mean, or those of some text."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from made_saes import random, save_made

from saeflow.errors import BadInputError
from saeflow.evaluate.opening import open_saes
from saeflow.evaluate.reference import SampledRows, carried_means, of_store, sample_rows
from saeflow.evaluate.text import HeldOutText
from saeflow.harvest.models import SourceModel
from saeflow.harvest.store import open_store
from saeflow.harvest.tokens import Packing

HOOK, HEADS, LAST = (
    "blocks.0.hook_resid_post",
    "blocks.1.attn.hook_z",
    "blocks.1.hook_resid_post",
)
CPU = torch.device("cpu")


@pytest.fixture
def text(taught_store: Path) -> HeldOutText:
    """All held-out sequences of the store."""
    store = open_store(taught_store)
    tokens = store.sequences(store.held_out, 0, store.held_out.n_sequences)
    return HeldOutText(
        source="here",
        sequences=tokens,
        available=len(tokens),
        documents=np.zeros(tokens.shape, np.int64),
        lengths=np.full(len(tokens), tokens.shape[1]),
        frequency=np.ones(300) / 300,
        trained_on=False,
        packing=Packing(context_size=17, bos=0, separator=1),
        dataset=None,
        dataset_sha256=None,
        store_identity=None,
    )


@pytest.fixture
def sample(source_model: SourceModel, text: HeldOutText) -> Callable[..., SampledRows]:
    def make(batch_size: int = 16, of: HeldOutText = text) -> SampledRows:
        return sample_rows(source_model, of, [HOOK, LAST], batch_size)

    return make


def test_a_store_says_it_of_the_hook_points_that_it_holds(taught_store: Path) -> None:
    store = open_store(taught_store)
    found = of_store(store, [HOOK, LAST], CPU)
    assert set(found) == {HOOK}
    split = store.train
    rows = store.rows(
        store.hook_point(HOOK), split, [split.shard(i) for i in range(split.n_shards)]
    ).float()
    text = torch.from_numpy(~np.isin(np.asarray(store.array("token")[:]), [0, 1, 2]))
    torch.testing.assert_close(found[HOOK].mean, rows.mean(0), rtol=0.02, atol=0.02)
    median = rows[text].norm(dim=1).median().item()
    assert found[HOOK].median_norm == pytest.approx(median, rel=0.05)
    assert of_store(None, [HOOK], CPU) == {}


def test_sampled_rows_are_of_text_spread_over_all_of_it(
    sample: Callable[..., SampledRows], source_model: SourceModel, text: HeldOutText
) -> None:
    sampled = sample()
    numbers = sampled.sequences.unique().tolist()
    assert numbers == [number * len(text.sequences) // 64 for number in range(64)]
    picked = torch.from_numpy(text.sequences.astype(np.int64))[sampled.sequences, sampled.positions]
    assert (picked > 2).all()
    assert (sampled.positions > 0).all()
    tokens = torch.from_numpy(text.sequences.astype(np.int64))
    with torch.inference_mode():
        hidden = source_model.bridge.original_model(tokens, output_hidden_states=True).hidden_states
    expected = hidden[1][sampled.sequences, sampled.positions]
    torch.testing.assert_close(sampled.rows[HOOK], expected)
    found = sampled.reference(HOOK, None)
    torch.testing.assert_close(found.mean, expected.mean(0))
    assert found.median_norm == pytest.approx(expected.norm(dim=1).median().item())


@pytest.mark.parametrize("batch_size", [1, 7, 200])
def test_batches_change_nothing(sample: Callable[..., SampledRows], batch_size: int) -> None:
    one, other = sample(batch_size), sample()
    assert torch.equal(one.sequences, other.sequences)
    assert torch.equal(one.positions, other.positions)
    torch.testing.assert_close(one.rows[LAST], other.rows[LAST])


def test_a_mean_that_is_known_is_taken(sample: Callable[..., SampledRows]) -> None:
    known = torch.arange(32.0)
    sampled = sample()
    assert torch.equal(sampled.reference(HOOK, known).mean, known)
    assert sampled.reference(HOOK, known).median_norm == sampled.reference(HOOK, None).median_norm


def test_text_of_special_tokens_alone_is_refused(
    sample: Callable[..., SampledRows], text: HeldOutText
) -> None:
    special = np.where(text.sequences > 2, 1, text.sequences).astype(np.uint32)
    with pytest.raises(BadInputError, match="has 0 tokens that are neither first nor special"):
        sample(of=replace(text, sequences=special))


@pytest.fixture
def several(sae: Path, sae_of_heads: Path, tmp_path: Path) -> Path:
    """A run of a trained SAE, and of a crosscoder without a mean."""
    for name, folder in (("a", sae), ("b", sae_of_heads)):
        (tmp_path / "run" / "sae").mkdir(parents=True, exist_ok=True)
        folder.rename(tmp_path / "run" / "sae" / name)
    both = save_made(
        tmp_path / "run" / "sae" / "c",
        random(64, 64),
        tmp_path / "run" / "sae" / "a",
        (HOOK, LAST),
        None,
        "crosscoder",
    )
    assert both.is_dir()
    return tmp_path / "run"


def test_saes_have_their_means_with_them(several: Path) -> None:
    saes = open_saes(several)
    found = carried_means(saes)
    assert set(found) == {HOOK, HEADS}
    assert saes[0].sae.mean is not None
    assert torch.equal(found[HOOK], saes[0].sae.mean)
