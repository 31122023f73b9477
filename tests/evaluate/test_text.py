"""Held-out text: the same documents from the store and from the dataset, and no others."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from saeflow.errors import BadInputError
from saeflow.evaluate.config import EvaluateConfig
from saeflow.evaluate.text import HeldOutText, held_out_text
from saeflow.harvest.models import SourceModel
from saeflow.harvest.store import open_store
from saeflow.harvest.tokens import is_held_out

Make = Callable[..., EvaluateConfig]


@pytest.fixture
def provenance(sae: Path) -> dict[str, Any]:
    """`metadata.saeflow` of the SAE."""
    cfg = json.loads((sae / "cfg.json").read_text())
    return dict(cfg["metadata"]["saeflow"])


@pytest.fixture
def text_of(source_model: SourceModel) -> Callable[..., HeldOutText]:
    def text(config: EvaluateConfig, provenance: dict[str, Any]) -> HeldOutText:
        return held_out_text(config, provenance, source_model)

    return text


def test_the_text_of_the_store_is_its_held_out_sequences(
    config: Make,
    provenance: dict[str, Any],
    text_of: Callable[..., HeldOutText],
    taught_store: Path,
) -> None:
    text = text_of(config(tokens=10**6), provenance)
    store = open_store(taught_store)
    assert np.array_equal(text.sequences, store.sequences(store.held_out, 0, 10**6))
    assert text.source == str(taught_store)
    assert text.available == store.held_out.n_sequences > 100


def test_the_dataset_gives_the_same_documents(
    config: Make, provenance: dict[str, Any], text_of: Callable[..., HeldOutText], tiny_text: Path
) -> None:
    stored = text_of(config(), provenance)
    again = text_of(config(dataset=str(tiny_text)), provenance)
    assert again.source == str(tiny_text)
    assert again.available == stored.available
    assert np.array_equal(again.sequences, stored.sequences)


def test_without_the_store_the_dataset_is_taken_with_a_warning(
    config: Make,
    provenance: dict[str, Any],
    text_of: Callable[..., HeldOutText],
    capsys: pytest.CaptureFixture[str],
) -> None:
    stored = text_of(config(), provenance)
    assert capsys.readouterr().err == ""
    provenance["store"]["path"] = "/gone/store"
    again = text_of(config(), provenance)
    assert "warning: store /gone/store is gone" in capsys.readouterr().err
    assert np.array_equal(again.sequences, stored.sequences)


@pytest.mark.parametrize(("tokens", "expected"), [(1, 1), (16, 1), (17, 2), (160, 10)])
def test_no_more_sequences_than_tokens_ask_for(
    config: Make,
    provenance: dict[str, Any],
    text_of: Callable[..., HeldOutText],
    tokens: int,
    expected: int,
) -> None:
    assert len(text_of(config(tokens=tokens), provenance).sequences) == expected


def test_few_sequences_are_spread_over_all(
    config: Make, provenance: dict[str, Any], text_of: Callable[..., HeldOutText]
) -> None:
    every = text_of(config(tokens=10**6), provenance).sequences
    few = text_of(config(tokens=16 * 4), provenance).sequences
    assert np.array_equal(few, every[[0, len(every) // 4, len(every) // 2, 3 * len(every) // 4]])


def test_another_store_at_the_path_is_refused(
    config: Make, provenance: dict[str, Any], text_of: Callable[..., HeldOutText], tiny_store: Path
) -> None:
    provenance["store"]["path"] = str(tiny_store)
    with pytest.raises(BadInputError, match=r"not the one that this SAE was trained on.*--dataset"):
        text_of(config(), provenance)


def test_an_incomplete_store_is_refused(
    config: Make,
    provenance: dict[str, Any],
    text_of: Callable[..., HeldOutText],
    taught_store: Path,
    tmp_path: Path,
) -> None:
    copy = shutil.copytree(taught_store, tmp_path / "copy")
    root = json.loads((copy / "zarr.json").read_text())
    root["attributes"]["saeflow"]["state"] = "writing"
    (copy / "zarr.json").write_text(json.dumps(root))
    provenance["store"]["path"] = str(copy)
    with pytest.raises(BadInputError, match=f"store {copy} is incomplete"):
        text_of(config(), provenance)


def test_a_dataset_too_small_to_hold_out_anything_is_refused(
    config: Make, provenance: dict[str, Any], text_of: Callable[..., HeldOutText], tmp_path: Path
) -> None:
    """The remedy must be one that `saeflow evaluate` has: it has no --context-size."""
    small = tmp_path / "small.jsonl"
    small.write_text('{"text": "one"}\n')
    with pytest.raises(BadInputError, match=f"dataset {small} .*: give more text$"):
        text_of(config(dataset=str(small)), provenance)


def test_a_dataset_of_held_out_documents_alone_is_enough(
    config: Make,
    provenance: dict[str, Any],
    text_of: Callable[..., HeldOutText],
    tiny_text: Path,
    tmp_path: Path,
) -> None:
    """What would be training text is not used, so none is needed."""
    lines = tiny_text.read_text(encoding="utf-8").splitlines()
    kept = [s for s in lines if is_held_out(json.loads(s)["text"].encode(), 0.2)]
    (tmp_path / "kept.jsonl").write_text("\n".join(kept), encoding="utf-8")
    alone = text_of(config(dataset=str(tmp_path / "kept.jsonl")), provenance)
    stored = text_of(config(), provenance)
    assert np.array_equal(alone.sequences, stored.sequences)


def test_a_foreign_sae_needs_a_dataset(
    config: Make, text_of: Callable[..., HeldOutText], tiny_text: Path
) -> None:
    with pytest.raises(BadInputError, match="does not say what text it is from: give --dataset"):
        text_of(config(), {})
    text = text_of(config(dataset=str(tiny_text), tokens=10**6), {})
    assert len(text.sequences) > 1


def test_sequences_are_not_longer_than_the_model_takes(
    config: Make, text_of: Callable[..., HeldOutText], tiny_text: Path, source_model: SourceModel
) -> None:
    """A foreign SAE does not say how long; `tiny_model` takes 64 tokens."""
    text = text_of(config(dataset=str(tiny_text)), {})
    assert text.sequences.shape[1] <= source_model.longest_context
