"""How an untrained SAE begins: at the rows' centre, or with the tensors of an SAE folder."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from saeflow.errors import BadInputError
from saeflow.harvest.layout import HookPoint
from saeflow.train.architecture import Architecture
from saeflow.train.batchtopk import BatchTopK
from saeflow.train.folder import load_sae, metadata, save_sae
from saeflow.train.gated import Gated
from saeflow.train.initial import INITIAL_READ, Start, initial_parameters
from saeflow.train.jumprelu import JumpReLU
from saeflow.train.kinds import cfg_of, hook_metadata
from saeflow.train.matryoshka import Matryoshka
from saeflow.train.normalisation import Normalisation
from saeflow.train.p_anneal import PAnneal
from saeflow.train.parameters import Parameters
from saeflow.train.relu import ReLU
from saeflow.train.sae import SAE
from saeflow.train.topk import TopK

Make = Callable[..., Parameters]
CPU = torch.device("cpu")


def statistics(width: int, seed: int) -> dict[str, Any]:
    generator = torch.Generator().manual_seed(seed)
    mean, std, median = torch.rand(3, width, generator=generator, dtype=torch.float64).numpy()
    return {"mean": 5 * mean, "std": std, "geometric_median": 5 * median}


OF_SAE = Normalisation.of_sae(statistics(5, 0), CPU)
OF_TRANSCODER = Normalisation.of_transcoder(statistics(5, 0), statistics(7, 1), CPU)
OF_CROSSCODER = Normalisation.of_crosscoder([statistics(5, 0), statistics(7, 1)], CPU)


# From nothing.


def test_an_sae_begins_as_its_seed_says_at_the_mean() -> None:
    p = initial_parameters(OF_SAE, TopK(3), 12, seed=4)
    same = Parameters.initial(OF_SAE.mean * OF_SAE.scale, 12, seed=4)
    assert p.state_dict().keys() == same.state_dict().keys()
    for name, tensor in same.state_dict().items():
        assert torch.equal(p.state_dict()[name], tensor)
    assert all(tensor.requires_grad for tensor in p.parameters())


@pytest.mark.parametrize(
    ("start", "expected"),
    [
        ("mean", OF_TRANSCODER.mean),
        ("geometric-median", OF_TRANSCODER.median),
        ("zero", torch.zeros(7)),
    ],
)
def test_b_dec_begins_where_it_is_told(start: Start, expected: Tensor) -> None:
    """A transcoder's among the targets."""
    p = initial_parameters(OF_TRANSCODER, TopK(3), 12, seed=0, b_dec=start)
    assert torch.equal(p.b_dec, expected * OF_TRANSCODER.scale)


def test_a_crosscoder_begins_as_an_sae_of_all_its_rows() -> None:
    p = initial_parameters(OF_CROSSCODER, TopK(3), 12, seed=0)
    assert p.blocks == (5, 7)
    torch.testing.assert_close(p.W_dec.norm(dim=1), torch.ones(12))
    assert torch.equal(p.encoder, p.W_dec)
    assert torch.equal(p.b_dec, OF_CROSSCODER.mean * OF_CROSSCODER.scale)


def test_a_transcoder_begins_with_directions_that_have_nothing_to_do_with_each_other() -> None:
    square = Normalisation.of_transcoder(statistics(64, 0), statistics(64, 1), CPU)
    p = initial_parameters(square, ReLU(1.0), 100, seed=0)
    torch.testing.assert_close(p.W_dec.norm(dim=1), torch.ones(100))
    torch.testing.assert_close(p.encoder.norm(dim=1), torch.full((100,), INITIAL_READ))
    cosines = (p.encoder * p.W_dec).sum(1) / INITIAL_READ
    assert cosines.abs().max() < 0.6
    assert square.source is not None
    assert p.centre is not None
    torch.testing.assert_close(p.centre, square.source.mean * square.source.scale)
    again = initial_parameters(square, ReLU(1.0), 100, seed=0)
    assert torch.equal(again.encoder, p.encoder)
    assert not torch.equal(initial_parameters(square, ReLU(1.0), 100, seed=1).encoder, p.encoder)


def test_a_skip_begins_at_zero_and_is_trained() -> None:
    p = initial_parameters(OF_TRANSCODER, TopK(3), 12, seed=0, skip=True)
    assert p.W_skip is not None
    assert torch.equal(p.W_skip, torch.zeros(7, 5))
    assert "W_skip" in dict(p.named_parameters())


def test_an_architectures_own_tensors_begin_as_it_says() -> None:
    p = initial_parameters(OF_TRANSCODER, JumpReLU(start=0.3), 12, seed=0)
    assert torch.equal(p.more("threshold"), torch.full((12,), 0.3))


# From a folder.


def saved(
    folder: Path, architecture: Architecture, units: Normalisation = OF_SAE, *, skip: bool = False
) -> SAE:
    """An SAE in an SAE folder, none of whose tensors is as it began."""
    p = initial_parameters(units, architecture, 12, seed=9, skip=skip)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, tensor in p.named_parameters():
            noise = torch.rand(tensor.shape, generator=generator)
            tensor.add_(noise if name != "W_dec" else 0.0)
    if p.state:
        p.renew({"threshold": torch.tensor(0.7)})
    inference, folded = architecture.trained(units.folded(p))
    source = len(units.mean) if units.source is None else len(units.source.mean)
    inputs = [HookPoint(f"h{i}", (width,)) for i, width in enumerate(units.blocks or (source,))]
    target = HookPoint("out", (folded.d_out,)) if units.source else None
    cfg = cfg_of(inference, inputs, target, 12, skip=skip)
    cfg["metadata"] = metadata(**hook_metadata(inputs, target))
    sae = SAE(inference, folded, cfg)
    save_sae(sae, folder, torch.rand(8, folded.d_in, generator=generator))
    return sae


@pytest.mark.parametrize(
    ("architecture", "units", "skip"),
    [
        (TopK(3), OF_SAE, False),
        (ReLU(1.0), OF_SAE, False),
        (JumpReLU(), OF_SAE, False),
        (Gated(1.0), OF_SAE, False),
        (BatchTopK(3), OF_SAE, False),
        (TopK(3), OF_TRANSCODER, False),
        (Gated(1.0), OF_TRANSCODER, True),
        (ReLU(1.0), OF_CROSSCODER, False),
    ],
    ids=[
        *("topk", "relu", "jumprelu", "gated", "batchtopk"),
        *("transcoder", "gated skip transcoder", "crosscoder"),
    ],
)
def test_it_goes_on_where_a_folder_stopped(
    tmp_path: Path, architecture: Architecture, units: Normalisation, skip: bool
) -> None:
    sae = saved(tmp_path / "sae", architecture, units, skip=skip)
    p = initial_parameters(units, architecture, 12, 0, skip=skip, init_from=tmp_path / "sae")
    assert all(tensor.requires_grad for tensor in p.parameters())
    torch.testing.assert_close(p.W_dec.norm(dim=1), torch.ones(12))
    if units.source is not None:
        assert p.centre is not None
        torch.testing.assert_close(p.centre, units.source.centre)
    inference, again = architecture.trained(units.folded(p))
    assert inference.to_cfg() == sae.architecture.to_cfg()
    x = torch.rand(50, sae.d_in) * 5
    torch.testing.assert_close(SAE(inference, again, sae.cfg)(x), sae(x), rtol=1e-4, atol=1e-4)


def test_a_batchtopk_sae_goes_on_with_its_threshold(tmp_path: Path) -> None:
    """In its folder it is a JumpReLU SAE, with a threshold for each latent."""
    saved(tmp_path / "sae", BatchTopK(3))
    for architecture in (BatchTopK(5), Matryoshka(BatchTopK(5), (4, 12))):
        p = initial_parameters(OF_SAE, architecture, 12, 0, init_from=tmp_path / "sae")
        torch.testing.assert_close(p.state["threshold"], torch.tensor(0.7))
    p = initial_parameters(OF_SAE, JumpReLU(), 12, 0, init_from=tmp_path / "sae")
    torch.testing.assert_close(p.more("threshold"), torch.full((12,), 0.7))


def test_the_average_of_thresholds_that_differ_is_taken(tmp_path: Path) -> None:
    sae = saved(tmp_path / "sae", JumpReLU())
    p = initial_parameters(OF_SAE, BatchTopK(3), 12, 0, init_from=tmp_path / "sae")
    mean = sae.parameters.more("threshold").mean() * OF_SAE.scale
    torch.testing.assert_close(p.state["threshold"], mean)


@pytest.mark.parametrize("architecture", [ReLU(1.0), BatchTopK(3), PAnneal(1.0)])
def test_four_tensors_are_enough_for_those_that_need_no_more(
    tmp_path: Path, architecture: Architecture
) -> None:
    saved(tmp_path / "sae", TopK(3))
    p = initial_parameters(OF_SAE, architecture, 12, 0, init_from=tmp_path / "sae")
    fresh = architecture.initial(12)
    assert {name: tensor.item() for name, tensor in p.state.items()} == {
        name: tensor.item() for name, tensor in fresh.items()
    }


def test_a_transcoder_without_a_skip_can_get_one(tmp_path: Path) -> None:
    sae = saved(tmp_path / "sae", TopK(3), OF_TRANSCODER)
    folder = tmp_path / "sae"
    p = initial_parameters(OF_TRANSCODER, TopK(3), 12, 0, skip=True, init_from=folder)
    assert p.W_skip is not None
    assert torch.equal(p.W_skip, torch.zeros(7, 5))
    x = torch.rand(20, 5)
    folded = OF_TRANSCODER.folded(p)
    latents = TopK(3).encode(folded, x)
    torch.testing.assert_close(
        latents @ folded.W_dec + folded.offset(x), sae(x), rtol=1e-4, atol=1e-4
    )


def test_decoder_norms_of_another_library_go_to_the_latents(
    tmp_path: Path, random_parameters: Make
) -> None:
    p = random_parameters(5, 12).float().requires_grad_(False)
    p.W_dec.mul_(torch.linspace(0.5, 2, 12)[:, None])
    cfg = cfg_of(ReLU(0.0), [HookPoint("h", (5,))], None, 12)
    sae = SAE(ReLU(0.0), p, {**cfg, "metadata": metadata()})
    save_sae(sae, tmp_path / "sae", torch.rand(8, 5))
    begun = initial_parameters(OF_SAE, ReLU(1.0), 12, 0, init_from=tmp_path / "sae")
    torch.testing.assert_close(begun.W_dec.norm(dim=1), torch.ones(12))
    folded, x = OF_SAE.folded(begun), torch.rand(20, 5)
    found = ReLU(0.0).encode(folded, x) @ folded.W_dec + folded.b_dec
    torch.testing.assert_close(found, sae(x), rtol=1e-4, atol=1e-4)


def test_an_sae_that_takes_no_b_dec_off_goes_on_as_one_that_does(tmp_path: Path) -> None:
    """As SAELens's with `apply_b_dec_to_input: false`."""
    folder = tmp_path / "sae"
    saved(folder, ReLU(0.0))
    (folder / "self_test.safetensors").unlink()
    cfg = json.loads((folder / "cfg.json").read_text())
    (folder / "cfg.json").write_text(json.dumps(cfg | {"apply_b_dec_to_input": False}))
    sae, x = load_sae(folder), 5 * torch.rand(20, 5)
    begun = initial_parameters(OF_SAE, ReLU(1.0), 12, 0, init_from=folder)
    assert begun.centre is None
    inference, folded = ReLU(1.0).trained(OF_SAE.folded(begun))
    torch.testing.assert_close(SAE(inference, folded, cfg)(x), sae(x), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("scaling", ["layer_norm", "constant_norm_rescale"])
def test_a_scaling_of_single_rows_is_not_dropped(tmp_path: Path, scaling: str) -> None:
    folder = tmp_path / "sae"
    saved(folder, ReLU(0.0))
    (folder / "self_test.safetensors").unlink()
    cfg = json.loads((folder / "cfg.json").read_text())
    (folder / "cfg.json").write_text(json.dumps(cfg | {"normalize_activations": scaling}))
    with pytest.raises(BadInputError, match=rf"normalises every row by itself \({scaling}\)"):
        initial_parameters(OF_SAE, ReLU(1.0), 12, 0, init_from=folder)


REFUSED: dict[str, tuple[Architecture, Normalisation, int, bool, Architecture, str]] = {
    "another d_sae": (TopK(3), OF_SAE, 13, False, TopK(3), "has d_sae 12, but 13 is to be trained"),
    "another d_in": (
        TopK(3),
        Normalisation.of_sae(statistics(7, 1), CPU),
        12,
        False,
        TopK(3),
        "has d_in 5, but 7 is to be trained",
    ),
    "a transcoder of an SAE": (
        TopK(3),
        OF_TRANSCODER,
        12,
        False,
        TopK(3),
        "is an SAE, but a transcoder is to be trained",
    ),
    "thresholds that are missing": (
        TopK(3),
        OF_SAE,
        12,
        False,
        JumpReLU(),
        "of architecture topk, which for --arch jumprelu lacks threshold: ",
    ),
    "thresholds with no place": (
        JumpReLU(),
        OF_SAE,
        12,
        False,
        ReLU(1.0),
        "of architecture jumprelu, which for --arch relu also has threshold: ",
    ),
    "no gate": (TopK(3), OF_SAE, 12, False, Gated(1.0), "--arch gated lacks b_mag and r_mag: "),
}


@pytest.mark.parametrize("why", REFUSED)
def test_a_folder_that_does_not_fit_is_refused(tmp_path: Path, why: str) -> None:
    begun, units, d_sae, skip, architecture, message = REFUSED[why]
    saved(tmp_path / "sae", begun)
    with pytest.raises(BadInputError, match=message) as refused:
        initial_parameters(units, architecture, d_sae, 0, skip=skip, init_from=tmp_path / "sae")
    assert str(refused.value).startswith(f"--init-from {tmp_path / 'sae'} ")


def test_a_skip_is_not_dropped(tmp_path: Path) -> None:
    saved(tmp_path / "sae", TopK(3), OF_TRANSCODER, skip=True)
    with pytest.raises(BadInputError, match="is a skip transcoder, but a transcoder is to be"):
        initial_parameters(OF_TRANSCODER, TopK(3), 12, 0, init_from=tmp_path / "sae")


def test_a_crosscoder_of_other_widths_is_refused(tmp_path: Path) -> None:
    saved(tmp_path / "sae", TopK(3), OF_CROSSCODER)
    swapped = Normalisation.of_crosscoder([statistics(7, 0), statistics(5, 1)], CPU)
    with pytest.raises(BadInputError, match=r"has d_ins \(5, 7\), but \(7, 5\) is to be trained"):
        initial_parameters(swapped, TopK(3), 12, 0, init_from=tmp_path / "sae")
