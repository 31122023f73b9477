"""The loss for silent latents: they are pulled up until a row makes them active, others are not."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from saeflow.train.architecture import Architecture, Batch
from saeflow.train.architectures import MAKERS
from saeflow.train.config import TrainConfig
from saeflow.train.gated import Gated
from saeflow.train.normalisation import Normalisation
from saeflow.train.p_anneal import PAnneal
from saeflow.train.parameters import Parameters
from saeflow.train.relu import ReLU
from saeflow.train.schedule import Schedule
from saeflow.train.silent import Silent
from saeflow.train.trainer import Trainer

Make = Callable[..., Parameters]


def draw(seed: int, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def with_biases(p: Parameters, silent: list[int], bias: float) -> Parameters:
    with torch.no_grad():
        p.b_enc[silent] = bias
    return p


def batch_with(dead: list[int] | None) -> Batch:
    indices = None if dead is None else torch.tensor(dead, dtype=torch.int64)
    return Batch(draw(3, 9, 6), torch.linspace(0.1, 1, 9).double(), dead=indices)


def test_the_loss_is_the_dense_formula(random_parameters: Make) -> None:
    """Of three dead latents one is active in a row of this batch, and is left alone."""
    p, batch = with_biases(random_parameters(6, 11), [2, 7], -50.0), batch_with([2, 5, 7])
    with_biases(p, [5], 50.0)
    found = Silent(0.3).loss(p, batch, draw(5, 9, 6))

    pre = (batch.x - p.b_dec) @ p.W_enc + p.b_enc
    loss = 0.3 * (batch.weights * -pre[:, [2, 7]].sum(1)).mean()
    torch.testing.assert_close(found, loss)
    assert isinstance(found, Tensor)
    everything = [p.encoder, p.b_enc, p.b_dec]
    torch.testing.assert_close(
        torch.autograd.grad(found, everything), torch.autograd.grad(loss, everything)
    )


@pytest.mark.parametrize("dead", [None, []])
def test_without_dead_latents_there_is_no_loss(
    random_parameters: Make, dead: list[int] | None
) -> None:
    assert Silent().loss(random_parameters(6, 11), batch_with(dead), draw(5, 9, 6)) == 0.0


@pytest.mark.parametrize("kind", [ReLU, Gated, PAnneal])
def test_it_is_added_to_an_objective(random_parameters: Make, kind: type) -> None:
    extra = {name: value.double() for name, value in kind(1.0).initial(11).items()}
    p = random_parameters(6, 11).with_more(extra, kind.rules)  # type: ignore[attr-defined]
    batch = batch_with([2, 7])
    plain, revived = (kind(1.0, aux=aux).objective(p, batch).loss for aux in (None, Silent(0.3)))
    added = Silent(0.3).loss(p, batch, draw(5, 9, 6))
    torch.testing.assert_close(revived, plain + added)


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize("aux", [None, Silent()])
def test_latents_that_nothing_activates_come_back(aux: Silent | None) -> None:
    rows = draw(1, 64 * 40, 6).float()
    statistics = {"mean": rows.mean(0).numpy(), "std": rows.std(0).numpy()}
    units = Normalisation.from_statistics(**statistics, device=torch.device("cpu"))
    p = with_biases(Parameters.initial(torch.zeros(6), 16, 0), [1, 4], -8.0)
    schedule = Schedule(0.05, n_steps=200, warm_up=0, decay=0)
    trainer = Trainer(ReLU(0.1, aux), p, units, schedule, dead_after=64)
    for step in range(200):
        trainer.step((rows[64 * (step % 40) :][:64],), step)
    latents = ReLU(0.1).encode(p, rows)
    assert ((latents > 0).any(0)[[1, 4]]).all() == (aux is not None)
    assert (latents > 0).float().mean(0)[[1, 4]].max() < 0.5


def options(**given: object) -> Architecture:
    config = TrainConfig(store=Path(), out=Path(), d_sae=64, **given)  # type: ignore[arg-type]
    return MAKERS[config.arch](config, 16, 64)


@pytest.mark.parametrize("arch", ["relu", "gated", "p-anneal"])
def test_the_options(arch: str) -> None:
    """On by default; the resampler, where there is one, takes its place."""
    assert options(arch=arch).revives
    assert not options(arch=arch, revive=0.0).revives
    assert options(arch=arch, revive=0.5).aux == Silent(0.5)  # type: ignore[attr-defined]
    assert not options(arch=arch, resample=True).revives
    assert options(arch=arch, resample=True, revive=0.5).revives
