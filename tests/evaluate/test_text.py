"""Held-out text: the same documents from the store and from the dataset, and no others."""

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from saeflow.errors import BadInputError
from saeflow.evaluate.config import EvaluateConfig
from saeflow.evaluate.origin import Origin, origin_of
from saeflow.evaluate.text import HeldOutText, held_out_text
from saeflow.evaluate.text_source import find_text
from saeflow.harvest.config import HarvestConfig
from saeflow.harvest.models import SourceModel
from saeflow.harvest.run import harvest_activations
from saeflow.harvest.store import open_store
from saeflow.harvest.tokens import is_held_out
from saeflow.train.folder import load_sae

Make = Callable[..., EvaluateConfig]
CUT = "\N{REPLACEMENT CHARACTER}"
"""What is left of a letter of several bytes that two sequences share."""


@pytest.fixture
def origin(sae: Path) -> Origin:
    """Where the SAE is from."""
    return origin_of(load_sae(sae))


@pytest.fixture
def text_of(source_model: SourceModel) -> Callable[..., HeldOutText]:
    def text(config: EvaluateConfig, origin: Origin) -> HeldOutText:
        return held_out_text(find_text(config, origin), config, origin, source_model)

    return text


def test_the_text_of_the_store_is_its_held_out_sequences(
    config: Make,
    origin: Origin,
    text_of: Callable[..., HeldOutText],
    taught_store: Path,
) -> None:
    text = text_of(config(tokens=10**6), origin)
    store = open_store(taught_store)
    assert np.array_equal(text.sequences, store.sequences(store.held_out, 0, 10**6))
    assert text.source == str(taught_store)
    assert text.available == store.held_out.n_sequences > 100


def test_the_dataset_gives_the_same_documents(
    config: Make, origin: Origin, text_of: Callable[..., HeldOutText], tiny_text: Path
) -> None:
    stored = text_of(config(), origin)
    again = text_of(config(dataset=str(tiny_text)), origin)
    assert again.source == str(tiny_text)
    assert again.available == stored.available
    assert np.array_equal(again.sequences, stored.sequences)


def test_without_the_store_the_dataset_is_taken_with_a_warning(
    config: Make,
    origin: Origin,
    text_of: Callable[..., HeldOutText],
    capsys: pytest.CaptureFixture[str],
) -> None:
    stored = text_of(config(), origin)
    assert capsys.readouterr().err == ""
    again = text_of(config(), replace(origin, store_path="/gone/store"))
    assert "warning: store /gone/store is gone" in capsys.readouterr().err
    assert np.array_equal(again.sequences, stored.sequences)


@pytest.mark.parametrize(("tokens", "expected"), [(1, 1), (16, 1), (17, 2), (160, 10)])
def test_no_more_sequences_than_tokens_ask_for(
    config: Make,
    origin: Origin,
    text_of: Callable[..., HeldOutText],
    tokens: int,
    expected: int,
) -> None:
    assert len(text_of(config(tokens=tokens), origin).sequences) == expected


def test_few_sequences_are_spread_over_all(
    config: Make, origin: Origin, text_of: Callable[..., HeldOutText]
) -> None:
    every = text_of(config(tokens=10**6), origin).sequences
    few = text_of(config(tokens=16 * 4), origin).sequences
    assert np.array_equal(few, every[[0, len(every) // 4, len(every) // 2, 3 * len(every) // 4]])


def test_another_store_at_the_path_is_refused(
    config: Make, origin: Origin, text_of: Callable[..., HeldOutText], tiny_store: Path
) -> None:
    moved = replace(origin, store_path=str(tiny_store))
    with pytest.raises(BadInputError, match=r"not the one that this SAE was trained on.*--dataset"):
        text_of(config(), moved)
    text = text_of(config(allow_mismatch=("dataset",)), moved)
    assert text.store_identity == open_store(tiny_store).identity != origin.store_identity


def test_an_incomplete_store_is_refused(
    config: Make,
    origin: Origin,
    text_of: Callable[..., HeldOutText],
    taught_store: Path,
    tmp_path: Path,
) -> None:
    copy = shutil.copytree(taught_store, tmp_path / "copy")
    root = json.loads((copy / "zarr.json").read_text())
    root["attributes"]["saeflow"]["state"] = "writing"
    (copy / "zarr.json").write_text(json.dumps(root))
    with pytest.raises(BadInputError, match=f"store {copy} is incomplete"):
        text_of(config(), replace(origin, store_path=str(copy)))


def test_a_dataset_too_small_to_hold_out_anything_is_refused(
    config: Make, origin: Origin, text_of: Callable[..., HeldOutText], tmp_path: Path
) -> None:
    """The remedy must be one that `saeflow evaluate` has: it has no --context-size."""
    small = tmp_path / "small.jsonl"
    small.write_text('{"text": "one"}\n')
    with pytest.raises(BadInputError, match=f"dataset {small} .*: give more text$"):
        text_of(config(dataset=str(small)), origin)


def test_a_dataset_of_held_out_documents_alone_is_enough(
    config: Make,
    origin: Origin,
    text_of: Callable[..., HeldOutText],
    tiny_text: Path,
    tmp_path: Path,
) -> None:
    """What would be training text is not used, so none is needed."""
    lines = tiny_text.read_text(encoding="utf-8").splitlines()
    kept = [s for s in lines if is_held_out(json.loads(s)["text"].encode(), 0.2)]
    (tmp_path / "kept.jsonl").write_text("\n".join(kept), encoding="utf-8")
    alone = text_of(config(dataset=str(tmp_path / "kept.jsonl")), origin)
    stored = text_of(config(), origin)
    assert np.array_equal(alone.sequences, stored.sequences)


def test_a_foreign_sae_needs_a_dataset(
    config: Make, text_of: Callable[..., HeldOutText], tiny_text: Path
) -> None:
    with pytest.raises(BadInputError, match="does not say what text it is from: give --dataset"):
        text_of(config(), Origin())
    text = text_of(config(dataset=str(tiny_text), tokens=10**6), Origin())
    assert len(text.sequences) > 1


def test_sequences_are_not_longer_than_the_model_takes(
    config: Make, text_of: Callable[..., HeldOutText], tiny_text: Path, source_model: SourceModel
) -> None:
    """A foreign SAE does not say how long; `tiny_model` takes 64 tokens."""
    text = text_of(config(dataset=str(tiny_text)), Origin())
    assert text.sequences.shape[1] <= source_model.longest_context


def words_of(text: HeldOutText, model: SourceModel, number: int) -> dict[int, str]:
    """What a sequence holds of each document."""
    found: dict[int, list[int]] = {}
    for token, document in zip(text.sequences[number], text.documents[number], strict=True):
        if document >= 0:
            found.setdefault(int(document), []).append(int(token))
    return {
        document: str(model.tokenizer.decode(tokens, skip_special_tokens=True))
        for document, tokens in found.items()
    }


@pytest.mark.parametrize("packed", [True, False])
@pytest.mark.parametrize("from_dataset", [True, False])
def test_each_position_knows_its_document(
    source_model: SourceModel,
    tiny_text: Path,
    tiny_config: Callable[..., HarvestConfig],
    config: Make,
    packed: bool,
    from_dataset: bool,
) -> None:
    """Held against the dataset's own lines: each part of a sequence is a part of its document."""
    harvest = tiny_config(pack=packed, tokens=None, shard_rows=4096)
    store = harvest_activations(harvest).store
    origin = Origin(
        dataset=str(tiny_text),
        store_path=str(store.path),
        store_identity=store.identity,
        held_out=0.2,
        context_size=17,
        packed=packed,
    )
    given = {"dataset": str(tiny_text)} if from_dataset else {}
    options = config(tokens=10**6, **given)
    text = held_out_text(find_text(options, origin), options, origin, source_model)
    documents = [json.loads(line)["text"] for line in tiny_text.read_text().splitlines()]
    assert len(text.sequences) == text.available == store.held_out.n_sequences
    assert text.packing.packed is packed
    seen = set()
    for number in range(len(text.sequences)):
        for document, words in words_of(text, source_model, number).items():
            assert words.strip(CUT) in documents[document]
            seen.add(document)
    held_out = {i for i, words in enumerate(documents) if is_held_out(words.encode(), 0.2)}
    assert seen == held_out if not packed else seen <= held_out
    positions = np.arange(17)
    outside = (positions == 0) | (positions >= text.lengths[:, None])
    assert np.array_equal(text.documents == -1, outside)
    assert bool(text.lengths.min() < 17) is not packed


def test_how_frequent_tokens_are_is_told_by_the_training_text(
    config: Make, origin: Origin, text_of: Callable[..., HeldOutText], taught_store: Path
) -> None:
    text = text_of(config(), origin)
    stored = np.asarray(open_store(taught_store).array("sequences/token")[:])[:, 1:]
    counts = np.bincount(stored.ravel(), minlength=300)
    np.testing.assert_allclose(text.frequency, counts / counts.sum(), rtol=1e-12)


def test_a_long_text_is_counted_in_parts_from_all_of_it(
    config: Make,
    origin: Origin,
    text_of: Callable[..., HeldOutText],
    taught_store: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("saeflow.evaluate.sequences._COUNTED", 16 * 16 * 3)
    frequency = text_of(config(), origin).frequency
    stored = np.asarray(open_store(taught_store).array("sequences/token")[:])[:, 1:]
    parts = [stored[len(stored) * i // 16 :][:3] for i in range(16)]
    counts = np.bincount(np.concatenate(parts).ravel(), minlength=300)
    np.testing.assert_allclose(frequency, counts / counts.sum(), rtol=1e-12)


def test_a_dataset_is_not_read_further_than_needed(
    config: Make, text_of: Callable[..., HeldOutText], tiny_text: Path, tmp_path: Path
) -> None:
    """What comes after enough held-out text isn't even looked at: here it is no JSON."""
    lines = tiny_text.read_text(encoding="utf-8")
    (tmp_path / "long.jsonl").write_text(lines * 30 + "no JSON\n", encoding="utf-8")
    text = text_of(config(dataset=str(tmp_path / "long.jsonl"), tokens=160), Origin())
    assert len(text.sequences) == 3
    with pytest.raises(BadInputError, match=r"line 3601 of .* is not JSON"):
        text_of(config(dataset=str(tmp_path / "long.jsonl"), tokens=10**6), Origin())


def test_training_text_is_used_when_asked_and_marked(
    config: Make, origin: Origin, text_of: Callable[..., HeldOutText], taught_store: Path
) -> None:
    text = text_of(config(allow_training_text=True, tokens=10**6), origin)
    store = open_store(taught_store)
    assert np.array_equal(text.sequences, store.sequences(store.train, 0, 10**6))
    assert text.trained_on
    assert not text_of(config(), origin).trained_on


@pytest.mark.parametrize("named", [True, False])
def test_where_nothing_was_held_out_training_text_must_be_asked_for(
    config: Make,
    origin: Origin,
    text_of: Callable[..., HeldOutText],
    tiny_text: Path,
    named: bool,
) -> None:
    all_of_it = replace(origin, held_out=0.0)
    given = {"dataset": str(tiny_text)} if named else {}
    with pytest.raises(BadInputError, match=r"was trained on all of .*--allow-training-text"):
        text_of(config(**given), all_of_it)
    assert text_of(config(allow_training_text=True, **given), all_of_it).trained_on


def test_the_same_text_under_another_name_is_still_training_text(
    config: Make,
    origin: Origin,
    text_of: Callable[..., HeldOutText],
    tiny_text: Path,
    tmp_path: Path,
) -> None:
    """Known by its content: `text.jsonl` in another folder."""
    copy = shutil.copy(tiny_text, tmp_path / "text.jsonl")
    with pytest.raises(BadInputError, match="was trained on all of"):
        text_of(config(dataset=str(copy)), replace(origin, held_out=0.0))
    other = tmp_path / "other.jsonl"
    other.write_text(tiny_text.read_text().replace("shard", "shards"))
    assert not text_of(config(dataset=str(other)), replace(origin, held_out=0.0)).trained_on


def test_a_foreign_saes_own_text_is_training_text(
    config: Make, text_of: Callable[..., HeldOutText], tiny_text: Path
) -> None:
    """SAELens holds nothing out."""
    foreign = Origin(dataset=str(tiny_text), context_size=33)
    with pytest.raises(BadInputError, match="does not say that any was held out"):
        text_of(config(), foreign)
    with pytest.raises(BadInputError, match="does not say that any was held out"):
        text_of(config(dataset=str(tiny_text)), foreign)
    text = text_of(config(allow_training_text=True), foreign)
    assert text.trained_on
    assert text.sequences.shape[1] == 33


def test_imported_rows_have_no_text(
    config: Make, origin: Origin, text_of: Callable[..., HeldOutText]
) -> None:
    imported = replace(origin, imported=True, dataset=None)
    with pytest.raises(BadInputError, match="imported activations, whose text is not in the store"):
        text_of(config(), imported)


def test_tokens_that_the_model_does_not_know_are_refused(
    config: Make, text_of: Callable[..., HeldOutText], tmp_path: Path
) -> None:
    tokens = tmp_path / "tokens.jsonl"
    lines = [json.dumps({"input_ids": [i + 300] * 400}) for i in range(100)]
    tokens.write_text("\n".join(lines))
    with pytest.raises(BadInputError, match=r"holds token \d+, but model .* has only 300"):
        text_of(config(dataset=str(tokens), tokens=10**6), Origin())
