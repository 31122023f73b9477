"""What an SAE makes of clean rows, whatever it reads and replaces."""

from pathlib import Path

import pytest
import torch
from made_saes import random, save_made
from torch import Tensor

from saeflow.evaluate.reconstructing import make, make_in_parts
from saeflow.train.folder import load_sae

A, B = "blocks.0.hook_resid_post", "blocks.1.hook_mlp_out"


@pytest.fixture(scope="module")
def rows() -> dict[str, Tensor]:
    draw = torch.Generator().manual_seed(0)
    return {name: torch.randn(6, 32, generator=draw) for name in (B, A, "another")}


def test_a_transcoder_replaces_what_it_does_not_read(
    rows: dict[str, Tensor], sae: Path, tmp_path: Path
) -> None:
    w = random(32, 32, skip=True)
    opened = load_sae(save_made(tmp_path / "t", w, sae, (A,), B, "skip_transcoder"))
    made = make(opened, rows)
    latents = (rows[A] @ w["W_enc"] + w["b_enc"]).relu()
    torch.testing.assert_close(made.latents, latents)
    expected = latents @ w["W_dec"] + w["b_dec"] + rows[A] @ w["W_skip"].T
    assert set(made.rows) == {B}
    torch.testing.assert_close(made.rows[B], expected)


def test_a_crosscoder_gives_each_hook_point_its_own_columns(
    rows: dict[str, Tensor], sae: Path, tmp_path: Path
) -> None:
    w = random(64, 64)
    opened = load_sae(save_made(tmp_path / "c", w, sae, (A, B), None, "crosscoder"))
    made = make(opened, rows)
    x = torch.cat([rows[A], rows[B]], 1)
    expected = (x @ w["W_enc"] + w["b_enc"]).relu() @ w["W_dec"] + w["b_dec"]
    torch.testing.assert_close(torch.cat([made.rows[A], made.rows[B]], 1), expected)
    assert list(made.rows) == [A, B]


@pytest.mark.parametrize("sizes", [[6], [0, 2, 0, 3, 1], [1] * 6])
def test_in_parts_it_is_the_same(rows: dict[str, Tensor], sae: Path, sizes: list[int]) -> None:
    opened = load_sae(sae)
    whole, parts = make(opened, rows), list(make_in_parts(opened, rows, sizes))
    assert [len(part.latents) for part in parts] == sizes
    torch.testing.assert_close(torch.cat([part.latents for part in parts]), whole.latents)
    torch.testing.assert_close(torch.cat([part.rows[A] for part in parts]), whole.rows[A])
