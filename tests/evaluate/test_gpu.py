"""The same evaluation on a GPU: the CPU's figures, and an identity that changes no bit."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from saeflow.evaluate.config import EvaluateConfig
from saeflow.evaluate.latents.files import read_latents
from saeflow.evaluate.run import evaluate_sae

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")


def test_figures_are_the_cpus(config: Callable[..., EvaluateConfig], tmp_path: Path) -> None:
    """Its checks of itself, an identity among them, pass there, or there were no figures."""
    here, there = (
        evaluate_sae(config(tokens=3000, device=device, out=tmp_path / device))
        for device in ("cpu", "cuda")
    )
    for kind, score in here.scores.items():
        assert there.scores[kind].ratio_of_sums.value == pytest.approx(
            score.ratio_of_sums.value, abs=1e-4
        )
    for kind, loss in here.losses.items():
        assert there.losses[kind].value == pytest.approx(loss.value, rel=1e-4)
    assert there.kl.value == pytest.approx(here.kl.value, rel=1e-2, abs=1e-5)
    assert there.fvu == pytest.approx(here.fvu, rel=1e-3)
    assert there.l0 == pytest.approx(here.l0, rel=1e-3)
    assert there.dead == here.dead
    rows = [
        read_latents(tmp_path / device / "latents.safetensors").rows for device in ("cpu", "cuda")
    ]
    assert rows[0] == rows[1]


def test_bfloat16_is_near(config: Callable[..., EvaluateConfig], tmp_path: Path) -> None:
    full, half = (
        evaluate_sae(config(tokens=3000, device="cuda", dtype=dtype, out=tmp_path / dtype))
        for dtype in ("float32", "bfloat16")
    )
    assert half.scores["zero"].ratio_of_sums.value == pytest.approx(
        full.scores["zero"].ratio_of_sums.value, abs=0.02
    )
