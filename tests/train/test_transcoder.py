"""Transcoders: they read one hook point and reconstruct another, through a skip or not."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor
from torch.nn import functional as F

from saeflow.errors import BadInputError, SaeflowError
from saeflow.harvest.layout import HookPoint
from saeflow.train.architecture import Architecture, Batch
from saeflow.train.auxk import AuxK
from saeflow.train.batchtopk import BatchTopK
from saeflow.train.folder import load_sae, metadata, save_sae
from saeflow.train.gated import Gated
from saeflow.train.initial import initial_parameters
from saeflow.train.jumprelu import JumpReLU, jump, step
from saeflow.train.kinds import cfg_of, hook_metadata
from saeflow.train.matryoshka import Matryoshka
from saeflow.train.normalisation import Normalisation
from saeflow.train.p_anneal import PAnneal
from saeflow.train.parameters import Parameters
from saeflow.train.relu import ReLU
from saeflow.train.sae import SAE
from saeflow.train.topk import TopK

CPU = torch.device("cpu")
D_IN, D_OUT, D_SAE = 6, 4, 11
N_STEPS, BATCH = 300, 128
READ = HookPoint("blocks.0.hook_mlp_in", (D_IN,))
WRITTEN = HookPoint("blocks.0.hook_mlp_out", (D_OUT,))


def draw(seed: int, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def transcoder(architecture: Architecture, *, skip: bool = False) -> Parameters:
    """Without any structure: no bias is zero, nothing is a transpose."""
    extra = {name: tensor.double() for name, tensor in architecture.initial(D_SAE).items()}
    if "b_mag" in extra:
        extra = {"b_mag": draw(5, D_SAE), "r_mag": 0.3 * draw(6, D_SAE)}
    if isinstance(architecture, JumpReLU):
        extra = {"threshold": torch.linspace(0.1, 1, D_SAE).double()}
    return Parameters(
        draw(0, D_SAE, D_IN),
        draw(1, D_SAE),
        F.normalize(draw(2, D_SAE, D_OUT), dim=1),
        draw(3, D_OUT),
        extra,
        architecture.rules,
        centre=draw(4, D_IN),
        W_skip=draw(7, D_OUT, D_IN) if skip else None,
    )


def dense_loss(architecture: Architecture, p: Parameters, batch: Batch) -> Tensor:
    """The loss as the papers write it, with everything in full."""
    x, target, weights = batch.x, batch.target, batch.weights
    h = (x - p.input_centre) @ p.W_enc
    pre = h + p.b_enc
    beside = p.b_dec if p.W_skip is None else p.b_dec + (x - p.input_centre) @ p.W_skip.T

    def mean(per_row: Tensor) -> Tensor:
        return (weights * per_row).sum() / len(x)

    def error(latents: Tensor) -> Tensor:
        return mean((target - latents @ p.W_dec - beside).square().sum(1))

    match architecture:
        case TopK(k):
            values, kept = pre.topk(k)
            return error(torch.zeros_like(pre).scatter(1, kept, values.relu()))
        case BatchTopK(k):
            least = pre.flatten().topk(k * len(x)).values[-1]
            return error(pre.relu() * (pre >= least))
        case ReLU(l1) | PAnneal(l1):
            return error(pre.relu()) + l1 * mean(pre.relu().sum(1))
        case JumpReLU(weight, _, aim, bandwidth):
            assert aim is not None
            threshold = p.more("threshold")
            l0 = mean(step(pre, threshold, bandwidth).sum(1))
            penalty = weight * D_OUT * (l0 / aim - 1).square()
            return error(jump(pre, threshold, bandwidth, False)) + penalty
        case Gated(l1):
            magnitude = (h * p.more("r_mag").exp() + p.more("b_mag")).relu()
            by_gate = target - pre.relu() @ p.W_dec.detach() - beside.detach()
            gate_terms = by_gate.square().sum(1) + l1 * pre.relu().sum(1)
            return error(magnitude * (pre > 0)) + mean(gate_terms)
        case Matryoshka(ReLU(l1), widths):
            assert widths is not None
            latents, first = pre.relu(), torch.arange(D_SAE)
            errors = [error(latents * (first < width)) for width in widths]
            return sum(errors, torch.zeros(())) / len(widths) + l1 * mean(latents.sum(1))
    raise AssertionError(architecture)


ARCHITECTURES: dict[str, Architecture] = {
    "topk": TopK(3),
    "batchtopk": BatchTopK(3),
    "relu": ReLU(0.7),
    "jumprelu": JumpReLU(0.7, target=3.0, dead_weight=0.0),
    "gated": Gated(0.7),
    "matryoshka": Matryoshka(ReLU(0.7), (3, 7, 11)),
    "p-anneal": PAnneal(0.7),
}


def batch_of(**more: Any) -> Batch:
    return Batch(
        draw(8, 9, D_IN), torch.linspace(0.1, 1, 9).double(), target=draw(9, 9, D_OUT), **more
    )


@pytest.mark.parametrize("skip", [False, True])
@pytest.mark.parametrize("name", ARCHITECTURES)
def test_every_architectures_objective_is_the_dense_formula(name: str, skip: bool) -> None:
    architecture, batch = ARCHITECTURES[name], batch_of()
    p = transcoder(architecture, skip=skip)
    found, right = architecture.objective(p, batch), dense_loss(architecture, p, batch)
    torch.testing.assert_close(found.loss, right)
    names, tensors = zip(*p.named_parameters(), strict=True)
    assert ("W_skip" in names) == skip
    ours, theirs = (torch.autograd.grad(loss, tensors) for loss in (found.loss, right))
    for tensor_name, one, other in zip(names, ours, theirs, strict=True):
        torch.testing.assert_close(one, other, msg=tensor_name)
    assert found.reconstruction.shape == (9, D_OUT)


def test_dead_latents_learn_what_is_missing_of_the_target() -> None:
    """AuxK, whose error is the target's, not the input's."""
    dead, aux = torch.tensor([1, 4, 5]), AuxK(2, alpha=1.0)
    p, batch = transcoder(TopK(3), skip=True), batch_of(dead=torch.tensor([1, 4, 5]))
    reconstruction = draw(10, 9, D_OUT)
    pre = ((batch.x - p.input_centre) @ p.W_enc + p.b_enc)[:, dead]
    values, kept = pre.topk(2)
    latents = torch.zeros_like(pre).scatter(1, kept, values)
    missed = batch.target - reconstruction
    right = (batch.weights * (latents @ p.W_dec[dead] - missed).square().sum(1)).mean()
    torch.testing.assert_close(aux.loss(p, batch, reconstruction), right)


def test_a_target_that_is_not_given_is_what_is_read() -> None:
    batch = Batch(draw(0, 3, 5), torch.ones(3))
    assert batch.target is batch.x


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_folding_keeps_every_architectures_outputs(name: str) -> None:
    """The centre goes into the biases; a gated SAE's second bias gets another share of it."""
    inference, p = ARCHITECTURES[name].trained(transcoder(ARCHITECTURES[name], skip=True))
    source = Normalisation(mean=p.input_centre / 0.05, scale=0.05)
    units = Normalisation(mean=torch.zeros(D_OUT).double(), scale=3.0, source=source)
    rows = draw(11, 20, D_IN) / 0.05
    expected = inference.encode(p, rows * 0.05)
    assert (expected > 0).any()
    folded = units.folded(p)
    torch.testing.assert_close(inference.encode(folded, rows), expected / 3.0)
    torch.testing.assert_close(folded.offset(rows), p.offset(rows * 0.05) / 3.0)


# Training.


def train(
    architecture: Architecture, read: Tensor, written: Tensor, *, skip: bool = False
) -> tuple[SAE, Normalisation]:
    """Steps of Adam on batches of the rows, with unit decoder rows."""
    units = Normalisation.of_transcoder(statistics_of(read), statistics_of(written), CPU)
    p = initial_parameters(units, architecture, 64, 0, skip=skip)
    optimizer = torch.optim.Adam(p.parameters(), 5e-3, fused=True)
    silent = torch.zeros(64)
    for number in range(N_STEPS):
        rows = slice(number * BATCH, (number + 1) * BATCH)
        x, target = units.pair((read[rows], written[rows]))
        dead = (silent > 10).nonzero().flatten()
        batch = Batch(
            x, units.row_weights(x, target), min(1.0, number / 30), number, N_STEPS, dead, target
        )
        objective = architecture.objective(p, batch)
        objective.loss.backward()
        p.renew(objective.state)
        for group in optimizer.param_groups:
            group["lr"] = 5e-3 * min(1, (N_STEPS - number) / 75)
        optimizer.step()
        optimizer.zero_grad()
        p.keep_bounds()
        with torch.no_grad():
            F.normalize(p.W_dec, dim=1, out=p.W_dec)
        silent = torch.where(objective.fired > 0, 0, silent + 1)
    inference, trained = architecture.trained(units.folded(p))
    hook_points = HookPoint("in", (read.shape[1],)), HookPoint("out", (written.shape[1],))
    cfg = cfg_of(inference, hook_points[:1], hook_points[1], 64, skip=skip)
    return SAE(inference, trained, cfg), units


def statistics_of(rows: Tensor) -> dict[str, Any]:
    values = rows.double().numpy()
    return {"mean": values.mean(0), "std": values.std(0), "geometric_median": values.mean(0)}


def fvu(found: Tensor, right: Tensor) -> float:
    return ((found - right).square().sum() / (right - right.mean(0)).square().sum()).item()


@pytest.fixture(scope="module")
def sparse_pairs() -> tuple[Tensor, Tensor]:
    """3 of 48 things are there: seen in 32 dimensions, to be told in 20, in other units."""
    generator = torch.Generator().manual_seed(0)
    n = N_STEPS * BATCH
    there = torch.rand(n, 48, generator=generator).topk(3).indices
    strengths = 1 + torch.rand(n, 3, generator=generator)
    things = torch.zeros(n, 48).scatter(1, there, strengths)
    seen = F.normalize(torch.randn(48, 32, generator=generator), dim=1)
    told = F.normalize(torch.randn(48, 20, generator=generator), dim=1)
    return things @ seen + 2, 30 * (things @ told) - 50


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize(
    "architecture",
    [
        TopK(3, AuxK(3)),
        BatchTopK(3, AuxK(3)),
        ReLU(1.0),
        JumpReLU(0.2),
        Gated(1.0),
        Matryoshka(BatchTopK(3, AuxK(3)), (16, 64)),
        PAnneal(1.0),
    ],
    ids=lambda architecture: architecture.name,
)
def test_a_transcoder_learns_what_the_target_has_of_the_input(
    sparse_pairs: tuple[Tensor, Tensor], architecture: Architecture
) -> None:
    sae, _ = train(architecture, *sparse_pairs)
    read, written = (rows[-2000:] for rows in sparse_pairs)
    assert fvu(sae(read), written) < 0.25
    assert (sae.encode(read) > 0).sum(1).float().mean() < 20


@pytest.mark.usefixtures("unchecked")
def test_a_skip_transcoder_recovers_a_linear_map(sparse_pairs: tuple[Tensor, Tensor]) -> None:
    read, _ = sparse_pairs
    linear = torch.randn(20, 32, generator=torch.Generator().manual_seed(1))
    written = read @ linear.T + 7
    with_skip, _ = train(ReLU(20.0), read, written, skip=True)
    without, _ = train(ReLU(20.0), read, written)
    assert fvu(with_skip(read[:2000]), written[:2000]) < 0.01
    assert fvu(without(read[:2000]), written[:2000]) > 0.5
    W_skip = with_skip.parameters.W_skip
    assert W_skip is not None
    assert (W_skip - linear).norm() / linear.norm() < 0.1


# The folder.


def small(architecture: Architecture, *, skip: bool = False) -> SAE:
    """Untrained, but with no zeros; in float32, its centre folded away."""
    inference, p = architecture.trained(transcoder(architecture, skip=skip).float())
    folded = p.recentred(torch.zeros(D_IN))
    cfg = cfg_of(inference, [READ], WRITTEN, D_SAE, skip=skip)
    cfg["metadata"] = metadata(model_name="tiny", **hook_metadata([READ], WRITTEN))
    return SAE(inference, folded, cfg, torch.arange(4.0))


ROWS = draw(12, 8, D_IN).float()
ON_DISK = {
    "topk": "topk_transcoder",
    "batchtopk": "jumprelu_transcoder",
    "relu": "transcoder",
    "jumprelu": "jumprelu_transcoder",
    "gated": "gated_transcoder",
    "matryoshka": "transcoder",
    "p-anneal": "transcoder",
}


@pytest.mark.parametrize("skip", [False, True])
@pytest.mark.parametrize("name", ARCHITECTURES)
def test_a_transcoder_comes_back_from_its_folder(tmp_path: Path, name: str, skip: bool) -> None:
    sae = small(ARCHITECTURES[name], skip=skip)
    save_sae(sae, tmp_path / "sae", ROWS)
    loaded = load_sae(tmp_path / "sae")
    assert torch.equal(loaded(ROWS), sae(ROWS))
    assert torch.equal(loaded.encode(ROWS), sae.encode(ROWS))
    assert loaded.cfg == sae.cfg
    assert (loaded.kind, loaded.form.skip) == ("transcoder", skip)
    assert (loaded.d_in, loaded.d_out, loaded.d_sae) == (D_IN, D_OUT, D_SAE)
    assert (loaded.hook_points, loaded.target_hook_points) == ((READ.name,), (WRITTEN.name,))
    what = ON_DISK[name].replace("transcoder", "skip_transcoder") if skip else ON_DISK[name]
    assert loaded.cfg["architecture"] == what


@pytest.mark.parametrize("name", ["relu", "jumprelu"])
def test_the_folder_is_what_saelens_expects_of_a_transcoder(tmp_path: Path, name: str) -> None:
    save_sae(small(ARCHITECTURES[name], skip=True), tmp_path / "sae", ROWS)
    weights = load_file(tmp_path / "sae" / "sae_weights.safetensors")
    shapes = {
        "W_enc": (D_IN, D_SAE),
        "b_enc": (D_SAE,),
        "W_dec": (D_SAE, D_OUT),
        "b_dec": (D_OUT,),
        "W_skip": (D_OUT, D_IN),
        **({"threshold": (D_SAE,)} if name == "jumprelu" else {}),
    }
    assert {key: tuple(tensor.shape) for key, tensor in weights.items()} == shapes
    cfg = json.loads((tmp_path / "sae" / "cfg.json").read_text())
    assert cfg["apply_b_dec_to_input"] is False
    assert cfg["d_out"] == D_OUT
    assert cfg["metadata"]["hook_name_out"] == WRITTEN.name
    assert "loads_in_sae_lens" not in cfg


@pytest.mark.parametrize("name", ["topk", "gated"])
def test_a_folder_that_saelens_has_no_class_for_says_so(tmp_path: Path, name: str) -> None:
    save_sae(small(ARCHITECTURES[name]), tmp_path / "sae", ROWS)
    cfg = json.loads((tmp_path / "sae" / "cfg.json").read_text())
    assert cfg["loads_in_sae_lens"] is False


def test_the_skip_decodes_only_with_the_rows() -> None:
    sae = small(TopK(3), skip=True)
    latents = sae.encode(ROWS)
    torch.testing.assert_close(sae.decode(latents, ROWS), sae(ROWS))
    with pytest.raises(ValueError, match="together with the rows"):
        sae.decode(latents)
    plain = small(TopK(3))
    assert torch.equal(plain.decode(plain.encode(ROWS)), plain(ROWS))


def test_a_wrong_skip_fails_the_self_test(tmp_path: Path) -> None:
    """The rows are part of what is decoded, so the self-test sees all of the tensors."""
    sae = small(TopK(3), skip=True)
    save_sae(sae, tmp_path / "right", ROWS)
    assert sae.parameters.W_skip is not None
    sae.parameters.W_skip.mul_(1.5)
    save_sae(sae, tmp_path / "wrong", ROWS)
    (tmp_path / "right" / "self_test.safetensors").replace(
        tmp_path / "wrong" / "self_test.safetensors"
    )
    with pytest.raises(SaeflowError, match="self-test"):
        load_sae(tmp_path / "wrong")


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"d_out": 5}, r"W_dec has shape \(11, 4\), its cfg.json says \(11, 5\)"),
        ({"architecture": "topk_skip_transcoder"}, "W_skip has shape None"),
        ({"architecture": "topk"}, r"W_dec has shape \(11, 4\), its cfg.json says \(11, 6\)"),
        ({"architecture": "temporal_transcoder"}, "transcoders and crosscoders of them"),
    ],
)
def test_a_cfg_of_something_else_is_refused(
    tmp_path: Path, changed: dict[str, Any], message: str
) -> None:
    save_sae(small(TopK(3)), tmp_path / "sae", ROWS)
    cfg = json.loads((tmp_path / "sae" / "cfg.json").read_text())
    (tmp_path / "sae" / "cfg.json").write_text(json.dumps({**cfg, **changed}))
    with pytest.raises(BadInputError, match=message):
        load_sae(tmp_path / "sae")
