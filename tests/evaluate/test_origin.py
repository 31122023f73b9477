"""What an SAE's metadata, which anybody may have written, say of where it is from."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from saeflow.errors import BadInputError
from saeflow.evaluate.config import EvaluateConfig
from saeflow.evaluate.opening import open_saes
from saeflow.evaluate.origin import Origin, origin_of
from saeflow.evaluate.run import plan_evaluation

FOREIGN: dict[str, Any] = {
    "sae_lens_version": "6.0.0",
    "hook_name": "blocks.0.hook_resid_post",
    "model_name": "gpt2",
}


def origin_with(folder: Path, change_cfg: Callable[..., None], **said: Any) -> Origin:
    change_cfg(folder, "metadata", {**FOREIGN, **said})
    (opened,) = open_saes(folder)
    return origin_of(opened.sae, opened.folder)


@pytest.mark.parametrize(
    ("said", "told"),
    [
        ({"context_size": 1}, "context_size is 1: it must be at least 2"),
        ({"context_size": "64"}, "context_size is '64': it must be a whole number"),
        ({"context_size": 64.0}, "context_size is 64.0: it must be a whole number"),
        ({"context_size": True}, "context_size is True: it must be a whole number"),
        (
            {"model_from_pretrained_kwargs": "x"},
            "model_from_pretrained_kwargs is 'x': it must be an object",
        ),
        (
            {"model_from_pretrained_kwargs": {"fold_ln": "no"}},
            "model_from_pretrained_kwargs.fold_ln is 'no': it must be true or false",
        ),
        ({"model_name": 5}, "model_name is 5: it must be text"),
        ({"dataset_path": ["a", "b"]}, r"dataset_path is \['a', 'b'\]: it must be text"),
        ({"prepend_bos": 1}, "prepend_bos is 1: it must be true or false"),
        ({"saeflow": [1]}, r"saeflow is \[1\]: it must be an object"),
        ({"saeflow": {"store": {"identity": "x"}}}, "saeflow.store.path is missing"),
        (
            {"saeflow": {"store": {"path": "p", "identity": "x", "provenance": {"hook": "h"}}}},
            "saeflow.store.provenance.hook is 'h': it must be a list",
        ),
        (
            {"saeflow": {"store": {"path": "p", "identity": "x", "provenance": {"held_out": "a"}}}},
            "saeflow.store.provenance.held_out is 'a': it must be a number",
        ),
    ],
)
def test_an_entry_of_another_type_is_refused_by_name(
    sae: Path,
    config: Callable[..., EvaluateConfig],
    change_cfg: Callable[..., None],
    said: dict[str, Any],
    told: str,
) -> None:
    with pytest.raises(BadInputError, match=f"SAE {sae}: metadata.{told}.*; correct its cfg.json"):
        origin_with(sae, change_cfg, **said)
    with pytest.raises(BadInputError, match=told):
        plan_evaluation(config())


def test_what_is_null_is_not_said(sae: Path, change_cfg: Callable[..., None]) -> None:
    nothing = dict.fromkeys(
        ["saeflow", "context_size", "model_from_pretrained_kwargs", "dataset_path", "prepend_bos"]
    )
    assert origin_with(sae, change_cfg, **nothing) == Origin(model="gpt2")
    assert origin_with(sae, change_cfg, saeflow={"store": None}) == Origin(model="gpt2")


def test_what_saelens_writes(sae: Path, change_cfg: Callable[..., None]) -> None:
    assert origin_with(
        sae,
        change_cfg,
        context_size=256,
        prepend_bos=False,
        dataset_path="unknown",
        disable_concat_sequences=True,
        model_from_pretrained_kwargs={"torch_dtype": "torch.bfloat16", "fold_ln": True},
    ) == Origin(
        model="gpt2",
        context_size=256,
        bos=False,
        packed=False,
        dtype="bfloat16",
        processing=frozenset({"fold_ln"}),
    )
