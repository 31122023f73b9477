"""SAE folders that SAELens 6 writes: opened, and held against its formulas, written densely.

The folders are written by hand from the format's description.
"""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from saeflow.errors import BadInputError
from saeflow.train.folder import load_sae, save_sae

D_IN, D_SAE, D_OUT = 6, 20, 4
ROWS = 3 * torch.randn(9, D_IN, generator=torch.Generator().manual_seed(1)) + 1
HOOK = "blocks.0.hook_resid_post"
Write = Callable[..., Path]


def tensors(architecture: str) -> dict[str, Tensor]:
    draw = torch.Generator().manual_seed(0)
    d_out = D_OUT if "transcoder" in architecture else D_IN

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=draw)

    found = {
        "W_enc": normal(D_IN, D_SAE),
        "b_enc": normal(D_SAE),
        "W_dec": normal(D_SAE, d_out),
        "b_dec": normal(d_out),
    }
    if architecture == "gated":
        del found["b_enc"]
        found |= {name: normal(D_SAE) for name in ("b_gate", "b_mag", "r_mag")}
    if "jumprelu" in architecture:
        found["threshold"] = normal(D_SAE).abs()
    if "skip" in architecture:
        found["W_skip"] = normal(d_out, D_IN)
    return found


@pytest.fixture
def write(tmp_path: Path) -> Write:
    """Write a folder: `write("topk", k=3).`; tensors may be changed with `weights`."""

    def folder(architecture: str, weights: dict[str, Tensor] | None = None, **changed: Any) -> Path:
        transcoder = "transcoder" in architecture
        cfg = {
            "architecture": architecture,
            "d_in": D_IN,
            "d_sae": D_SAE,
            "dtype": "float32",
            "device": "cpu",
            "apply_b_dec_to_input": not transcoder,
            "normalize_activations": "none",
            "reshape_activations": "none",
            **({"d_out": D_OUT} if transcoder else {}),
            "metadata": {"sae_lens_version": "6.12.0", "hook_name": HOOK, "model_name": "gpt2"},
            **changed,
        }
        out = tmp_path / "saelens"
        out.mkdir()
        (out / "cfg.json").write_text(json.dumps(cfg))
        save_file(tensors(architecture) | (weights or {}), out / "sae_weights.safetensors")
        return out

    return folder


def activated(architecture: str, pre: Tensor, w: dict[str, Tensor]) -> Tensor:
    """Latents of `pre = x W_enc + b_enc` for all but gated SAEs."""
    if architecture == "topk":
        values, which = pre.topk(3)
        return torch.zeros_like(pre).scatter(1, which, values.relu())
    if "jumprelu" in architecture:
        return pre.relu() * (pre > w["threshold"])
    return pre.relu()


@pytest.mark.parametrize("subtracts", [True, False])
@pytest.mark.parametrize("architecture", ["standard", "topk", "jumprelu"])
def test_saes(write: Write, architecture: str, subtracts: bool) -> None:
    w = tensors(architecture)
    sae = load_sae(write(architecture, k=3, apply_b_dec_to_input=subtracts))
    x = ROWS - w["b_dec"] if subtracts else ROWS
    latents = activated(architecture, x @ w["W_enc"] + w["b_enc"], w)
    torch.testing.assert_close(sae.encode(ROWS), latents)
    torch.testing.assert_close(sae(ROWS), latents @ w["W_dec"] + w["b_dec"])
    assert (sae.kind, sae.hook_points, sae.target_hook_points) == ("sae", (HOOK,), (HOOK,))


@pytest.mark.parametrize("subtracts", [True, False])
def test_a_gated_sae(write: Write, subtracts: bool) -> None:
    w = tensors("gated")
    x = ROWS - w["b_dec"] if subtracts else ROWS
    gate = (x @ w["W_enc"] + w["b_gate"]) > 0
    magnitude = (x @ (w["W_enc"] * w["r_mag"].exp()) + w["b_mag"]).relu()
    sae = load_sae(write("gated", apply_b_dec_to_input=subtracts))
    torch.testing.assert_close(sae.encode(ROWS), gate * magnitude)
    torch.testing.assert_close(sae(ROWS), (gate * magnitude) @ w["W_dec"] + w["b_dec"])


@pytest.mark.parametrize("said", [False, True])
@pytest.mark.parametrize(
    "architecture",
    ["transcoder", "skip_transcoder", "jumprelu_transcoder", "jumprelu_skip_transcoder"],
)
def test_transcoders(write: Write, architecture: str, said: bool) -> None:
    """`b_dec` is never taken off what they read; SAELens's first ones say that it is."""
    w = tensors(architecture)
    latents = activated(architecture, ROWS @ w["W_enc"] + w["b_enc"], w)
    expected = latents @ w["W_dec"] + w["b_dec"]
    if "skip" in architecture:
        expected = expected + ROWS @ w["W_skip"].t()
    sae = load_sae(
        write(architecture, apply_b_dec_to_input=said, hook_name_out="blocks.0.hook_mlp_out")
    )
    torch.testing.assert_close(sae.encode(ROWS), latents)
    torch.testing.assert_close(sae(ROWS), expected)
    assert sae.kind == "transcoder"
    assert sae.target_hook_points == ("blocks.0.hook_mlp_out",)


@pytest.mark.parametrize("subtracts", [True, False])
def test_a_topk_sae_scaled_by_its_decoder_norms(write: Write, subtracts: bool) -> None:
    """One latent's decoder row is zero: it is worth nothing, and nothing becomes NaN."""
    w = tensors("topk")
    w["W_dec"][4] = 0
    x = ROWS - w["b_dec"] if subtracts else ROWS
    norms = w["W_dec"].norm(dim=1)
    latents = activated("topk", (x @ w["W_enc"] + w["b_enc"]) * norms, w)
    folder = write(
        "topk", w, k=3, rescale_acts_by_decoder_norm=True, apply_b_dec_to_input=subtracts
    )
    sae = load_sae(folder)
    directions = w["W_dec"] / norms.clamp_min(1e-8)[:, None]
    torch.testing.assert_close(sae.encode(ROWS), latents)
    torch.testing.assert_close(sae(ROWS), latents @ directions + w["b_dec"])


def normalised(how: str) -> tuple[Tensor, Tensor, Tensor]:
    """Rows, and what a reconstruction is multiplied by and then shifted by."""
    if how == "constant_norm_rescale":
        norm = ROWS.square().sum(1, keepdim=True).sqrt()
        return ROWS / norm * D_IN**0.5, norm / D_IN**0.5, torch.zeros(())
    mean = ROWS.mean(1, keepdim=True)
    deviation = ((ROWS - mean).square().sum(1, keepdim=True) / (D_IN - 1)).sqrt()
    return (ROWS - mean) / (deviation + 1e-5), deviation, mean


@pytest.mark.parametrize("how", ["constant_norm_rescale", "layer_norm"])
def test_rows_that_are_normalised_one_by_one(write: Write, how: str) -> None:
    w = tensors("standard")
    x, scale, shift = normalised(how)
    latents = ((x - w["b_dec"]) @ w["W_enc"] + w["b_enc"]).relu()
    sae = load_sae(write("standard", normalize_activations=how))
    torch.testing.assert_close(sae.encode(ROWS), latents)
    torch.testing.assert_close(sae(ROWS), (latents @ w["W_dec"] + w["b_dec"]) * scale + shift)
    assert sae.needs_rows
    with pytest.raises(ValueError, match="normalises each row"):
        sae.decode(latents)


@pytest.mark.parametrize("how", ["constant_norm_rescale", "layer_norm"])
def test_a_transcoders_targets_are_not_brought_back(write: Write, how: str) -> None:
    """They are other rows; and the skip path gets rows as they are."""
    w = tensors("skip_transcoder")
    latents = (normalised(how)[0] @ w["W_enc"] + w["b_enc"]).relu()
    sae = load_sae(write("skip_transcoder", normalize_activations=how))
    torch.testing.assert_close(
        sae(ROWS), latents @ w["W_dec"] + w["b_dec"] + ROWS @ w["W_skip"].t()
    )


def test_a_scaling_that_is_in_the_weights_already_does_nothing(write: Write) -> None:
    w = tensors("standard")
    sae = load_sae(write("standard", normalize_activations="expected_average_only_in"))
    latents = ((ROWS - w["b_dec"]) @ w["W_enc"] + w["b_enc"]).relu()
    torch.testing.assert_close(sae(ROWS), latents @ w["W_dec"] + w["b_dec"])
    assert not sae.needs_rows


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_weights_of_any_precision_are_computed_with_in_float32(
    write: Write, dtype: torch.dtype
) -> None:
    stored = {name: tensor.to(dtype) for name, tensor in tensors("standard").items()}
    w = {name: tensor.float() for name, tensor in stored.items()}
    sae = load_sae(write("standard", stored, dtype=str(dtype).removeprefix("torch.")))
    latents = ((ROWS - w["b_dec"]) @ w["W_enc"] + w["b_enc"]).relu()
    assert sae(ROWS).dtype == torch.float32
    torch.testing.assert_close(sae(ROWS), latents @ w["W_dec"] + w["b_dec"])


def test_rows_with_a_head_axis_are_flat_here(write: Write) -> None:
    assert load_sae(write("standard", reshape_activations="hook_z")).d_in == D_IN


CHANGED: dict[str, dict[str, Any]] = {
    "no b_dec off": {"apply_b_dec_to_input": False},
    "decoder norms": {"rescale_acts_by_decoder_norm": True},
    "normalised": {"normalize_activations": "layer_norm"},
    "half": {"dtype": "bfloat16"},
}


@pytest.mark.parametrize("why", CHANGED)
def test_saved_again_it_computes_the_same(write: Write, tmp_path: Path, why: str) -> None:
    sae = load_sae(write("topk", k=3, **CHANGED[why]))
    save_sae(sae, tmp_path / "again", ROWS)
    again = load_sae(tmp_path / "again")
    assert torch.equal(again(ROWS), sae(ROWS))
    assert again.cfg == sae.cfg


REFUSED: dict[str, tuple[str, dict[str, Any], str]] = {
    "before 6": ("standard", {"metadata": {"sae_lens_version": "5.11.0"}}, r"\(.* is 5\.11\.0\)"),
    "no version": ("standard", {"metadata": {"hook_name": HOOK}}, "not of SAELens 6 or later"),
    "no metadata": ("standard", {"metadata": {}}, "save it again with save_model"),
    "whitened": (
        "standard",
        {"normalize_activations": "covariance_whitening"},
        "can use only 'none', 'expected_average_only_in', 'constant_norm_rescale', 'layer_norm'",
    ),
    "reshaped": ("standard", {"reshape_activations": "hook_q"}, "reshape_activations is 'hook_q'"),
    "no choice": ("standard", {"apply_b_dec_to_input": "maybe"}, "apply_b_dec_to_input is 'maybe'"),
    "signed": ("abstopk", {"k": 3}, "architecture abstopk: known are topk, standard, jumprelu"),
    "in training": ("batchtopk", {"k": 3}, "architecture batchtopk: known are"),
}


@pytest.mark.parametrize("why", REFUSED)
def test_what_would_be_computed_wrongly_is_refused(write: Write, why: str) -> None:
    architecture, changed, message = REFUSED[why]
    folder = write(architecture, **changed)
    with pytest.raises(BadInputError, match=message) as refused:
        load_sae(folder)
    assert str(folder) in str(refused.value)


def test_a_tensor_that_the_architecture_has_not_is_refused(write: Write) -> None:
    folder = write("standard", {"scaling_factor": torch.ones(D_SAE)})
    with pytest.raises(BadInputError, match="scaling_factor is no tensor of the architecture"):
        load_sae(folder)


def test_tensors_of_whole_numbers_are_refused(write: Write) -> None:
    folder = write("standard", {"b_dec": torch.ones(D_IN, dtype=torch.int32)})
    with pytest.raises(BadInputError, match="b_dec holds numbers of type int32"):
        load_sae(folder)


def test_a_checkpoint_whose_scale_is_not_folded_is_refused(write: Write) -> None:
    folder = write("standard", normalize_activations="expected_average_only_in")
    (folder / "activation_scaler.json").write_text('{"scaling_factor": null}')
    load_sae(folder)
    (folder / "activation_scaler.json").write_text('{"scaling_factor": 0.25}')
    with pytest.raises(BadInputError, match="is a checkpoint of training whose scale"):
        load_sae(folder)
