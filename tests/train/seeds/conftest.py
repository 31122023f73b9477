"""What the seeds' own code gave for stored inputs, and activations to try things on."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

DATA = Path(__file__).parents[2] / "data/seeds"

Oracle = Callable[[str, str], dict[str, Tensor]]
Activations = Callable[..., dict[str, Tensor]]


@pytest.fixture(scope="session")
def oracle() -> Oracle:
    """Arrays of one case of a file, by name."""

    def read(file: str, case: str) -> dict[str, Tensor]:
        with np.load(DATA / f"{file}.npz") as arrays:
            return {
                key.removeprefix(f"{case}__"): torch.from_numpy(arrays[key])
                for key in arrays.files
                if key.startswith(f"{case}__")
            }

    return read


@pytest.fixture(scope="session")
def activations() -> Activations:
    """Random activations by the names that all metrics take, two thirds of the latents zero."""

    def draw(batch: int, components: int | None = None, seed: int = 0) -> dict[str, Tensor]:
        generator = torch.Generator().manual_seed(seed)
        shape = (batch,) if components is None else (batch, components)
        learned = torch.randn(*shape, 7, generator=generator) - 0.4
        return {
            "learned_activations": learned.relu(),
            "source_activations": torch.randn(*shape, 5, generator=generator),
            "decoded_activations": torch.randn(*shape, 5, generator=generator),
        }

    return draw
