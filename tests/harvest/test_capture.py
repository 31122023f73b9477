"""Activations out of the source model, held against TransformerLens's own cache."""

from pathlib import Path

import pytest
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM

from saeflow.errors import BadInputError
from saeflow.harvest.capture import capture, probe_hook_points
from saeflow.harvest.models import SourceModel

LAST = "blocks.1.hook_resid_post"
HOOKS = [
    "hook_embed",
    "blocks.0.hook_resid_post",
    "blocks.0.attn.hook_z",
    "blocks.0.mlp.hook_post",
    "blocks.1.hook_resid_mid",
    LAST,
]


@pytest.fixture
def tokens() -> Tensor:
    return torch.randint(3, 300, (3, 12), generator=torch.Generator().manual_seed(1))


def test_a_vector_a_token_and_a_head_axis_are_found(source_model: SourceModel) -> None:
    residual, heads = probe_hook_points(source_model, [LAST, "blocks.0.attn.hook_z"])
    assert (residual.shape, residual.d_in) == ((32,), 32)
    assert (heads.shape, heads.d_in) == ((4, 8), 32)


def test_several_hook_points_in_one_pass_are_those_of_the_cache(
    source_model: SourceModel, tokens: Tensor
) -> None:
    hook_points = probe_hook_points(source_model, HOOKS)
    captured = capture(source_model, tokens, hook_points)
    with torch.inference_mode():
        _, cache = source_model.bridge.run_with_cache(tokens)
    assert set(captured) == set(HOOKS)
    for name in HOOKS:
        torch.testing.assert_close(captured[name], cache[name].flatten(2), rtol=0, atol=0)


@pytest.mark.parametrize("hook", HOOKS)
def test_a_hook_point_is_the_same_alone_as_among_others(
    source_model: SourceModel, tokens: Tensor, hook: str
) -> None:
    """Nothing later in the pass writes into what was captured."""
    among = capture(source_model, tokens, probe_hook_points(source_model, HOOKS))[hook]
    alone = capture(source_model, tokens, probe_hook_points(source_model, [hook]))[hook]
    assert torch.equal(among, alone)


def test_the_last_layers_output_is_that_of_transformers_before_the_final_norm(
    source_model: SourceModel, tiny_model: Path, tokens: Tensor
) -> None:
    model = AutoModelForCausalLM.from_pretrained(str(tiny_model), attn_implementation="eager")
    seen: list[Tensor] = []
    model.model.norm.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    with torch.inference_mode():
        model(tokens)
    captured = capture(source_model, tokens, probe_hook_points(source_model, [LAST]))[LAST]
    torch.testing.assert_close(captured, seen[0], rtol=1e-5, atol=1e-6)


def test_the_pass_stops_at_the_deepest_hook_point(
    source_model: SourceModel, tokens: Tensor
) -> None:
    hook_points = probe_hook_points(source_model, HOOKS[:3])
    called: list[str] = []
    watched = ["blocks.0.hook_resid_post", "blocks.1.hook_resid_mid", LAST, "unembed.hook_out"]
    handles = [
        source_model.bridge.hook_dict[name].register_forward_hook(
            lambda *_, name=name: called.append(name)
        )
        for name in watched
    ]
    source_model.bridge(tokens)
    assert set(called) == set(watched)
    called.clear()
    capture(source_model, tokens, hook_points)
    for handle in handles:
        handle.remove()
    assert not set(called) & set(watched[1:])


def test_no_hook_is_left_behind(source_model: SourceModel, tokens: Tensor) -> None:
    capture(source_model, tokens, probe_hook_points(source_model, HOOKS[:2]))
    assert not any(hook.has_hooks() for hook in source_model.bridge.hook_dict.values())


def test_no_gradient_is_kept(source_model: SourceModel, tokens: Tensor) -> None:
    captured = capture(source_model, tokens, probe_hook_points(source_model, [LAST]))
    assert not captured[LAST].requires_grad
    assert captured[LAST].dtype is torch.float32


def test_an_unknown_hook_point_names_the_near_ones(source_model: SourceModel) -> None:
    with pytest.raises(BadInputError, match=r"near ones are .*blocks\.1\.hook_resid_post"):
        probe_hook_points(source_model, ["blocks.1.resid_post"])
    with pytest.raises(BadInputError, match=r"does not exist in .*near ones are none"):
        probe_hook_points(source_model, ["~~~~"])


@pytest.mark.parametrize("hook", ["blocks.0.attn.hook_pattern", "blocks.0.attn.hook_attn_scores"])
def test_what_is_no_vector_a_token_is_refused(source_model: SourceModel, hook: str) -> None:
    with pytest.raises(BadInputError, match="does not hold one vector a token"):
        probe_hook_points(source_model, [hook])
