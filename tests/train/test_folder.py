"""The SAE folder: what SAELens needs, back as it went in, and no damage unnoticed."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from saeflow.errors import BadInputError, SaeflowError
from saeflow.train.folder import find_sae, load_sae, metadata, save_sae
from saeflow.train.parameters import Parameters
from saeflow.train.relu import ReLU
from saeflow.train.sae import SAE

ROWS = torch.randn(8, 5, generator=torch.Generator().manual_seed(4))


@pytest.fixture
def folder(small_sae: SAE, tmp_path: Path) -> Path:
    save_sae(small_sae, tmp_path / "sae", ROWS)
    return tmp_path / "sae"


def change_cfg(folder: Path, **changed: Any) -> None:
    cfg = json.loads((folder / "cfg.json").read_text())
    kept = {name: value for name, value in {**cfg, **changed}.items() if value is not None}
    (folder / "cfg.json").write_text(json.dumps(kept))


def change_weights(folder: Path, change: Callable[[dict[str, Tensor]], None]) -> None:
    weights = load_file(folder / "sae_weights.safetensors")
    change(weights)
    save_file(weights, folder / "sae_weights.safetensors")


def test_round_trip(small_sae: SAE, folder: Path) -> None:
    loaded = load_sae(folder)
    assert loaded.cfg == small_sae.cfg
    assert loaded.architecture == small_sae.architecture
    assert loaded.mean is not None
    assert torch.equal(loaded.mean, torch.arange(5.0))
    x = torch.randn(2, 3, 5)
    assert torch.equal(loaded.encode(x), small_sae.encode(x))
    assert torch.equal(loaded(x), small_sae(x))


def test_round_trip_of_relu_without_a_mean(
    random_parameters: Callable[..., Parameters], small_sae: SAE, tmp_path: Path
) -> None:
    parameters = random_parameters(5, 12).float()
    cfg = {**small_sae.cfg, **ReLU(5.0).to_cfg()}
    sae = SAE(ReLU(5.0), parameters, cfg)
    save_sae(sae, tmp_path / "sae", ROWS)
    loaded = load_sae(tmp_path / "sae")
    assert loaded.mean is None
    assert torch.equal(loaded(ROWS), sae(ROWS))


def test_the_tensors_have_the_fields_names_and_shapes(folder: Path) -> None:
    with safe_open(folder / "sae_weights.safetensors", "pt") as file:
        shapes = {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118  # it is no dict
        dtypes = {file.get_slice(name).get_dtype() for name in shapes}
    assert shapes == {"W_enc": (5, 12), "b_enc": (12,), "W_dec": (12, 5), "b_dec": (5,)}
    assert dtypes == {"F32"}


def test_cfg_has_what_saelens_asks_for(folder: Path) -> None:
    cfg = json.loads((folder / "cfg.json").read_text())
    assert {name: value for name, value in cfg.items() if name != "metadata"} == {
        "architecture": "topk",
        "k": 3,
        "rescale_acts_by_decoder_norm": False,
        "d_in": 5,
        "d_sae": 12,
        "dtype": "float32",
        "device": "cpu",
        "apply_b_dec_to_input": True,
        "normalize_activations": "none",
        "reshape_activations": "none",
    }
    assert tuple(map(int, cfg["metadata"]["sae_lens_version"].split("."))) >= (6, 0, 0)


def test_metadata_leaves_out_what_is_not_known() -> None:
    assert metadata(hook_name="h", model_name=None) == {
        "sae_lens_version": "6.0.0",
        "hook_name": "h",
    }


def test_only_json_and_safetensors_are_written(folder: Path) -> None:
    assert sorted(p.name for p in folder.iterdir()) == [
        "cfg.json",
        "sae_weights.safetensors",
        "self_test.safetensors",
    ]
    assert [p.name for p in folder.parent.iterdir()] == ["sae"]


def test_what_an_interrupted_save_left_is_replaced(small_sae: SAE, tmp_path: Path) -> None:
    left = tmp_path / "sae.partial"
    left.mkdir()
    (left / "old").touch()
    save_sae(small_sae, tmp_path / "sae", ROWS)
    assert not left.exists()
    assert not (tmp_path / "sae" / "old").exists()


def test_a_folder_of_another_sae_is_not_overwritten(small_sae: SAE, folder: Path) -> None:
    with pytest.raises(OSError, match="not empty"):
        save_sae(small_sae, folder, ROWS)


def test_an_sae_without_a_self_test_is_opened(folder: Path, small_sae: SAE) -> None:
    """As SAELens writes them."""
    (folder / "self_test.safetensors").unlink()
    assert torch.equal(load_sae(folder)(ROWS), small_sae(ROWS))


@pytest.mark.parametrize("offset", range(0, 564, 47))
def test_a_byte_flipped_in_the_weights_is_noticed(folder: Path, offset: int) -> None:
    """Anywhere in the 564 bytes of numbers, in whatever latent."""
    file = folder / "sae_weights.safetensors"
    content = bytearray(file.read_bytes())
    assert len(content) > 564
    content[-1 - offset] ^= 0xFF
    file.write_bytes(content)
    with pytest.raises(SaeflowError, match="self-test"):
        load_sae(folder)


def test_code_that_computes_something_else_is_noticed(folder: Path) -> None:
    change_cfg(folder, k=2)
    with pytest.raises(SaeflowError, match="fails its self-test"):
        load_sae(folder)


@pytest.mark.parametrize("name", ["W_enc", "b_enc", "W_dec", "b_dec"])
def test_a_tensor_that_is_missing_or_of_another_shape_is_refused(folder: Path, name: str) -> None:
    change_weights(folder, lambda weights: weights.update({name: weights[name].flatten()[:-1]}))
    with pytest.raises(BadInputError, match=f"{name} has shape"):
        load_sae(folder)
    change_weights(folder, lambda weights: weights.__delitem__(name))
    with pytest.raises(BadInputError, match=f"{name} has shape None"):
        load_sae(folder)


def test_scaling_by_decoder_norms_is_folded_as_saelens_computes_it(folder: Path) -> None:
    """`rescale_acts_by_decoder_norm`, which SAELens's own TopK SAEs have."""
    norms = torch.linspace(0.5, 2.0, 12)
    (folder / "self_test.safetensors").unlink()
    change_weights(folder, lambda w: w.update(W_dec=w["W_dec"] * norms[:, None]))
    change_cfg(folder, rescale_acts_by_decoder_norm=True)
    w = load_file(folder / "sae_weights.safetensors")
    pre = ((ROWS - w["b_dec"]) @ w["W_enc"] + w["b_enc"]) * norms
    values, which = pre.topk(3)
    latents = torch.zeros_like(pre).scatter(1, which, values.relu())
    sae = load_sae(folder)
    torch.testing.assert_close(sae.encode(ROWS), latents)
    torch.testing.assert_close(sae(ROWS), (latents / norms) @ w["W_dec"] + w["b_dec"])
    assert sae.cfg["rescale_acts_by_decoder_norm"] is False


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "temporal": ({"architecture": "temporal"}, "architecture temporal: known are topk, standard"),
    "no architecture": ({"architecture": None}, "architecture None: known are"),
    "no k": ({"k": None}, "no usable settings for topk"),
    "k is no number": ({"k": "many"}, "no usable settings for topk"),
    "k of more than there are": ({"k": 13}, "13"),
    "another d_sae": ({"d_sae": 13}, r"W_enc has shape \(5, 12\), its cfg.json says \(5, 13\)"),
    "no d_in": ({"d_in": None}, "W_enc has shape"),
    "d_in is no number": ({"d_in": "wide"}, "W_enc has shape|d_in"),
    "normalised": ({"normalize_activations": "batch_norm"}, "normalize_activations is"),
}


@pytest.mark.parametrize("why", REFUSED)
def test_a_cfg_that_saeflow_would_compute_wrongly_is_refused(folder: Path, why: str) -> None:
    changed, message = REFUSED[why]
    change_cfg(folder, **changed)
    with pytest.raises(BadInputError, match=message) as refused:
        load_sae(folder)
    assert str(folder) in str(refused.value)


DAMAGED = {
    "no cfg.json": ("cfg.json", None),
    "no weights": ("sae_weights.safetensors", None),
    "cfg.json is cut short": ("cfg.json", b'{"k": '),
    "cfg.json is a list": ("cfg.json", b"[1, 2]"),
    "cfg.json is not text": ("cfg.json", b"\xff\xfe\x00"),
    "weights are cut short": ("sae_weights.safetensors", b"\x10\x00\x00"),
    "a pickle in the place of weights": ("sae_weights.safetensors", b"\x80\x04K\x01."),
    "self-test is cut short": ("self_test.safetensors", b"\x10\x00\x00"),
}


@pytest.mark.parametrize("why", DAMAGED)
def test_a_damaged_folder_is_refused_with_one_line(folder: Path, why: str) -> None:
    name, content = DAMAGED[why]
    if content is None:
        (folder / name).unlink()
    else:
        (folder / name).write_bytes(content)
    with pytest.raises(SaeflowError) as refused:
        load_sae(folder)
    assert str(folder) in str(refused.value)


def test_find_takes_the_folder_itself(folder: Path) -> None:
    assert find_sae(folder) == folder


def test_find_takes_the_only_sae_of_a_run(small_sae: SAE, tmp_path: Path) -> None:
    save_sae(small_sae, tmp_path / "run" / "sae" / "one", ROWS)
    unfinished = tmp_path / "run" / "sae" / "two.partial"
    unfinished.mkdir()
    (unfinished / "cfg.json").write_text("{}")
    assert find_sae(tmp_path / "run") == tmp_path / "run" / "sae" / "one"


def test_find_names_the_saes_of_a_run_with_several(small_sae: SAE, tmp_path: Path) -> None:
    for name in ("one", "two"):
        save_sae(small_sae, tmp_path / "sae" / name, ROWS)
    with pytest.raises(BadInputError, match=r"holds 2 SAEs: choose one of .*/one, .*/two"):
        find_sae(tmp_path)


def test_find_refuses_a_run_without_an_sae(tmp_path: Path) -> None:
    with pytest.raises(BadInputError, match="holds no SAE: give an SAE folder, or a run"):
        find_sae(tmp_path)
    with pytest.raises(BadInputError, match="nowhere does not exist: check the path"):
        find_sae(tmp_path / "nowhere")
