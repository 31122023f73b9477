"""What makes two results comparable is what they were made from, not what that was called."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from made_results import made_result

from saeflow.evaluate.config import EvaluateConfig
from saeflow.evaluate.like_for_like import differences
from saeflow.evaluate.run import evaluate_sae

HASHES = {
    "model_weights_sha256": "aa" * 32,
    "model_config_sha256": "bb" * 32,
    "tokenizer_sha256": "cc" * 32,
    "dtype": "float32",
}


def made(
    name: str, *, text: str = "dd" * 32, source: str = "store", **other: Any
) -> dict[str, Any]:
    """A result that says what it was made from."""
    options = {key: other.pop(key, value) for key, value in HASHES.items()}
    result = made_result(name, **other)
    return {
        **result,
        "options": options,
        "text": {**result["text"], "sha256": text, "source": source},
    }


def test_one_model_and_text_under_two_names_are_the_same() -> None:
    assert differences([made("a"), made("b", model="/models/m", source="/elsewhere/store")]) == []


def test_two_models_of_one_name_are_told_apart() -> None:
    other = made("b", model_weights_sha256="ee" * 32)
    (note,) = differences([made("a"), other])
    name = "HuggingFaceTB/SmolLM2-135M"
    sides = f"{name} aaaaaaaaaaaa (a); {name} eeeeeeeeeeee (b)"
    assert note == f"not like for like, model differs: {sides}"


def test_two_models_of_two_names_are_told_by_name() -> None:
    other = made("b", model="gpt2", model_weights_sha256="ee" * 32)
    (note,) = differences([made("a"), other, made("c", model="gpt2-copy")])
    assert note.endswith("differs: HuggingFaceTB/SmolLM2-135M (a, c); gpt2 (b)")


def test_two_texts_at_one_place_are_told_apart() -> None:
    (note,) = differences([made("a"), made("b", text="ee" * 32)])
    assert note.endswith("text differs: store dddddddddddd (a); store eeeeeeeeeeee (b)")


@pytest.mark.parametrize(
    ("other", "told"),
    [
        ({"model_config_sha256": "ee" * 32}, "model-config differs: bbbbbbbbbbbb (a); eeeeee"),
        ({"tokenizer_sha256": "ee" * 32}, "tokenizer differs: cccccccccccc (a); eeeeeeeeeeee (b)"),
        ({"dtype": "bfloat16"}, "dtype differs: float32 (a); bfloat16 (b)"),
        (
            {"mismatches": [{"field": "model", "sae": "1", "here": "2"}]},
            "mismatches differs: none (a); model (b)",
        ),
    ],
)
def test_what_else_is_said(other: dict[str, Any], told: str) -> None:
    (note,) = differences([made("a"), made("b", **other)])
    assert told in note


def test_a_result_without_hashes_is_compared_by_names() -> None:
    old, other = made_result("old"), made_result("other", model="gpt2")
    assert differences([old, made_result("same")]) == []
    (note,) = differences([old, other])
    assert note.endswith("model differs: HuggingFaceTB/SmolLM2-135M (old); gpt2 (other)")


def test_text_from_a_store_and_from_its_dataset_is_the_same(
    config: Callable[..., EvaluateConfig], tiny_text: Path, tmp_path: Path
) -> None:
    quick: dict[str, Any] = {"tokens": 160, "latents": "none", "report": False}
    results = [
        evaluate_sae(config(**quick, out=tmp_path / "a")),
        evaluate_sae(config(**quick, out=tmp_path / "b", dataset=str(tiny_text))),
        evaluate_sae(config(**{**quick, "tokens": 320}, out=tmp_path / "c")),
    ]
    whole = [
        {**result.to_json(), "name": name} for result, name in zip(results, "abc", strict=True)
    ]
    assert differences(whole[:2]) == []
    assert any(", text differs: " in note for note in differences(whole))
