"""Crosscoders: one set of latents for several hook points, each of which has its own units."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from saeflow.errors import BadInputError
from saeflow.harvest.layout import HookPoint
from saeflow.train.architecture import Architecture, Batch
from saeflow.train.auxk import AuxK
from saeflow.train.batchtopk import BatchTopK
from saeflow.train.folder import load_sae, metadata, save_sae
from saeflow.train.initial import initial_parameters
from saeflow.train.jumprelu import JumpReLU
from saeflow.train.kinds import cfg_of, hook_metadata
from saeflow.train.matryoshka import Matryoshka
from saeflow.train.normalisation import Normalisation
from saeflow.train.parameters import Parameters
from saeflow.train.relu import ReLU
from saeflow.train.sae import SAE
from saeflow.train.topk import TopK

CPU = torch.device("cpu")
BLOCKS, D_SAE = (6, 4, 3), 11
HOOK_POINTS = [
    HookPoint(f"blocks.{layer}.hook_resid_post", (width,)) for layer, width in enumerate(BLOCKS)
]
N_STEPS, BATCH = 300, 128


def draw(seed: int, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def crosscoder(*, unit: bool = True) -> Parameters:
    """Without any structure; decoder rows of unit norm over all hook points, or not."""
    width = sum(BLOCKS)
    W_dec = draw(2, D_SAE, width)
    W_dec = F.normalize(W_dec, dim=1) if unit else W_dec
    return Parameters(draw(0, D_SAE, width), draw(1, D_SAE), W_dec, draw(3, width), blocks=BLOCKS)


def lindsey(p: Parameters, batch: Batch, l1: float) -> Tensor:
    """The loss as the paper writes it: sums over layers, each with weights of its own."""
    x, b_dec, W_enc, W_dec = (
        tensor.split(BLOCKS, dim=-1) for tensor in (batch.x, p.b_dec, p.encoder, p.W_dec)
    )
    pre = sum((x[h] - b_dec[h]) @ W_enc[h].T for h in range(3)) + p.b_enc
    f = pre.relu()
    error, penalty = torch.zeros(9), torch.zeros(9)
    for h in range(3):
        error = error + (x[h] - f @ W_dec[h] - b_dec[h]).square().sum(1)
        penalty = penalty + (f * W_dec[h].norm(dim=1)).sum(1)
    return (batch.weights * (error + l1 * penalty)).mean()


def batch_of() -> Batch:
    return Batch(draw(8, 9, sum(BLOCKS)), torch.linspace(0.1, 1, 9).double())


def test_the_objective_is_lindseys() -> None:
    p, batch = crosscoder(), batch_of()
    found, right = ReLU(0.7).objective(p, batch).loss, lindsey(p, batch, 0.7)
    torch.testing.assert_close(found, right)
    everything = list(p.parameters())
    torch.testing.assert_close(
        torch.autograd.grad(found, everything), torch.autograd.grad(right, everything)
    )


def test_with_free_decoder_norms_it_still_is() -> None:
    p, batch = crosscoder(unit=False), batch_of()
    found = ReLU(0.7).objective(p.with_unit_decoder(), batch).loss
    right = lindsey(p, batch, 0.7)
    torch.testing.assert_close(found, right)
    everything = list(p.parameters())
    torch.testing.assert_close(
        torch.autograd.grad(found, everything), torch.autograd.grad(right, everything)
    )


def test_a_latent_of_one_hook_point_pays_less_than_one_of_all() -> None:
    W_dec = torch.zeros(2, 13)
    W_dec[0, :6] = 6**-0.5
    W_dec[1] = 13**-0.5
    p = Parameters(W_dec, torch.zeros(2), W_dec, torch.zeros(13), blocks=BLOCKS)
    norms = p.summed_norms()
    assert norms is not None
    torch.testing.assert_close(norms, torch.tensor([1, (6**0.5 + 4**0.5 + 3**0.5) / 13**0.5]))


def test_of_one_hook_point_there_is_one_norm() -> None:
    assert Parameters.initial(torch.zeros(6), d_sae=4, seed=0).summed_norms() is None


def statistics_of(rows: Tensor) -> dict[str, Any]:
    values = rows.double().numpy()
    return {"mean": values.mean(0), "std": values.std(0), "geometric_median": values.mean(0)}


def trained(architecture: Architecture, rows: list[Tensor]) -> SAE:
    """300 steps of Adam, with unit decoder rows in normalised units."""
    units = Normalisation.of_crosscoder([statistics_of(one) for one in rows], CPU)
    p = initial_parameters(units, architecture, 64, 0)
    optimizer = torch.optim.Adam(p.parameters(), 5e-3, fused=True)
    for number in range(N_STEPS):
        now = slice(number * BATCH, (number + 1) * BATCH)
        x, target = units.pair(tuple(one[now] for one in rows))
        weights = units.row_weights(x, target)
        batch = Batch(x, weights, min(1.0, number / 30), number, N_STEPS, target=target)
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
    inference, folded = architecture.trained(units.folded(p))
    hook_points = [HookPoint(str(width), (width,)) for width in units.blocks]
    return SAE(inference, folded, cfg_of(inference, hook_points, None, 64))


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize(
    "architecture",
    [
        TopK(3, AuxK(3)),
        BatchTopK(3, AuxK(3)),
        ReLU(1.0),
        JumpReLU(0.2),
        Matryoshka(TopK(3, AuxK(3)), (16, 64)),
    ],
    ids=lambda architecture: architecture.name,
)
def test_it_reconstructs_every_hook_point_whatever_its_units(architecture: Architecture) -> None:
    """3 of 48 things are there, seen in 32 dimensions and in 20, these 500 times as large."""
    generator = torch.Generator().manual_seed(0)
    n = N_STEPS * BATCH
    there = torch.rand(n, 48, generator=generator).topk(3).indices
    strengths = 1 + torch.rand(n, 3, generator=generator)
    things = torch.zeros(n, 48).scatter(1, there, strengths)
    seen = F.normalize(torch.randn(48, 32, generator=generator), dim=1)
    again = F.normalize(torch.randn(48, 20, generator=generator), dim=1)
    rows = [0.1 * (things @ seen) + 2, 50 * (things @ again) - 70]

    sae = trained(architecture, rows)
    x = torch.cat(rows, 1)[-2000:]
    for found, right in zip(sae(x).split([32, 20], 1), x.split([32, 20], 1), strict=True):
        fvu = (found - right).square().sum() / (right - right.mean(0)).square().sum()
        assert fvu < 0.25
    assert (sae.encode(x) > 0).sum(1).float().mean() < 20


# The folder.


def small(architecture: TopK | ReLU | JumpReLU | BatchTopK) -> SAE:
    extra = {name: tensor + 0.5 for name, tensor in architecture.initial(D_SAE).items()}
    inference, p = architecture.trained(crosscoder().float().with_more(extra, architecture.rules))
    cfg = cfg_of(inference, HOOK_POINTS, None, D_SAE)
    cfg["metadata"] = metadata(model_name="tiny", **hook_metadata(HOOK_POINTS, None))
    return SAE(inference, p, cfg, torch.arange(13.0))


ROWS = draw(12, 8, sum(BLOCKS)).float()


@pytest.mark.parametrize(
    ("architecture", "name"),
    [
        (TopK(3), "topk_crosscoder"),
        (BatchTopK(3), "jumprelu_crosscoder"),
        (ReLU(1.0), "crosscoder"),
        (JumpReLU(1.0), "jumprelu_crosscoder"),
    ],
)
def test_a_crosscoder_comes_back_from_its_folder(
    tmp_path: Path, architecture: Any, name: str
) -> None:
    sae = small(architecture)
    save_sae(sae, tmp_path / "sae", ROWS)
    loaded = load_sae(tmp_path / "sae")
    assert torch.equal(loaded(ROWS), sae(ROWS))
    assert loaded.cfg == sae.cfg
    assert loaded.cfg["architecture"] == name
    assert loaded.cfg["loads_in_sae_lens"] is False
    assert (loaded.kind, loaded.d_in, loaded.d_out, loaded.d_ins) == ("crosscoder", 13, 13, BLOCKS)
    names = tuple(hook_point.name for hook_point in HOOK_POINTS)
    assert loaded.hook_points == loaded.target_hook_points == names


@pytest.mark.parametrize(
    "changed",
    [
        {"d_ins": [6, 4]},
        {"d_ins": [6, 4, 4]},
        {"d_ins": [6, 7, 0]},
        {"d_ins": "13"},
        {"hook_names": None},
        {"hook_names": ["a", "b"]},
    ],
)
def test_widths_that_are_not_those_of_the_rows_are_refused(
    tmp_path: Path, changed: dict[str, Any]
) -> None:
    save_sae(small(TopK(3)), tmp_path / "sae", ROWS)
    cfg = json.loads((tmp_path / "sae" / "cfg.json").read_text())
    (tmp_path / "sae" / "cfg.json").write_text(json.dumps({**cfg, **changed}))
    with pytest.raises(BadInputError, match="are not those of d_in 13: its cfg"):
        load_sae(tmp_path / "sae")
