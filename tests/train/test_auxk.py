"""AuxK: dead latents get gradients, living ones don't."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from saeflow.train.architecture import Batch
from saeflow.train.auxk import AuxK, auxiliary
from saeflow.train.normalisation import Normalisation
from saeflow.train.parameters import Parameters
from saeflow.train.topk import TopK
from saeflow.train.trainer import Trainer

Make = Callable[..., Parameters]


def draw(seed: int, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def batch_with(dead: list[int] | None) -> Batch:
    indices = None if dead is None else torch.tensor(dead, dtype=torch.int64)
    return Batch(draw(3, 9, 6), torch.linspace(0.1, 1, 9).double(), dead=indices)


@pytest.mark.parametrize("k", [1, 2, 50])
def test_the_loss_is_the_dense_formula(random_parameters: Make, k: int) -> None:
    p, dead = random_parameters(6, 11), [0, 4, 5, 10]
    batch, reconstruction = batch_with(dead), draw(5, 9, 6)
    found = AuxK(k, alpha=0.3).loss(p, batch, reconstruction)

    pre = (batch.x - p.b_dec) @ p.W_enc + p.b_enc
    alive = torch.ones(11, dtype=torch.bool)
    alive[dead] = False
    values, which = pre.masked_fill(alive, -torch.inf).topk(min(k, 4))
    back = torch.zeros_like(pre).scatter(1, which, values) @ p.W_dec
    error = (batch.x - reconstruction - back).square().sum(1)
    loss = 0.3 * (batch.weights * error).mean()

    torch.testing.assert_close(found, loss)
    assert isinstance(found, Tensor)
    everything = list(p.parameters())
    torch.testing.assert_close(
        torch.autograd.grad(found, everything), torch.autograd.grad(loss, everything)
    )


@pytest.mark.parametrize("dead", [None, []])
def test_without_dead_latents_there_is_no_loss(
    random_parameters: Make, dead: list[int] | None
) -> None:
    p = random_parameters(6, 11)
    assert AuxK(3).loss(p, batch_with(dead), draw(5, 9, 6)) == 0.0


def test_a_silent_latent_learns_only_if_it_is_known_to_be_dead(random_parameters: Make) -> None:
    p = random_parameters(6, 11)
    with torch.no_grad():
        p.b_enc[4] = -50.0
    for dead, learns in (([4], True), ([], False)):
        loss = TopK(2, AuxK(3)).objective(p, batch_with(dead)).loss
        grads = torch.autograd.grad(loss, [p.encoder, p.W_dec])
        assert all(bool((grad[4] != 0).any()) == learns for grad in grads)


def test_the_error_is_a_constant(random_parameters: Make) -> None:
    """Living latents don't learn to leave work for the dead."""
    p = random_parameters(6, 11)
    reconstruction = draw(5, 9, 6).requires_grad_()
    loss = AuxK(3).loss(p, batch_with([1, 2]), reconstruction)
    assert isinstance(loss, Tensor)
    (grad,) = torch.autograd.grad(loss, [reconstruction], allow_unused=True)
    assert grad is None


def test_the_option() -> None:
    assert auxiliary(None, 32) == AuxK(32)
    assert auxiliary(512, 32) == AuxK(512)
    assert auxiliary(0, 32) is None


@pytest.mark.usefixtures("unchecked")
def test_it_revives_dead_latents(
    sparse_rows: Callable[..., Tensor],
    normalisation_of: Callable[[Tensor], Normalisation],
    make_trainer: Callable[..., Trainer],
) -> None:
    """The data has 64 directions; 32 of the 64 latents begin where they never fire."""
    silent = {}
    for aux in (AuxK(3), None):
        trainer = make_trainer(TopK(3, aux), normalisation_of(sparse_rows(5000)))
        with torch.no_grad():
            trainer.parameters.encoder.mul_(0.3)
            trainer.parameters.b_enc[:32] = -2.0
        for step in range(300):
            trainer.step((sparse_rows(256, seed=step),), step)
        silent[aux is not None] = int((trainer.since_fired >= 2560).sum())
    assert silent[True] < 8
    assert silent[False] == 32
