"""Train the built-in model on the built-in text, from nothing, and write its folder and card.

    python scripts/train_builtin_model.py OUT [--steps N] [--device cpu|cuda]

A Llama-shaped language model of about a million parameters with a byte-level BPE
tokenizer of its own. The training documents are the ones that a harvest with the
default `--held-out` would store for training, so the held-out documents of a
`saeflow quickstart` are text that this model has never seen. The model with the
lowest held-out loss is kept; its card states that loss beside those of unigram
and bigram models counted on the same training tokens.
"""

import argparse
import math
import platform
import time
from pathlib import Path

import numpy as np
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from saeflow.harvest.builtin import builtin_documents
from saeflow.harvest.documents import open_documents
from saeflow.harvest.tokens import Packing, choose_packing, is_held_out, tokenize

VOCABULARY, CONTEXT, HELD_OUT = 2048, 256, 0.05
BATCH, PEAK_LR, WARM_UP, WEIGHT_DECAY = 16, 4e-3, 200, 0.1


def train_tokenizer() -> PreTrainedTokenizerFast:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    training_text = (
        text for text in builtin_documents() if not is_held_out(text.encode(), HELD_OUT)
    )
    tokenizer.train_from_iterator(
        training_text,
        trainers.BpeTrainer(
            vocab_size=VOCABULARY,
            special_tokens=["<|bos|>", "<|eos|>", "<|pad|>"],
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        ),
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token="<|bos|>",
        eos_token="<|eos|>",
        pad_token="<|pad|>",
        model_max_length=CONTEXT,
    )


def streams(tokenizer: PreTrainedTokenizerFast, packing: Packing) -> tuple[np.ndarray, np.ndarray]:
    """The training and the held-out token streams, as a harvest would make them."""
    documents = list(tokenize(open_documents("builtin"), tokenizer, packing, held_out=HELD_OUT))
    return tuple(
        np.concatenate([d.tokens for d in documents if d.held_out is held_out])
        for held_out in (False, True)
    )  # type: ignore[return-value]  # a generator of two has no length for the checker


def build(tokenizer: PreTrainedTokenizerFast) -> LlamaForCausalLM:
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=VOCABULARY,
            hidden_size=128,
            intermediate_size=344,
            num_hidden_layers=4,
            num_attention_heads=4,
            num_key_value_heads=4,
            max_position_embeddings=CONTEXT,
            tie_word_embeddings=True,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
    )


def schedule(step: int, steps: int) -> float:
    """Linear warm-up, then a cosine down to a fiftieth."""
    if step < WARM_UP:
        return PEAK_LR * (step + 1) / WARM_UP
    progress = (step - WARM_UP) / max(1, steps - WARM_UP)
    return PEAK_LR * (0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * progress)))


@torch.inference_mode()
def loss_on(model: LlamaForCausalLM, sequences: torch.Tensor) -> float:
    """Mean next-token loss in nats over the sequences, each prediction counted once."""
    model.eval()
    losses = [
        model(input_ids=batch, labels=batch).loss.double().item() * len(batch)
        for batch in sequences.split(32)
    ]
    model.train()
    return float(sum(losses) / len(sequences))


def train(
    model: LlamaForCausalLM,
    stream: np.ndarray,
    packing: Packing,
    held_out: torch.Tensor,
    steps: int,
) -> tuple[dict[str, torch.Tensor], int]:
    """Train on windows at random places; return the best weights and their step."""
    device = held_out.device
    decayed = [p for p in model.parameters() if p.dim() == 2]
    rest = [p for p in model.parameters() if p.dim() != 2]
    optimizer = torch.optim.AdamW(
        [{"params": decayed, "weight_decay": WEIGHT_DECAY}, {"params": rest, "weight_decay": 0.0}],
        lr=PEAK_LR,
        betas=(0.9, 0.98),
        fused=True,
    )
    draw = np.random.default_rng(0)
    best, best_loss, best_step = dict[str, torch.Tensor](), math.inf, 0
    started = time.time()
    for step in range(steps):
        starts = draw.integers(0, len(stream) - packing.rows_per_sequence, BATCH)
        windows = np.stack([stream[s : s + packing.rows_per_sequence] for s in starts])
        sequences = np.concatenate([np.full((BATCH, 1), packing.bos), windows], axis=1)
        batch = torch.from_numpy(sequences.astype(np.int64)).to(device)
        for group in optimizer.param_groups:
            group["lr"] = schedule(step, steps)
        loss = model(input_ids=batch, labels=batch).loss
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        if (step + 1) % 250 == 0 or step + 1 == steps:
            now = loss_on(model, held_out)
            print(
                f"{step + 1}/{steps} train {loss.item():.3f} held-out {now:.4f} "
                f"{time.time() - started:.0f} s",
                flush=True,
            )
            if now < best_loss:
                best_loss, best_step = now, step + 1
                best = {k: v.detach().clone() for k, v in model.state_dict().items()}
    return best, best_step


def counted_losses(
    stream: np.ndarray, packing: Packing, held_out: np.ndarray
) -> tuple[float, float]:
    """Held-out loss of a unigram and a bigram model counted on the training tokens.

    Both with the interpolation weight that is best on the held-out tokens
    themselves, which flatters them.
    """
    last = len(stream) // packing.rows_per_sequence
    training = packing.sequences(stream, 0, last)
    unigram = (np.bincount(training[:, 1:].ravel(), minlength=VOCABULARY) + 1.0).astype(np.float64)
    unigram /= unigram.sum()
    pairs = np.zeros((VOCABULARY, VOCABULARY))
    np.add.at(pairs, (training[:, :-1].ravel(), training[:, 1:].ravel()), 1.0)
    seen = pairs.sum(1, keepdims=True)
    before, after = held_out[:, :-1].ravel(), held_out[:, 1:].ravel()
    bigram = min(
        -np.log((pairs[before, after] + c * unigram[after]) / (seen[before, 0] + c)).mean()
        for c in np.geomspace(1, 1000, 31)
    )
    return float(-np.log(unigram[after]).mean()), float(bigram)


CARD = """---
license: mit
library_name: transformers
language: en
---
# saeflow's built-in model

A language model of {parameters:,} parameters (Llama architecture: 4 layers, 4 heads, width 128,
MLP 344, context {context}, tied embeddings) with a byte-level BPE tokenizer of {vocabulary}
tokens. It exists so that `saeflow quickstart` and the tests run a real pipeline without a
download. It knows how Python's documentation sounds, and nothing else.

Made by `python scripts/train_builtin_model.py OUT --steps {steps}` on the English that
Python {python} carries: `pydoc_data.topics` and the docstrings of the standard library,
{n_train:,} training tokens (documents whose hash falls outside the held-out {held_out:.0%}).
AdamW, peak learning rate {lr}, {batch} sequences of {context} tokens a step; the weights of step
{best_step} are kept, where the held-out loss was lowest. Stored as float16.

| model | loss on {n_held:,} held-out tokens (nats a token) |
| --- | --- |
| uniform | {uniform:.3f} |
| unigram | {unigram:.3f} |
| bigram (interpolated) | {bigram:.3f} |
| **this one** (from the stored float16 weights) | **{loss:.3f}** |
"""


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    arguments.add_argument("out", type=Path)
    arguments.add_argument("--steps", type=int, default=6000)
    arguments.add_argument("--device", default="cpu")
    args = arguments.parse_args()
    torch.manual_seed(0)
    tokenizer = train_tokenizer()
    packing = choose_packing(tokenizer, CONTEXT)
    stream, held_out_stream = streams(tokenizer, packing)
    held_out = packing.sequences(
        held_out_stream, 0, len(held_out_stream) // packing.rows_per_sequence
    )
    held_out_batch = torch.from_numpy(held_out.astype(np.int64)).to(args.device)
    unigram, bigram = counted_losses(stream, packing, held_out)
    print(
        f"{len(stream):,} training tokens; unigram {unigram:.3f}, bigram {bigram:.3f}", flush=True
    )
    model = build(tokenizer).to(args.device)
    best, best_step = train(model, stream, packing, held_out_batch, args.steps)
    model.load_state_dict(best)
    model.half().save_pretrained(args.out)
    tokenizer.save_pretrained(args.out)
    stored = LlamaForCausalLM.from_pretrained(args.out, dtype=torch.float32).to(args.device)
    card = CARD.format(
        parameters=stored.num_parameters(),
        context=CONTEXT,
        vocabulary=VOCABULARY,
        steps=args.steps,
        python=".".join(platform.python_version_tuple()[:2]),
        n_train=len(stream),
        held_out=HELD_OUT,
        lr=PEAK_LR,
        batch=BATCH,
        best_step=best_step,
        n_held=held_out[:, 1:].size,
        uniform=math.log(VOCABULARY),
        unigram=unigram,
        bigram=bigram,
        loss=loss_on(stored, held_out_batch),
    )
    (args.out / "README.md").write_text(card, encoding="utf-8")
    print(card)


if __name__ == "__main__":
    main()
