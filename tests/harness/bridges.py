"""Bridges of random models, one of each way that blocks are built."""

from typing import Any

import torch
from transformers import (
    Gemma2Config,
    Gemma2ForCausalLM,
    GPT2Config,
    GPT2LMHeadModel,
    GPTNeoXConfig,
    GPTNeoXForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from saeflow.harvest.models import ModelSpec, SourceModel

_COMMON: dict[str, Any] = {
    "vocab_size": 300,
    "bos_token_id": 0,
    "eos_token_id": 1,
    "pad_token_id": 2,
}
_SIZES = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "max_position_embeddings": 32,
}
_MODELS = {
    # grouped queries; a norm before each part
    "llama": lambda: LlamaForCausalLM(LlamaConfig(**_COMMON, **_SIZES, num_key_value_heads=2)),
    # learned positions, LayerNorm, one weight for queries, keys and values
    "gpt2": lambda: GPT2LMHeadModel(
        GPT2Config(**_COMMON, n_embd=32, n_layer=3, n_head=4, n_positions=32)
    ),
    # attention and MLP side by side
    "neox": lambda: GPTNeoXForCausalLM(GPTNeoXConfig(**_COMMON, **_SIZES)),
    # norms before and after each part; local and global attention in turn; capped logits
    "gemma2": lambda: Gemma2ForCausalLM(
        Gemma2Config(**_COMMON, **_SIZES, num_key_value_heads=2, head_dim=8, sliding_window=4)
    ),
}
KINDS = tuple(_MODELS)


def plain_model(kind: str, dtype: str = "float32") -> PreTrainedModel:
    """Three layers of width 32, weights large enough that all of them matter."""
    torch.manual_seed(0)
    model: PreTrainedModel = _MODELS[kind]().eval()
    for parameter in model.parameters():
        if parameter.ndim > 1:
            parameter.data *= 5
    return model.to(getattr(torch, dtype))


def random_model(kind: str, tokenizer: PreTrainedTokenizerBase, dtype: str) -> SourceModel:
    """The same in a bridge."""
    from transformer_lens.model_bridge import TransformerBridge

    model = plain_model(kind, dtype)
    bridge = TransformerBridge.boot_transformers(
        kind, hf_model=model, tokenizer=tokenizer, dtype=getattr(torch, dtype)
    )
    bridge.requires_grad_(False)
    return SourceModel(bridge, tokenizer, ModelSpec(name=kind, dtype=dtype))
