"""Where SAEs are opened: a folder, a run with several, and folders of others."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from saeflow.errors import BadInputError, SaeflowError
from saeflow.evaluate.opening import open_saes
from saeflow.train.folder import load_sae


def test_a_folder_is_one_sae(sae: Path) -> None:
    (opened,) = open_saes(sae)
    assert (opened.name, opened.folder) == (sae.name, sae)
    rows = torch.randn(3, 32)
    assert torch.equal(opened.sae(rows), load_sae(sae)(rows))


def test_its_name_is_the_folders_even_from_inside(
    sae: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(sae)
    (opened,) = open_saes(Path())
    assert opened.name == sae.name


def test_a_run_is_all_its_saes_by_name(sae: Path, tmp_path: Path) -> None:
    for name in ("k32", "k16", "k8"):
        shutil.copytree(sae, tmp_path / "run" / "sae" / name)
    shutil.copytree(sae, tmp_path / "run" / "sae" / "k4.partial")
    opened = open_saes(tmp_path / "run")
    assert [one.name for one in opened] == ["k16", "k32", "k8"]
    assert [one.folder for one in opened] == [
        tmp_path / "run" / "sae" / name for name in ("k16", "k32", "k8")
    ]


def test_one_damaged_sae_of_a_run_is_named(sae: Path, tmp_path: Path) -> None:
    for name in ("a", "b"):
        shutil.copytree(sae, tmp_path / "run" / "sae" / name)
    weights = tmp_path / "run" / "sae" / "b" / "sae_weights.safetensors"
    weights.write_bytes(weights.read_bytes()[:-4] + b"\0\0\0\1")
    with pytest.raises(SaeflowError, match=r"run/sae/b fails its self-test"):
        open_saes(tmp_path / "run")


def test_a_folder_that_saelens_wrote(tmp_path: Path) -> None:
    draw = torch.Generator().manual_seed(0)
    w = {
        "W_enc": torch.randn(8, 16, generator=draw),
        "b_enc": torch.randn(16, generator=draw),
        "W_dec": torch.randn(16, 8, generator=draw),
        "b_dec": torch.randn(8, generator=draw),
    }
    cfg = {
        "architecture": "standard",
        "d_in": 8,
        "d_sae": 16,
        "dtype": "float32",
        "apply_b_dec_to_input": False,
        "metadata": {"sae_lens_version": "6.20.0", "hook_name": "blocks.0.hook_resid_pre"},
    }
    (tmp_path / "theirs").mkdir()
    (tmp_path / "theirs" / "cfg.json").write_text(json.dumps(cfg))
    save_file(w, tmp_path / "theirs" / "sae_weights.safetensors")
    (opened,) = open_saes(tmp_path / "theirs")
    x = torch.randn(5, 8, generator=draw)
    expected = (x @ w["W_enc"] + w["b_enc"]).relu() @ w["W_dec"] + w["b_dec"]
    torch.testing.assert_close(opened.sae(x), expected)


def test_what_is_no_sae_is_refused(
    sae: Path, tmp_path: Path, change_cfg: Callable[..., None]
) -> None:
    with pytest.raises(BadInputError, match="does not exist: check the path"):
        open_saes(tmp_path / "nowhere")
    (tmp_path / "empty").mkdir()
    with pytest.raises(BadInputError, match="holds no SAE: give an SAE folder, or a run"):
        open_saes(tmp_path / "empty")
    change_cfg(sae, "architecture", "temporal")
    with pytest.raises(BadInputError, match="known are topk, standard, jumprelu, gated, and"):
        open_saes(sae)
