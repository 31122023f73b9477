"""What the tests of the train stage share: the tiny store opened, and data with a known answer."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from saeflow.harvest.store import Store, open_store
from saeflow.train.architecture import Architecture
from saeflow.train.config import TrainConfig
from saeflow.train.normalisation import Normalisation
from saeflow.train.parameters import Parameters
from saeflow.train.sae import SAE
from saeflow.train.schedule import Schedule
from saeflow.train.topk import TopK
from saeflow.train.trainer import Trainer

HOOK = "blocks.0.hook_resid_post"


@pytest.fixture(scope="session")
def store(tiny_store: Path) -> Store:
    """`tiny_store`, opened: 32 wide at both hook points."""
    return open_store(tiny_store)


@pytest.fixture
def train_config(tiny_store: Path, tmp_path: Path) -> Callable[..., TrainConfig]:
    """The options of a short run into `tmp_path / "run"`, with any of them changed."""

    def config(**changed: Any) -> TrainConfig:
        options = {
            "store": tiny_store,
            "out": tmp_path / "run",
            "hook": (HOOK,),
            "d_sae": 48,
            "k": 4,
            "batch_size": 256,
            "tokens": 2560,
            "log_every": 3,
            "device": "cpu",
        }
        return TrainConfig(**{**options, **changed})

    return config


@pytest.fixture(scope="session")
def sparse_rows() -> Callable[..., Tensor]:
    """Rows that an SAE can explain: 3 of 64 directions in 32 dimensions, around a far mean."""
    draw = torch.Generator().manual_seed(0)
    directions = F.normalize(torch.randn(64, 32, generator=draw), dim=1)
    mean = 2 * torch.randn(32, generator=draw)

    def rows(n: int, seed: int = 1) -> Tensor:
        generator = torch.Generator().manual_seed(seed)
        chosen = torch.rand(n, 64, generator=generator).topk(3).indices
        strengths = 1 + torch.rand(n, 3, generator=generator)
        return torch.zeros(n, 64).scatter(1, chosen, strengths) @ directions + mean

    return rows


@pytest.fixture(scope="session")
def normalisation_of() -> Callable[[Tensor], Normalisation]:
    """The normalisation that a store of these rows would lead to."""

    def normalisation(rows: Tensor) -> Normalisation:
        values = rows.double().numpy()
        return Normalisation.from_statistics(values.mean(0), values.std(0), torch.device("cpu"))

    return normalisation


@pytest.fixture(scope="session")
def make_trainer() -> Callable[..., Trainer]:
    """An untrained SAE of 64 latents, for 400 steps of 256 rows."""

    def trainer(architecture: Architecture, normalisation: Normalisation) -> Trainer:
        start = normalisation.mean * normalisation.scale
        extra, rules = architecture.initial(64), architecture.rules
        parameters = Parameters.initial(start, 64, seed=0, extra=extra, rules=rules)
        schedule = Schedule(peak=3e-3, n_steps=400, warm_up=20, decay=80)
        return Trainer(architecture, parameters, normalisation, schedule, dead_after=2560)

    return trainer


@pytest.fixture(scope="session")
def random_parameters() -> Callable[..., Parameters]:
    """Parameters without any structure: biases are not zero, the encoder is not the transpose."""

    def parameters(d_in: int, d_sae: int, seed: int = 0) -> Parameters:
        generator = torch.Generator().manual_seed(seed)

        def draw(*shape: int) -> Tensor:
            return torch.randn(*shape, generator=generator, dtype=torch.float64)

        decoder = F.normalize(draw(d_sae, d_in), dim=1)
        return Parameters(draw(d_sae, d_in), draw(d_sae), decoder, draw(d_in))

    return parameters


@pytest.fixture
def small_sae(random_parameters: Callable[..., Parameters]) -> SAE:
    """A TopK SAE of 12 latents on rows 5 wide, k = 3, with what its cfg.json says."""
    cfg = {
        **TopK(3).to_cfg(),
        "d_in": 5,
        "d_sae": 12,
        "dtype": "float32",
        "device": "cpu",
        "apply_b_dec_to_input": True,
        "normalize_activations": "none",
        "reshape_activations": "none",
        "metadata": {"sae_lens_version": "6.0.0", "hook_name": HOOK, "model_name": "tiny"},
    }
    parameters = random_parameters(5, 12).float().requires_grad_(False)
    return SAE(TopK(3), parameters, cfg, torch.arange(5.0))


@pytest.fixture(scope="session")
def lines_of() -> Callable[[Path], list[dict[str, Any]]]:
    """The objects of a .jsonl file."""
    return lambda file: [json.loads(line) for line in file.read_text().splitlines()]


@pytest.fixture(scope="session")
def zarr_rows(tiny_store: Path) -> Callable[[str], Tensor]:
    """All training rows of a hook point as zarr itself reads them, in float32."""
    import zarr

    def rows(hook_point: str) -> Tensor:
        bits = np.asarray(zarr.open_array(tiny_store / "acts" / hook_point, mode="r")[:])
        return torch.from_numpy((bits.astype(np.uint32) << 16).view(np.float32))

    return rows


@pytest.fixture
def contents() -> Callable[[Path], dict[str, bytes]]:
    """What a run made, by file: without the folder's name in it, and how fast it was."""

    def read(run: Path) -> dict[str, bytes]:
        files = {str(file.relative_to(run)): file for file in run.rglob("*") if file.is_file()}
        return {
            name: file.read_bytes().replace(str(run).encode(), b"RUN")
            for name, file in sorted(files.items())
            if name not in ("config.toml", "speed.jsonl")
        }

    return read
