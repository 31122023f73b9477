"""Which text an evaluation is of, and whether the SAE was trained on it."""

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from datasets import Dataset, DatasetDict

from saeflow.errors import BadInputError
from saeflow.evaluate.checks import Used, check_all
from saeflow.evaluate.config import EvaluateConfig
from saeflow.evaluate.opening import open_saes
from saeflow.evaluate.origin import Origin, origin_of
from saeflow.evaluate.run import evaluate_sae, plan_evaluation
from saeflow.evaluate.text import HeldOutText, held_out_text
from saeflow.evaluate.text_source import TextSource, find_text
from saeflow.harvest.config import HarvestConfig
from saeflow.harvest.models import SourceModel, describe_model
from saeflow.harvest.run import harvest_activations
from saeflow.train.config import TrainConfig
from saeflow.train.folder import load_sae
from saeflow.train.run import train_sae

Make = Callable[..., EvaluateConfig]
SaeOf = Callable[..., Path]


@pytest.fixture
def origin(sae: Path) -> Origin:
    """Of an SAE that a fifth of `tiny_text` was held out of."""
    return origin_of(load_sae(sae))


@pytest.fixture
def sae_of(taught_model: Path, tiny_options: Callable[..., HarvestConfig], tmp_path: Path) -> SaeOf:
    """An untrained SAE of a store that was harvested with these options."""

    def make(**options: object) -> Path:
        out = tmp_path / "store-of-it"
        harvest_activations(tiny_options(model=str(taught_model), out=out, tokens=800, **options))
        run = TrainConfig(
            store=out, out=tmp_path / "run", d_sae=40, batch_size=64, tokens=0, device="cpu"
        )
        return train_sae(run).folder

    return make


@pytest.fixture
def two_fields(tiny_text: Path, tmp_path: Path) -> Path:
    """The words of `tiny_text` as `body`; as `text`, something that nobody wants."""
    documents = [json.loads(line)["text"] for line in tiny_text.read_text().splitlines()]
    lines = [json.dumps({"text": f"no {i}" * 20, "body": body}) for i, body in enumerate(documents)]
    file = tmp_path / "fields.jsonl"
    file.write_text("\n".join(lines))
    return file


@pytest.fixture
def two_splits(tiny_text: Path, tmp_path: Path) -> Path:
    documents = [json.loads(line)["text"] for line in tiny_text.read_text().splitlines()]
    splits = {
        "train": Dataset.from_dict({"text": documents}),
        "test": Dataset.from_dict({"text": [f"{words} test" for words in documents]}),
    }
    DatasetDict(splits).save_to_disk(tmp_path / "splits")
    return tmp_path / "splits"


def mismatches(
    config: EvaluateConfig, sae: Path, model: SourceModel
) -> tuple[HeldOutText, list[dict[str, str]]]:
    """The text that an SAE is evaluated on, and what is said of it."""
    (opened,) = open_saes(sae)
    origin = origin_of(opened.sae)
    text = held_out_text(find_text(config, origin), config, origin, model)
    found = check_all(config, opened, Used(describe_model(model.spec), {}, text))
    return text, [mismatch.to_json() for mismatch in found]


# Splits and fields.


def test_of_its_own_dataset_an_sae_knows_the_field(
    sae_of: SaeOf, two_fields: Path, source_model: SourceModel
) -> None:
    sae = sae_of(dataset=str(two_fields), text_field="body")
    config = EvaluateConfig(sae=sae, dataset=str(two_fields), device="cpu")
    text, found = mismatches(config, sae, source_model)
    stored, _ = mismatches(replace(config, dataset=None), sae, source_model)
    shared = min(len(text.sequences), len(stored.sequences))
    assert (text.sequences[:shared] == stored.sequences[:shared]).mean() > 0.9
    assert (text.trained_on, found) == (False, [])


def test_another_field_is_other_text(
    sae_of: SaeOf, two_fields: Path, source_model: SourceModel
) -> None:
    sae = sae_of(dataset=str(two_fields), text_field="body", held_out=0.0)
    config = EvaluateConfig(
        sae=sae, dataset=str(two_fields), text_field="text", tokens=32, device="cpu"
    )
    text, (mismatch,) = mismatches(config, sae, source_model)
    assert text.trained_on is None  # one may be part of the other
    assert (mismatch["field"], mismatch["here"]) == ("dataset", "field 'text'")
    assert mismatch["sae"].startswith("field 'body' of ")


def test_another_split_is_other_text(
    sae_of: SaeOf, two_splits: Path, source_model: SourceModel
) -> None:
    sae = sae_of(dataset=str(two_splits), held_out=0.0)
    config = EvaluateConfig(sae=sae, dataset=str(two_splits), tokens=640, device="cpu")
    for split in (None, "train"):
        with pytest.raises(BadInputError, match="was trained on all of"):
            find_text(replace(config, split=split), origin_of(load_sae(sae)))
    for allow in (True, False):
        other = replace(config, split="test", allow_training_text=allow)
        text, (mismatch,) = mismatches(other, sae, source_model)
        assert text.trained_on is False
        assert (mismatch["field"], mismatch["here"]) == ("dataset", "split 'test'")
    assert " test<|eos|>" in source_model.tokenizer.decode(text.sequences.ravel())


def test_a_file_has_no_splits(config: Make, origin: Origin, tiny_text: Path) -> None:
    named = {"dataset": str(tiny_text), "allow_training_text": True}
    assert find_text(config(**named, split="test"), origin).trained_on is True


@pytest.mark.parametrize(
    ("option", "flag"), [("split", "--split test"), ("text_field", "--text-field test")]
)
def test_options_of_a_dataset_need_one(
    config: Make, origin: Origin, option: str, flag: str
) -> None:
    with pytest.raises(BadInputError, match=f"^{flag} is of a dataset: give --dataset"):
        find_text(config(**{option: "test"}), origin)
    with pytest.raises(BadInputError, match=f"^{flag} is of a dataset: give --dataset"):
        plan_evaluation(config(**{option: "test"}))


# What was trained on.


def test_a_renamed_copy_is_the_same_text(
    config: Make, origin: Origin, tiny_text: Path, tmp_path: Path
) -> None:
    copy = config(dataset=str(shutil.copy(tiny_text, tmp_path / "renamed.jsonl")))
    with pytest.raises(BadInputError, match="was trained on all of"):
        find_text(copy, replace(origin, held_out=0.0))
    allowed = replace(copy, allow_training_text=True)
    assert find_text(allowed, replace(origin, held_out=0.0)).trained_on is True
    assert find_text(copy, origin).own


def test_of_text_that_was_changed_nobody_knows_unless_the_hash_holds_it_out(
    config: Make, origin: Origin, tiny_text: Path, tmp_path: Path
) -> None:
    """One line more, and it is another file with all of the training text in it."""
    more = tmp_path / "more.jsonl"
    more.write_text(tiny_text.read_text() + '{"text": "one more"}\n')

    def trained_on(origin: Origin) -> bool | None:
        return find_text(config(dataset=str(more)), origin).trained_on

    assert trained_on(origin) is False
    for said in ({"held_out": 0.0}, {"held_out": None}, {"imported": True}):
        assert trained_on(replace(origin, **said)) is None
    assert trained_on(Origin()) is None


def test_token_ids_are_hashed_otherwise_than_their_text(
    config: Make, origin: Origin, source_model: SourceModel, tmp_path: Path
) -> None:
    tokens = tmp_path / "tokens.jsonl"
    lines = [json.dumps({"input_ids": [i % 250 + 3] * 40}) for i in range(100)]
    tokens.write_text("\n".join(lines))
    options = config(dataset=str(tokens))
    text = held_out_text(find_text(options, origin), options, origin, source_model)
    assert text.trained_on is None


@pytest.mark.parametrize(("share", "expected"), [(0.2, False), (0.19, None), (0.5, False)])
def test_another_store_may_hold_out_what_was_trained_on(
    config: Make, origin: Origin, tiny_store: Path, share: float, expected: bool | None
) -> None:
    """`tiny_store` holds out a fifth of the text: with a larger share all of that was unseen."""
    other = replace(origin, store_path=str(tiny_store), held_out=share)

    def found(**more: object) -> TextSource:
        return find_text(config(allow_mismatch=("dataset",), **more), other)

    assert found().trained_on is expected
    assert found(allow_training_text=True).trained_on is None


def test_a_result_says_that_it_is_not_known(
    config: Make, sae: Path, change_cfg: Callable[..., None], tiny_text: Path, tmp_path: Path
) -> None:
    (sae / "self_test.safetensors").unlink()
    change_cfg(sae, "metadata", "saeflow", "store", "provenance", "held_out", 0.0)
    copy = tmp_path / "copy.jsonl"
    copy.write_text(tiny_text.read_text() + "\n")
    result = evaluate_sae(config(dataset=str(copy), report=False, latents="none"))
    assert (result.text["trained_on"], result.text["held_out_only"]) == (None, None)
    assert "tokens that it may have been trained on" in result.verdict
