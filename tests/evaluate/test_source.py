"""The source model of SAEs: which one, run how, and what is refused before it is used."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from transformer_lens.model_bridge import TransformerBridge

from saeflow.errors import BadInputError
from saeflow.evaluate.config import EvaluateConfig
from saeflow.evaluate.opening import OpenedSAE, open_saes
from saeflow.evaluate.run import evaluate_sae
from saeflow.evaluate.source import (
    Source,
    find_model_of,
    hook_points_of,
    model_spec_of,
    source_model_of,
)
from saeflow.train.config import TrainConfig
from saeflow.train.folder import metadata
from saeflow.train.run import train_sae

Make = Callable[..., EvaluateConfig]
HOOK, HEADS = "blocks.0.hook_resid_post", "blocks.1.attn.hook_z"


@pytest.fixture
def opened(sae: Path) -> OpenedSAE:
    (one,) = open_saes(sae)
    return one


def load_source(config: EvaluateConfig, saes: Sequence[OpenedSAE]) -> Source:
    return source_model_of(config, saes, find_model_of(config, saes))


def saying(opened: OpenedSAE, **said: Any) -> OpenedSAE:
    """The SAE with other metadata than its own: a foreign one's."""
    return replace(opened, sae=replace(opened.sae, cfg={**opened.sae.cfg, "metadata": said}))


def test_the_model_is_the_one_that_the_store_was_made_with(
    config: Make, opened: OpenedSAE, taught_model: Path
) -> None:
    spec = model_spec_of(config(), [opened])
    assert (spec.name, spec.dtype, spec.device) == (str(taught_model), "float32", "cpu")
    assert spec.compatibility_mode is False


def test_precision_may_be_chosen(config: Make, opened: OpenedSAE) -> None:
    assert model_spec_of(config(dtype="bfloat16"), [opened]).dtype == "bfloat16"
    kwargs = {"torch_dtype": "torch.float16"}
    foreign = saying(opened, model_name="gpt2", model_from_pretrained_kwargs=kwargs)
    assert model_spec_of(config(), [foreign]).dtype == "float16"
    odd = saying(opened, model_name="gpt2", model_from_pretrained_kwargs={"dtype": "float64"})
    with pytest.raises(BadInputError, match="forward pass in float64: choose another with --dtype"):
        model_spec_of(config(), [odd])


def test_a_short_name_of_transformer_lens_is_the_hubs(config: Make, opened: OpenedSAE) -> None:
    """SAELens writes such names."""
    foreign = saying(opened, model_name="gpt2-small")
    assert model_spec_of(config(), [foreign]).name == "gpt2"


@pytest.mark.parametrize("name", [None, "", "unknown"])
def test_without_any_name_one_must_be_given(
    config: Make, opened: OpenedSAE, name: str | None, tiny_model: Path
) -> None:
    foreign = saying(opened, model_name=name)
    with pytest.raises(BadInputError, match="does not say its source model: give --model"):
        model_spec_of(config(), [foreign])
    assert model_spec_of(config(model=str(tiny_model)), [foreign]).name == str(tiny_model)


def test_a_model_or_a_text_that_was_moved_is_asked_for_by_its_option(
    config: Make, sae: Path, change_cfg: Callable[..., None], tmp_path: Path
) -> None:
    """Nobody typed these paths."""
    change_cfg(sae, "metadata", "saeflow", "store", "path", str(tmp_path / "no-store"))
    provenance = ("metadata", "saeflow", "store", "provenance")
    change_cfg(sae, *provenance, "dataset", str(tmp_path / "no.jsonl"))
    with pytest.raises(BadInputError, match=r"no.jsonl does not exist: .* with --dataset where"):
        evaluate_sae(config())
    change_cfg(sae, *provenance, "model", "name", str(tmp_path / "no-model"))
    with pytest.raises(BadInputError, match=r"no-model does not exist: .* with --model where"):
        evaluate_sae(config())


def test_saes_of_different_models_or_texts_are_refused(config: Make, opened: OpenedSAE) -> None:
    other = replace(saying(opened, model_name="gpt2"), name="other")
    with pytest.raises(BadInputError, match=r"SAEs sae and other were not made from .*\(model: "):
        model_spec_of(config(), [opened, other])
    store = {**opened.sae.cfg["metadata"]["saeflow"]["store"], "identity": "0" * 64}
    other = replace(saying(opened, saeflow={"store": store}), name="other")
    with pytest.raises(BadInputError, match=r"\(store_identity: .*evaluate them one by one"):
        model_spec_of(config(), [opened, other])


def test_all_hook_points_of_all_saes_are_looked_at(
    config: Make, opened: OpenedSAE, sae_of_heads: Path
) -> None:
    source = load_source(config(), [opened, *open_saes(sae_of_heads)])
    assert {name: point.shape for name, point in source.hook_points.items()} == {
        HOOK: (32,),
        HEADS: (4, 8),
    }
    assert source.used.widths == {HOOK: 32, HEADS: 32}
    assert source.described["dtype"] == "float32"


@pytest.mark.parametrize("kind", ["transcoder", "crosscoder"])
def test_transcoders_and_crosscoders(
    config: Make, taught_store: Path, tmp_path: Path, kind: str
) -> None:
    which: dict[str, dict[str, Any]] = {
        "transcoder": {"hook": (HOOK,), "target_hook": HEADS},
        "crosscoder": {"hook": (HOOK, HEADS), "crosscoder": True},
    }
    chosen = which[kind]
    run = train_sae(
        TrainConfig(
            store=taught_store,
            out=tmp_path / "run",
            d_sae=40,
            k=8,
            tokens=0,
            device="cpu",
            **chosen,
        )
    )
    saes = open_saes(run.folder)
    assert [opened.sae.kind for opened in saes] == [kind]
    assert hook_points_of(saes[0]) == (HOOK, HEADS)
    assert set(load_source(config(), saes).hook_points) == {HOOK, HEADS}


@pytest.mark.parametrize("name", [None, "", "unknown"])
def test_an_sae_that_does_not_say_its_hook_point(
    config: Make, opened: OpenedSAE, name: str | None
) -> None:
    foreign = saying(opened, model_name="gpt2", hook_name=name)
    with pytest.raises(BadInputError, match=r"say its hook point: add metadata\.hook_name to its"):
        load_source(config(), [foreign])


def test_an_sae_of_one_head_is_refused(opened: OpenedSAE) -> None:
    foreign = saying(opened, **metadata(hook_name=HEADS, hook_head_index=2))
    with pytest.raises(BadInputError, match="is of attention head 2 alone"):
        hook_points_of(foreign)


def test_a_hook_point_that_the_model_lacks(
    config: Make, opened: OpenedSAE, taught_model: Path
) -> None:
    foreign = saying(opened, model_name=str(taught_model), hook_name="blocks.7.hook_resid_post")
    with pytest.raises(BadInputError, match=r"blocks\.7\.hook_resid_post does not exist in"):
        load_source(config(), [foreign])


def test_other_weights_are_refused_before_the_model_is_loaded(
    config: Make, opened: OpenedSAE, tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(TransformerBridge, "boot_transformers", None)
    with pytest.raises(BadInputError, match="model differs: SAE sae was made from weights"):
        load_source(config(model=str(tiny_model)), [opened])
