"""Generation inside a splice: every token has the SAE in it, or it is refused."""

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from bridges import plain_model, random_model
from torch import Tensor
from transformers import AutoTokenizer, PreTrainedModel

from saeflow.errors import BadInputError
from saeflow.evaluate.splice import splice
from saeflow.harvest.models import SourceModel

pytestmark = pytest.mark.filterwarnings(  # TransformerLens's own use of transformers
    "ignore:.past_key_values. is deprecated:FutureWarning"
)

POST = "blocks.1.hook_resid_post"
KINDS = ("llama", "gpt2", "neox")
N_NEW = 6
BY_HF: dict[str, Any] = {
    "max_new_tokens": N_NEW,
    "do_sample": False,
    "eos_token_id": None,
    "pad_token_id": 2,
}
BY_BRIDGE: dict[str, Any] = {
    "max_new_tokens": N_NEW,
    "do_sample": False,
    "stop_at_eos": False,
    "verbose": False,
}


@pytest.fixture(scope="module")
def models(tiny_model: Path) -> dict[str, SourceModel]:
    tokenizer = AutoTokenizer.from_pretrained(str(tiny_model))
    return {kind: random_model(kind, tokenizer, "float32") for kind in KINDS}


@pytest.fixture(scope="module")
def prompt() -> Tensor:
    found = torch.randint(3, 300, (3, 8), generator=torch.Generator().manual_seed(2))
    found[:, 0] = 0
    return found


def changed(rows: Tensor) -> Tensor:
    return rows.flip(-1) * 0.7


def blocks_of(model: PreTrainedModel, kind: str) -> Any:
    return {
        "llama": lambda: model.model.layers,
        "gpt2": lambda: model.transformer.h,
        "neox": lambda: model.gpt_neox.layers,
    }[kind]()


@torch.no_grad()
def expected_tokens(kind: str, prompt: Tensor) -> Tensor:
    """Greedy tokens of transformers' own model, by a forward hook of torch and without a cache."""
    model = plain_model(kind)

    def hook(module: Any, args: Any, output: Any) -> Any:
        stream = output[0] if isinstance(output, tuple) else output
        keep = torch.isin(tokens, torch.tensor([0, 1, 2]))
        keep[:, 0] = True
        stream = torch.where(keep[..., None], stream, changed(stream))
        return (stream, *output[1:]) if isinstance(output, tuple) else stream

    blocks_of(model, kind)[1].register_forward_hook(hook)
    tokens = prompt
    for _ in range(N_NEW):
        tokens = torch.cat([tokens, model(tokens).logits[:, -1:].argmax(-1)], 1)
    return tokens


def by_hand(model: SourceModel, prompt: Tensor) -> Tensor:
    """A loop of one's own, that tells neither positions nor a mask."""
    tokens, step, past = prompt, prompt, None
    for _ in range(N_NEW):
        made = model.bridge.original_model(step, past_key_values=past, use_cache=True)
        past, step = made.past_key_values, made.logits[:, -1:].argmax(-1)
        tokens = torch.cat([tokens, step], 1)
    return tokens


CACHED: dict[str, Callable[[SourceModel, Tensor], Tensor]] = {
    "transformers": lambda model, prompt: model.bridge.original_model.generate(prompt, **BY_HF),
    "bridge": lambda model, prompt: model.bridge.generate(prompt, **BY_BRIDGE),
    "by hand": by_hand,
}


@torch.no_grad()
def fills_its_cache(model: SourceModel, prompt: Tensor) -> bool:
    """Whether TransformerLens and transformers, as installed, agree on what a cache is called."""
    made = model.bridge.original_model(prompt, use_cache=True)
    return int(made.past_key_values.get_seq_length()) == prompt.shape[1]


@pytest.mark.parametrize("kind", KINDS)
@torch.no_grad()
def test_without_a_cache_every_token_is_made_with_the_sae(
    models: dict[str, SourceModel], prompt: Tensor, kind: str
) -> None:
    model, expected = models[kind], expected_tokens(kind, prompt)
    clean = model.bridge.generate(prompt, use_past_kv_cache=False, **BY_BRIDGE)
    with splice(model, changed, POST):
        by_bridge = model.bridge.generate(prompt, use_past_kv_cache=False, **BY_BRIDGE)
        by_hf = model.bridge.original_model.generate(prompt, use_cache=False, **BY_HF)
    assert torch.equal(by_bridge, expected)
    assert torch.equal(by_hf, expected)
    assert not torch.equal(clean, expected)


@pytest.mark.parametrize("way", CACHED)
@pytest.mark.parametrize("kind", KINDS)
@torch.no_grad()
def test_with_a_cache_every_token_is_made_with_the_sae_or_none(
    models: dict[str, SourceModel], prompt: Tensor, kind: str, way: str
) -> None:
    model = models[kind]
    n_rows: list[int] = []

    def counting(rows: Tensor) -> Tensor:
        n_rows.append(len(rows))
        return changed(rows)

    if fills_its_cache(model, prompt):
        with splice(model, counting, POST):
            made = CACHED[way](model, prompt)
        assert torch.equal(made, expected_tokens(kind, prompt))
        assert n_rows == [3 * 7] + [3] * (N_NEW - 1)
    else:
        with (
            splice(model, counting, POST),
            pytest.raises(BadInputError, match="use_past_kv_cache=False"),
        ):
            CACHED[way](model, prompt)
    assert not model.bridge.original_model._forward_hooks


@torch.no_grad()
def test_a_cache_filled_before_the_splice_began(
    models: dict[str, SourceModel], prompt: Tensor
) -> None:
    """A clean prompt and a spliced continuation: by nothing but the cache is it told."""
    for kind in ("llama", "neox"):
        hf = models[kind].bridge.original_model
        past = hf(prompt, use_cache=True).past_key_values
        clean = hf(prompt[:, :1] + 9, past_key_values=copy.deepcopy(past)).logits
        with splice(models[kind], changed, POST):
            if past.get_seq_length() == prompt.shape[1]:
                spliced = hf(prompt[:, :1] + 9, past_key_values=past).logits
                assert not torch.isclose(spliced, clean).all(-1).any()
            else:
                with pytest.raises(BadInputError, match="use_cache=False"):
                    hf(prompt[:, :1] + 9, past_key_values=past)


def test_that_some_model_here_fills_its_cache(
    models: dict[str, SourceModel], prompt: Tensor
) -> None:
    """Else the tests above say nothing of cached generation."""
    assert fills_its_cache(models["neox"], prompt)
