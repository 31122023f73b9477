"""Matryoshka: every prefix reconstructs on its own, whatever its latents are made by."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from saeflow.train.architecture import Batch
from saeflow.train.batchtopk import BatchTopK
from saeflow.train.jumprelu import JumpReLU
from saeflow.train.matryoshka import Matryoshka
from saeflow.train.parameters import Parameters
from saeflow.train.relu import ReLU
from saeflow.train.topk import TopK

Make = Callable[..., Parameters]
BASES: dict[str, TopK | BatchTopK | ReLU] = {
    "topk": TopK(3),
    "batchtopk": BatchTopK(3),
    "relu": ReLU(0.5),
}


def batch_of(n: int, d_in: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(n, d_in, generator=generator, dtype=torch.float64)


def parameters_of(base: TopK | BatchTopK | ReLU, p: Parameters) -> Parameters:
    return p.with_more(base.initial(p.d_sae), base.rules).requires_grad_(True)


def dense_latents(base: TopK | BatchTopK | ReLU, p: Parameters, x: Tensor) -> Tensor:
    pre = (x - p.b_dec) @ p.W_enc + p.b_enc
    if isinstance(base, BatchTopK):
        return (pre * (pre >= pre.flatten().topk(3 * len(x)).values[-1])).relu()
    return base.activate(pre)


@pytest.mark.parametrize("name", BASES)
def test_the_objective_is_the_mean_over_prefixes(random_parameters: Make, name: str) -> None:
    base, x, weights = BASES[name], batch_of(9, 6), torch.ones(9).double()
    p = parameters_of(base, random_parameters(6, 11))
    found = Matryoshka(base, (2, 5, 11)).objective(p, Batch(x, weights))

    latents = dense_latents(base, p, x)
    nested = [latents[:, :m] @ p.W_dec[:m] + p.b_dec for m in (2, 5, 11)]
    loss = torch.stack([(x - back).square().sum(1).mean() for back in nested]).mean()
    if isinstance(base, ReLU):
        loss = loss + 0.5 * latents.sum(1).mean()

    torch.testing.assert_close(found.loss, loss)
    torch.testing.assert_close(found.reconstruction, nested[-1].detach())
    assert torch.equal(found.fired, (latents > 0).sum(0).float())
    four = [p.encoder, p.b_enc, p.W_dec, p.b_dec]
    torch.testing.assert_close(
        torch.autograd.grad(found.loss, four), torch.autograd.grad(loss, four)
    )


@pytest.mark.parametrize("name", BASES)
def test_a_single_prefix_is_the_base(random_parameters: Make, name: str) -> None:
    base = BASES[name]
    p, batch = parameters_of(base, random_parameters(6, 11)), Batch(batch_of(9, 6), torch.ones(9))
    found, plain = Matryoshka(base, (11,)).objective(p, batch), base.objective(p, batch)
    torch.testing.assert_close(found.loss, plain.loss)
    assert found.state == plain.state


def test_drawn_prefixes_depend_on_seed_and_step_alone() -> None:
    drawn = Matryoshka(TopK(3), None, n_drawn=4, seed=1)
    first = drawn.prefixes(100, step=7)
    torch.rand(3)  # the global generator has no say
    assert drawn.prefixes(100, step=7) == first
    assert drawn.prefixes(100, step=8) != first
    assert Matryoshka(TopK(3), None, n_drawn=4, seed=2).prefixes(100, step=7) != first
    assert len(first) == 4
    assert list(first) == sorted({*first, 100})


def test_it_becomes_what_its_base_becomes(random_parameters: Make) -> None:
    p = parameters_of(BASES["batchtopk"], random_parameters(6, 11))
    assert isinstance(Matryoshka(BASES["batchtopk"], (11,)).trained(p)[0], JumpReLU)
    assert Matryoshka(TopK(3), (11,)).trained(p)[0] == TopK(3)
