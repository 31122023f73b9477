"""Provenance against what is used: every field, both sides told, and what is allowed."""

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from saeflow.errors import BadInputError
from saeflow.evaluate.checks import Used, check_all
from saeflow.evaluate.config import MISMATCH_FIELDS, EvaluateConfig
from saeflow.evaluate.mismatch import Mismatch
from saeflow.evaluate.opening import OpenedSAE, open_saes
from saeflow.evaluate.text import HeldOutText
from saeflow.harvest.models import ModelSpec, describe_model
from saeflow.harvest.tokens import Packing

Make = Callable[..., EvaluateConfig]
HOOK = "blocks.0.hook_resid_post"
PACKING = Packing(context_size=17, bos=0, separator=1)


@pytest.fixture
def opened(sae: Path) -> OpenedSAE:
    (one,) = open_saes(sae)
    return one


@pytest.fixture
def text(opened: OpenedSAE) -> HeldOutText:
    """Text as the SAE's store gives it."""
    store = opened.sae.cfg["metadata"]["saeflow"]["store"]
    return HeldOutText(
        source=store["path"],
        sequences=np.zeros((1, 17), np.uint32),
        available=1,
        documents=np.zeros((1, 17), np.int64),
        lengths=np.array([17]),
        frequency=np.ones(1),
        trained_on=False,
        packing=PACKING,
        dataset=store["provenance"]["dataset"],
        dataset_sha256=None,
        store_identity=store["identity"],
    )


@pytest.fixture
def used(taught_model: Path, text: HeldOutText) -> Used:
    """All as it was when the SAE was made."""
    return Used(describe_model(ModelSpec(name=str(taught_model))), {HOOK: 32}, text)


def with_model(used: Used, **changed: Any) -> Used:
    return replace(used, model={**used.model, **changed})


def with_text(used: Used, **changed: Any) -> Used:
    assert used.text is not None
    return replace(used, text=replace(used.text, **changed))


def saying(opened: OpenedSAE, **said: Any) -> OpenedSAE:
    """The SAE with other metadata than its own: a foreign one's."""
    metadata = {"hook_name": HOOK, **said}
    return replace(opened, sae=replace(opened.sae, cfg={**opened.sae.cfg, "metadata": metadata}))


def refused(config: EvaluateConfig, opened: OpenedSAE, used: Used, field: str) -> str:
    """The message of a refusal; allowed by name, the mismatch is recorded instead."""
    with pytest.raises(BadInputError, match=f"^{field} differs: SAE sae was made from ") as error:
        check_all(config, opened, used)
    assert error.value.exit_code == 2
    message = str(error.value)
    assert message.endswith(f", or add --allow-mismatch {field}")
    assert "\n" not in message
    (mismatch,) = check_all(replace(config, allow_mismatch=(field,)), opened, used)
    assert mismatch.field == field
    assert f"made from {mismatch.sae}, here is {mismatch.here}: {mismatch.remedy}" in message
    return message


def test_nothing_differs_where_nothing_changed(config: Make, opened: OpenedSAE, used: Used) -> None:
    assert check_all(config(), opened, used) == ()


# One test for each field.


def test_model(config: Make, opened: OpenedSAE, used: Used) -> None:
    weights = used.model["weights_sha256"]
    message = refused(config(), opened, with_model(used, weights_sha256="77b0" * 16), "model")
    assert f"weights {weights[:12]} of " in message
    assert "weights 77b077b077b0 of " in message
    assert "with --model, or" in message


def test_model_config(config: Make, opened: OpenedSAE, used: Used) -> None:
    changed = with_model(used, config_sha256="77b0" * 16)
    assert "config.json 77b077b077b0 of" in refused(config(), opened, changed, "model-config")


def test_tokenizer(config: Make, opened: OpenedSAE, used: Used) -> None:
    changed = with_model(used, tokenizer_sha256="77b0" * 16)
    assert "tokenizer files 77b077b077b0 of" in refused(config(), opened, changed, "tokenizer")


def test_hook_point(config: Make, sae: Path, used: Used, change_cfg: Callable[..., None]) -> None:
    change_cfg(sae, "metadata", "hook_name", "blocks.1.hook_resid_post")
    (opened,) = open_saes(sae)
    changed = replace(used, widths={"blocks.1.hook_resid_post": 32})
    message = refused(config(), opened, changed, "hook-point")
    assert "rows of blocks.0.hook_resid_post, blocks.1.attn.hook_z" in message
    assert "here is blocks.1.hook_resid_post, by its cfg.json" in message


def test_width(config: Make, opened: OpenedSAE, used: Used) -> None:
    """It is refused whatever is allowed: nothing could be computed."""
    allow = tuple(field for field in MISMATCH_FIELDS if field != "width")
    with pytest.raises(BadInputError) as error:
        check_all(config(allow_mismatch=allow), opened, replace(used, widths={HOOK: 48}))
    assert str(error.value) == (
        f"width differs: SAE sae has d_in 32, but {HOOK} of {used.model['name']} has 48: "
        "evaluate it on the model that it was trained on"
    )


def test_dtype(config: Make, opened: OpenedSAE, used: Used) -> None:
    changed = with_model(used, dtype="bfloat16")
    message = refused(config(), opened, changed, "dtype")
    assert (
        "a forward pass in float32, here is one in bfloat16: run it with --dtype float32" in message
    )


def test_a_dtype_that_was_asked_for_is_recorded_only(
    config: Make, opened: OpenedSAE, used: Used
) -> None:
    (found,) = check_all(config(dtype="bfloat16"), opened, with_model(used, dtype="bfloat16"))
    assert found.to_json() == {
        "field": "dtype",
        "sae": "a forward pass in float32",
        "here": "one in bfloat16",
    }
    assert check_all(config(dtype="float32"), opened, used) == ()


def test_normalisation(config: Make, opened: OpenedSAE, used: Used) -> None:
    changed = with_model(used, compatibility_mode=True)
    message = refused(config(), opened, changed, "normalisation")
    assert "a model with weights as they are, here is one with center_unembed, cent" in message


def test_normalisation_that_saelens_names(config: Make, opened: OpenedSAE, used: Used) -> None:
    """`center_writing_weights`, on which SAEs of GPT-2 were trained."""
    named = {"model_name": used.model["name"]}
    centred = saying(opened, **named, model_from_pretrained_kwargs={"center_writing_weights": True})
    message = refused(config(), centred, used, "normalisation")
    assert "a model with center_writing_weights, here is one with weights as they are" in message
    plain = saying(opened, **named, model_from_pretrained_kwargs={"center_writing_weights": False})
    assert check_all(config(), plain, used) == ()


def test_dataset_of_another_store(config: Make, opened: OpenedSAE, used: Used) -> None:
    changed = with_text(used, store_identity="77b0" * 16)
    message = refused(config(), opened, changed, "dataset")
    assert "here is store 77b077b077b0: give the text that it was made from" in message


def test_dataset_that_was_changed_since(
    config: Make, opened: OpenedSAE, used: Used, tiny_text: Path
) -> None:
    """Naming it is no wish for other content."""
    changed = with_text(used, store_identity=None, dataset_sha256="77b0" * 16)
    message = refused(config(), opened, changed, "dataset")
    assert f"{tiny_text} with content 77b077b077b0" in message
    refused(config(dataset=str(tiny_text)), opened, changed, "dataset")


def test_another_dataset_that_was_asked_for_is_recorded_only(
    config: Make, opened: OpenedSAE, used: Used, tiny_text: Path
) -> None:
    other = with_text(used, store_identity=None, dataset="other.jsonl", dataset_sha256=None)
    (found,) = check_all(config(dataset="other.jsonl"), opened, other)
    assert (found.field, found.sae, found.here) == ("dataset", str(tiny_text), "other.jsonl")


def test_context_size(config: Make, opened: OpenedSAE, used: Used) -> None:
    changed = with_text(used, packing=replace(PACKING, context_size=9))
    message = refused(config(), opened, changed, "context-size")
    assert "sequences of 17 tokens, here is sequences of 9" in message


def test_packing(config: Make, opened: OpenedSAE, used: Used) -> None:
    changed = with_text(used, packing=replace(PACKING, packed=False))
    message = refused(config(), opened, changed, "packing")
    assert "that go on into the next document, here is sequences that end with a" in message


def test_packing_without_a_bos_token(config: Make, opened: OpenedSAE, used: Used) -> None:
    foreign = saying(opened, prepend_bos=False)
    assert "sequences without a BOS token" in refused(config(), foreign, used, "packing")


# What a foreign SAE says, and what it doesn't.


def test_what_is_not_known_is_not_compared(config: Make, opened: OpenedSAE, used: Used) -> None:
    other = with_text(with_model(used, weights_sha256="77b0" * 16), dataset="other.jsonl")
    assert check_all(config(), saying(opened), other) == ()


@pytest.mark.parametrize("name", ["gpt2-small", "openai-community/gpt2", "gpt2", "/models/GPT2"])
def test_a_models_name_is_compared_without_owner_folder_and_alias(
    config: Make, opened: OpenedSAE, used: Used, name: str
) -> None:
    foreign = saying(opened, model_name=name)
    assert check_all(config(), foreign, with_model(used, name="gpt2")) == ()
    message = refused(config(), foreign, with_model(used, name="gpt2-medium"), "model")
    assert f"model {name}, here is model gpt2-medium" in message


def test_imported_rows_with_a_models_name_only(config: Make, opened: OpenedSAE, used: Used) -> None:
    unknown = {"name": "unknown", "weights_sha256": None, "dtype": None}
    store = {"path": "p", "identity": "i", "provenance": {"model": unknown, "imported_from": {}}}
    imported = saying(opened, saeflow={"store": store})
    assert check_all(config(), imported, replace(used, text=None)) == ()
    named = {**store, "provenance": {"model": {**unknown, "name": "m"}, "imported_from": {}}}
    with pytest.raises(BadInputError, match="model differs: SAE sae was made from model m, here"):
        check_all(config(), saying(opened, saeflow={"store": named}), replace(used, text=None))


# What may be allowed.


def test_one_allowed_mismatch_allows_no_other(config: Make, opened: OpenedSAE, used: Used) -> None:
    changed = with_model(used, weights_sha256="0" * 64, tokenizer_sha256="0" * 64)
    with pytest.raises(BadInputError, match="tokenizer differs"):
        check_all(config(allow_mismatch=("model",)), opened, changed)
    both = check_all(config(allow_mismatch=("model", "tokenizer")), opened, changed)
    assert [mismatch.field for mismatch in both] == ["model", "tokenizer"]
    assert all(isinstance(mismatch, Mismatch) for mismatch in both)


def test_unknown_fields_are_refused(config: Make) -> None:
    with pytest.raises(
        BadInputError, match=r"mismatch weights: unknown field; known are model, mo"
    ):
        config(allow_mismatch=("model", "weights"))
    with pytest.raises(
        BadInputError, match=r"--allow-mismatch width: an SAE reads rows of its own"
    ):
        config(allow_mismatch=("width",))


def test_on_the_command_line(
    run_cli: Callable[..., Any], sae: Path, taught_model: Path, tmp_path: Path
) -> None:
    """Exit code 2 and one line; with the flag named in it, a score."""
    other = shutil.copytree(taught_model, tmp_path / "other")
    settings = json.loads((other / "config.json").read_text())
    (other / "config.json").write_text(json.dumps({**settings, "note": "changed"}))
    given = {"model": other, "tokens": 160, "device": "cpu"}
    line = run_cli("evaluate", sae, **given).refusal()
    assert "model-config differs: SAE sae was made from config.json" in line
    flag = line.rpartition("or add ")[2].split()
    assert run_cli("evaluate", sae, *flag, **given).code == 0
    known = run_cli("evaluate", sae, "--allow-mismatch", "colour", **given).refusal()
    assert "--allow-mismatch colour: unknown field; known are model, model-config" in known
