"""What every test may use: a tiny model, its text and its store, and the command line."""

import json
import os
import signal
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["HF_DATASETS_OFFLINE"] = "1"
if "PYTEST_XDIST_WORKER" in os.environ:  # several processes of one thread, not of all of them
    os.environ.setdefault("OMP_NUM_THREADS", "1")

import jaxtyping
import numpy as np
import pytest
import torch
from hypothesis import settings
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from saeflow.harvest.config import HarvestConfig

settings.register_profile(
    "saeflow", deadline=None, max_examples=60, derandomize=True, database=None
)
settings.load_profile("saeflow")

TINY_HOOKS = ("blocks.0.hook_resid_post", "blocks.1.attn.hook_z")
"""What `tiny_store` holds, each 32 wide; the second one has a head axis."""

WORDS = (  # noqa: SIM905  # reads better as one text
    "the a of to and in tensor shard row chunk latent sparse dense store model token held out "
    "reads writes splits merges every no one permuted sequence document norm Zürich naïve 42 3.14"
).split()


def tiny_tokenizer() -> PreTrainedTokenizerFast:
    """A byte-level BPE tokenizer of 300 tokens; bos is 0, eos 1, pad 2."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=300,
        special_tokens=["<|bos|>", "<|eos|>", "<|pad|>"],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator([" ".join(WORDS)] * 3, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token="<|bos|>",
        eos_token="<|eos|>",
        pad_token="<|pad|>",
        model_max_length=64,
    )


def tiny_llama() -> LlamaForCausalLM:
    """Two layers of width 32 with four heads, random weights of seed 0."""
    torch.manual_seed(0)
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=300,
            hidden_size=32,
            intermediate_size=64,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=4,
            max_position_embeddings=64,
            bos_token_id=0,
            eos_token_id=1,
            pad_token_id=2,
        )
    )


def tiny_documents(n: int = 120) -> list[str]:
    """Texts of 1 to 60 words, the same in every run."""
    draw = np.random.default_rng(0)
    return [" ".join(draw.choice(WORDS, draw.integers(1, 60))) for _ in range(n)]


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Hugging Face folder: `tiny_llama` in float32 with `tiny_tokenizer`."""
    folder = tmp_path_factory.mktemp("tiny") / "model"
    tiny_llama().save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def tiny_text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A .jsonl of 120 documents, about 10,000 tokens."""
    file = tmp_path_factory.mktemp("tiny") / "text.jsonl"
    lines = [json.dumps({"text": text}) for text in tiny_documents()]
    file.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return file


@pytest.fixture(scope="session")
def tiny_store(
    tiny_options: Callable[..., HarvestConfig], tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """A complete store of both `TINY_HOOKS`: many shards, a held-out split. Don't write to it."""
    from saeflow.harvest.run import harvest_activations

    out = tmp_path_factory.mktemp("tiny") / "store"
    harvest_activations(tiny_options(hook=TINY_HOOKS, out=out, tokens=None))
    return out


@dataclass(frozen=True)
class Outcome:
    """What a command did: its exit code and what it wrote to stdout and stderr."""

    code: int
    out: str
    err: str

    def refusal(self) -> str:
        """The one line of a refusal, after a check that it is one."""
        assert self.code == 2, self
        lines = self.err.splitlines()
        assert [line for line in lines if line.startswith("saeflow:")] == lines[-1:], self.err
        assert "Traceback" not in self.err
        assert self.out == ""
        return lines[-1]


@pytest.fixture
def run_cli(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Iterator[Callable[..., Outcome]]:
    """Call `saeflow COMMAND FLAGS... ARGS...` here: `run_cli("train", store, d_sae=64).code`."""
    from saeflow.cli import main

    def run(command: str, *args: object, **flags: object) -> Outcome:
        given = [(f"--{k.replace('_', '-')}", v) for k, v in flags.items() if v is not None]
        words = [command, *(word for flag in given for word in flag), *args]
        monkeypatch.setattr(sys, "argv", ["saeflow", *map(str, words)])
        capsys.readouterr()
        try:
            main()
            code = 0
        except SystemExit as stop:
            code = stop.code if isinstance(stop.code, int) else int(stop.code is not None)
        return Outcome(code, *capsys.readouterr())

    before = signal.getsignal(signal.SIGTERM)
    yield run
    signal.signal(signal.SIGTERM, before)


@pytest.fixture
def unchecked() -> Iterator[None]:
    """For long training loops: shapes and types are not checked at every call, as elsewhere."""
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)


@pytest.fixture(scope="session")
def tiny_options(tiny_model: Path, tiny_text: Path) -> Callable[..., HarvestConfig]:
    """The options of a small quick harvest; `out` is needed, the others may be changed."""

    def config(**changed: Any) -> HarvestConfig:
        options: dict[str, Any] = {
            "model": str(tiny_model),
            "dataset": str(tiny_text),
            "hook": TINY_HOOKS[:1],
            "tokens": 1600,
            "context_size": 17,
            "shard_rows": 512,
            "held_out": 0.2,
            "device": "cpu",
        }
        return HarvestConfig(**{**options, **changed})

    return config


@pytest.fixture
def tiny_config(
    tiny_options: Callable[..., HarvestConfig], tmp_path: Path
) -> Callable[..., HarvestConfig]:
    """The same, into `tmp_path / "store"` if not said otherwise."""

    def config(**changed: Any) -> HarvestConfig:
        return tiny_options(**{"out": tmp_path / "store", **changed})

    return config


@pytest.fixture
def save_saelens() -> Callable[..., Path]:
    """Write activations as SAELens's CacheActivationsRunner does: `save(folder, hooks, tokens)`.

    `hooks` holds arrays (contexts, positions, width) by hook point.
    """
    from datasets import Array2D, Dataset, Features, Sequence, Value

    def save(folder: Path, hooks: dict[str, Any], tokens: Any = None) -> Path:
        columns: dict[str, Any] = dict(hooks)
        features: dict[str, Any] = {
            name: Array2D(shape=values.shape[1:], dtype=str(values.dtype))
            for name, values in hooks.items()
        }
        if tokens is not None:
            columns["token_ids"] = np.asarray(tokens, np.int32)
            features["token_ids"] = Sequence(Value("int32"), length=tokens.shape[1])
        Dataset.from_dict(columns, Features(features)).save_to_disk(folder, num_shards=2)
        return folder

    return save


@pytest.fixture
def save_llamascopium() -> Callable[..., Path]:
    """Write one chunk as llamascopium's ActivationWriter does, with `meta` where rows have one.

    `save(folder, number, activation, tokens, mask)`; `activation` may be of any leading
    axes, the same as those of tokens and mask.
    """
    from safetensors.torch import save_file

    def save(
        folder: Path,
        number: int,
        activation: Any,
        tokens: Any,
        mask: Any,
        kind: str = "safetensors",
    ) -> Path:
        folder.mkdir(parents=True, exist_ok=True)
        file = folder / f"chunk-{number:08d}.{kind}"
        tensors = {
            "activation": activation,
            "tokens": tokens,
            "mask": mask.int(),
            "attention_mask": mask.int(),
        }
        meta = [{"model_name": "m"}] * len(tokens) if tokens.ndim > 1 else None
        if kind == "pt":
            torch.save(tensors | ({"meta": meta} if meta else {}), file)
            return file
        save_file(tensors, file)
        if meta:
            file.with_suffix(".meta.json").write_text(json.dumps(meta))
        return file

    return save
