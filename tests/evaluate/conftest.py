"""What the tests of the evaluate stage share: a model that text has taught, and an SAE of it."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from saeflow.evaluate.config import EvaluateConfig
from saeflow.harvest.config import HarvestConfig
from saeflow.harvest.models import ModelSpec, SourceModel, load_model
from saeflow.harvest.run import harvest_activations
from saeflow.train.config import TrainConfig
from saeflow.train.run import train_sae

HOOKS = ("blocks.0.hook_resid_post", "blocks.1.attn.hook_z")


@pytest.fixture(scope="session")
def taught_model(
    tiny_model: Path, tiny_text: Path, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """`tiny_model` after some hundred steps on `tiny_text`: ablation costs it something."""
    folder = shutil.copytree(tiny_model, tmp_path_factory.mktemp("taught") / "model")
    model = AutoModelForCausalLM.from_pretrained(str(folder))
    tokenizer = AutoTokenizer.from_pretrained(str(folder))
    texts = [json.loads(line)["text"] for line in tiny_text.read_text().splitlines()]
    stream = torch.tensor([token for ids in tokenizer(texts)["input_ids"] for token in [*ids, 1]])
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    draw = torch.Generator().manual_seed(0)
    for _ in range(150):
        first = torch.randint(len(stream) - 16, (16, 1), generator=draw)
        tokens = torch.cat(
            [torch.zeros(16, 1, dtype=torch.long), stream[first + torch.arange(16)]], 1
        )
        model(tokens, labels=tokens).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    model.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def source_model(taught_model: Path) -> SourceModel:
    return load_model(ModelSpec(name=str(taught_model)))


@pytest.fixture(scope="session")
def taught_store(
    taught_model: Path,
    tiny_options: Callable[..., HarvestConfig],
    tmp_path_factory: pytest.TempPathFactory,
) -> Path:
    """A complete store of `taught_model` at both `HOOKS`. Don't write to it."""
    out = tmp_path_factory.mktemp("taught") / "store"
    harvest_activations(
        tiny_options(model=str(taught_model), hook=HOOKS, out=out, tokens=None, shard_rows=1024)
    )
    return out


@pytest.fixture(scope="session")
def trained_runs(taught_store: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A run of each of `HOOKS`. Don't write to them: `sae` is a copy."""
    base = tmp_path_factory.mktemp("runs")
    for hook in HOOKS:
        train_sae(
            TrainConfig(
                store=taught_store,
                out=base / hook,
                hook=(hook,),
                d_sae=64,
                k=8,
                batch_size=256,
                tokens=25_600,
                device="cpu",
            )
        )
    return {hook: base / hook for hook in HOOKS}


@pytest.fixture
def sae(trained_runs: dict[str, Path], tmp_path: Path) -> Path:
    """An SAE folder of the residual stream, to evaluate, change or damage."""
    (folder,) = (trained_runs[HOOKS[0]] / "sae").iterdir()
    return Path(shutil.copytree(folder, tmp_path / "sae"))


@pytest.fixture
def sae_of_heads(trained_runs: dict[str, Path], tmp_path: Path) -> Path:
    """An SAE folder of the hook point with a head axis."""
    (folder,) = (trained_runs[HOOKS[1]] / "sae").iterdir()
    return Path(shutil.copytree(folder, tmp_path / "sae-of-heads"))


@pytest.fixture
def config(sae: Path) -> Callable[..., EvaluateConfig]:
    """The options of a quick evaluation of `sae`, with any of them changed."""

    def make(**changed: Any) -> EvaluateConfig:
        return EvaluateConfig(**{"sae": sae, "tokens": 640, "device": "cpu", **changed})

    return make


@pytest.fixture(scope="session")
def change_cfg() -> Callable[..., None]:
    """Set an entry of an SAE folder's cfg.json: `change_cfg(sae, "metadata", "hook_name", "x")`."""

    def change(folder: Path, *path: Any) -> None:
        *names, last, value = path
        cfg = json.loads((folder / "cfg.json").read_text())
        inner = cfg
        for name in names:
            inner = inner[name]
        inner[last] = value
        (folder / "cfg.json").write_text(json.dumps(cfg))

    return change
