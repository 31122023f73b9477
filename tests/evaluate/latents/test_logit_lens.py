"""Output tokens, against transformers' own final norm, projections and unembedding."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from transformers import (
    AutoModelForCausalLM,
    Gemma2Config,
    Gemma2ForCausalLM,
    GPT2Config,
    GPT2LMHeadModel,
)

from saeflow.evaluate.latents import logit_lens
from saeflow.evaluate.latents.collector import LatentCollector
from saeflow.evaluate.latents.decoder import with_decoder
from saeflow.evaluate.latents.logit_lens import output_tokens
from saeflow.evaluate.latents.result import OutputTokens
from saeflow.harvest.models import ModelSpec, SourceModel, load_model
from saeflow.train.parameters import Parameters
from saeflow.train.sae import SAE, architecture_of

WIDTH = 32
FINAL_NORM = {"llama": "model.norm", "gpt2": "transformer.ln_f", "gemma2": "model.norm"}
W_O = {"llama": "model.layers.1.self_attn.o_proj", "gpt2": "transformer.h.1.attn.c_proj"}


def _gpt2() -> Any:
    return GPT2LMHeadModel(
        GPT2Config(vocab_size=300, n_embd=WIDTH, n_layer=2, n_head=4, n_positions=64)
    )


def _gemma2() -> Any:
    return Gemma2ForCausalLM(
        Gemma2Config(
            vocab_size=300,
            hidden_size=WIDTH,
            intermediate_size=64,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            head_dim=8,
            max_position_embeddings=64,
        )
    )


Folder = Callable[[str], Path]


@pytest.fixture(scope="module")
def folder(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Folder:
    """A folder with a model of a family whose norms' weights and biases are random."""

    def make(family: str) -> Path:
        torch.manual_seed(0)
        made = {
            "llama": lambda: AutoModelForCausalLM.from_pretrained(str(tiny_model)),
            "gpt2": _gpt2,
            "gemma2": _gemma2,
        }
        model = made[family]()
        for name, parameter in model.named_parameters():
            if "norm" in name or "ln_" in name:
                nn.init.uniform_(parameter, -1, 2)
        path = tmp_path_factory.mktemp("families") / family
        model.save_pretrained(path)
        for file in tiny_model.glob("tokenizer*"):
            (path / file.name).write_bytes(file.read_bytes())
        return path

    return make


@pytest.fixture(scope="module")
def models(folder: Folder) -> dict[str, tuple[SourceModel, Any]]:
    """Of each family, the source model and transformers' own."""
    folders = {family: folder(family) for family in FINAL_NORM}
    return {
        family: (
            load_model(ModelSpec(name=str(path))),
            AutoModelForCausalLM.from_pretrained(str(path)),
        )
        for family, path in folders.items()
    }


@pytest.fixture
def rows() -> Tensor:
    """Decoder rows of 40 latents."""
    return nn.functional.normalize(
        torch.randn(40, WIDTH, generator=torch.Generator().manual_seed(1)), dim=1
    )


@torch.no_grad()
def direct(model: Any, family: str, rows: Tensor) -> Tensor:
    """What rows alone as the residual stream add to the logits, times their own scale."""
    norm = model.get_submodule(FINAL_NORM[family])
    centred = rows - rows.mean(1, keepdim=True) if family == "gpt2" else rows
    scale = centred.square().mean(1, keepdim=True).sqrt()
    none: Tensor = norm(torch.zeros_like(rows[:1]))
    # Doubled a thousand times, so that the norm's epsilon is nothing beside it.
    written = norm(1000 * rows) - none
    logits: Tensor = written @ model.lm_head.weight.T * scale
    return logits


def assert_extremes(found: OutputTokens | None, logits: Tensor) -> None:
    assert found is not None
    top, bottom = logits.topk(10), (-logits).topk(10)
    assert np.array_equal(found.top, top.indices.numpy())
    assert np.array_equal(found.bottom, bottom.indices.numpy())
    assert np.allclose(found.top_logits, top.values, rtol=1e-4, atol=1e-6)
    assert np.allclose(found.bottom_logits, -bottom.values, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("name", ["hook_resid_post", "hook_attn_out", "hook_mlp_out", "hook_out"])
@pytest.mark.parametrize("family", FINAL_NORM)
def test_of_the_residual_stream(
    models: dict[str, tuple[SourceModel, Any]], rows: Tensor, family: str, name: str
) -> None:
    source, own = models[family]
    found = output_tokens(source, [f"blocks.0.{name}"], [WIDTH], rows)
    assert_extremes(found, direct(own, family, rows))


@pytest.mark.parametrize("name", ["attn.hook_z", "attn.o.hook_in"])
@pytest.mark.parametrize("family", W_O)
def test_of_heads(
    models: dict[str, tuple[SourceModel, Any]], rows: Tensor, family: str, name: str
) -> None:
    source, own = models[family]
    W_O_of_layer = own.get_submodule(W_O[family])
    with torch.no_grad():
        written = W_O_of_layer(rows) - W_O_of_layer(torch.zeros(1, WIDTH))
    found = output_tokens(source, [f"blocks.1.{name}"], [WIDTH], rows)
    assert_extremes(found, direct(own, family, written))


def test_in_small_chunks_it_is_the_same(
    models: dict[str, tuple[SourceModel, Any]], rows: Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    source, own = models["llama"]
    monkeypatch.setattr(logit_lens, "_CHUNK_OF_LATENTS", 25)
    monkeypatch.setattr(logit_lens, "_CHUNK_OF_TOKENS", 9)
    found = output_tokens(source, ["blocks.0.hook_resid_pre"], [WIDTH], rows)
    assert_extremes(found, direct(own, "llama", rows))


def test_of_a_crosscoder_the_last_hook_points_part(
    models: dict[str, tuple[SourceModel, Any]], rows: Tensor
) -> None:
    source, own = models["llama"]
    names = ["blocks.0.hook_resid_post", "blocks.1.hook_resid_post"]
    wide = torch.cat([rows.flip(0), rows], 1)
    found = output_tokens(source, names, [WIDTH, WIDTH], wide)
    assert_extremes(found, direct(own, "llama", rows))


@pytest.mark.parametrize(
    ("family", "name"),
    [
        ("llama", "blocks.0.mlp.hook_post"),
        ("llama", "blocks.0.ln2.hook_normalized"),
        ("llama", "no.such"),
        ("gemma2", "blocks.0.attn.hook_z"),  # a norm comes after W_O
        ("gemma2", "blocks.0.attn.hook_out"),
    ],
)
def test_where_there_is_no_straight_way_there_are_none(
    models: dict[str, tuple[SourceModel, Any]], rows: Tensor, family: str, name: str
) -> None:
    assert output_tokens(models[family][0], [name], [WIDTH], rows) is None


def test_a_final_norm_that_is_something_else_is_noticed(folder: Folder, rows: Tensor) -> None:
    source = load_model(ModelSpec(name=str(folder("llama"))))
    source.bridge.ln_final.hook_out.add_hook(lambda normed, hook: normed.tanh())
    assert output_tokens(source, ["blocks.0.hook_resid_post"], [WIDTH], rows) is None


def test_in_half_precision_it_is_nearly_the_same(folder: Folder, rows: Tensor) -> None:
    path = folder("gpt2")
    hooks = ["blocks.0.hook_resid_post"]
    full = output_tokens(load_model(ModelSpec(name=str(path))), hooks, [WIDTH], rows)
    spec = ModelSpec(name=str(path), dtype="bfloat16")
    half = output_tokens(load_model(spec), hooks, [WIDTH], rows)
    assert full is not None
    assert half is not None
    assert np.allclose(half.top_logits, full.top_logits, rtol=0.03)


def test_with_decoder_gives_chosen_latents_their_own(
    models: dict[str, tuple[SourceModel, Any]], rows: Tensor
) -> None:
    source, own = models["llama"]
    cfg = {
        "architecture": "standard",
        "metadata": {"hook_name": "blocks.0.hook_resid_post"},
    }
    parameters = Parameters(rows, torch.zeros(40), rows, torch.zeros(WIDTH))
    sae = SAE(architecture_of(cfg, "here"), parameters, cfg)
    collected = LatentCollector(40, np.array([4, 30])).result()
    found = with_decoder(collected, sae, source)
    assert_extremes(found.output_tokens, direct(own, "llama", rows[[4, 30]]))
    assert found.nearest is not None
    cosines = (rows @ rows.T - 2 * torch.eye(40))[[4, 30]]
    assert np.array_equal(found.nearest.numbers[:, 0], cosines.argmax(1).numpy())
    assert with_decoder(collected, sae, source, nearest=False).nearest is None
