"""BatchTopK: rows share k * batch latents, and inference needs no batch."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from saeflow.train.architecture import Batch
from saeflow.train.batchtopk import BatchTopK
from saeflow.train.jumprelu import JumpReLU
from saeflow.train.parameters import Parameters

Make = Callable[..., Parameters]


def batch_of(n: int, d_in: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(n, d_in, generator=generator, dtype=torch.float64)


def tracking(p: Parameters, threshold: float = 0.0) -> Parameters:
    """The same parameters with the threshold that BatchTopK keeps."""
    state = {"threshold": torch.tensor(threshold, dtype=torch.float64)}
    return p.with_more(state, BatchTopK.rules).requires_grad_(True)


@pytest.mark.parametrize("k", [1, 3, 11])
def test_the_objective_is_the_dense_formula(random_parameters: Make, k: int) -> None:
    p, x, weights = tracking(random_parameters(6, 11)), batch_of(9, 6), torch.ones(9).double()
    found = BatchTopK(k).objective(p, Batch(x, weights))

    pre = (x - p.b_dec) @ p.W_enc + p.b_enc
    weakest = pre.flatten().topk(9 * k).values[-1]
    latents = (pre * (pre >= weakest)).relu()
    reconstruction = latents @ p.W_dec + p.b_dec
    loss = (x - reconstruction).square().sum(1).mean()

    torch.testing.assert_close(found.loss, loss)
    torch.testing.assert_close(found.reconstruction, reconstruction.detach())
    assert torch.equal(found.fired, (latents > 0).sum(0).float())
    four = [p.encoder, p.b_enc, p.W_dec, p.b_dec]
    torch.testing.assert_close(
        torch.autograd.grad(found.loss, four), torch.autograd.grad(loss, four)
    )


def test_rows_share_the_latents_of_the_batch(random_parameters: Make) -> None:
    p, x = tracking(random_parameters(6, 40)), batch_of(50, 6)
    codes = BatchTopK(4).codes(p, Batch(x, torch.ones(50).double()))
    of_each_row = torch.bincount(codes.rows, minlength=50)
    assert of_each_row.sum() == 200
    assert len(of_each_row.unique()) > 3


def test_rows_are_encoded_as_they_will_be_by_the_saved_sae(random_parameters: Make) -> None:
    """A massive one, too, though its error counts little: one threshold is for all."""
    p, x = tracking(random_parameters(6, 40)), batch_of(50, 6)
    x[7] *= 1000
    weights = (9 * 6 / x.square().sum(1)).clamp(max=1.0)
    architecture = BatchTopK(4)
    batch = Batch(x, weights)
    codes = architecture.codes(p, batch)
    p.renew({"threshold": 0.999 * architecture.renewed(codes, p, batch)["threshold"]})
    inference, saved = architecture.trained(p)
    rows, latents = (inference.encode(saved, x) > 0).nonzero().unbind(1)
    assert torch.equal(rows, codes.rows)
    assert torch.equal(latents, codes.latents)
    assert 10 < (rows == 7).sum() <= 40


def test_the_first_threshold_is_the_smallest_activation_kept(random_parameters: Make) -> None:
    p, x = tracking(random_parameters(6, 11)), batch_of(9, 6)
    found = BatchTopK(2).objective(p, Batch(x, torch.ones(9).double()))
    pre = (x - p.b_dec) @ p.W_enc + p.b_enc
    torch.testing.assert_close(found.state["threshold"], pre.flatten().topk(18).values[-1].detach())


def test_the_threshold_is_a_running_mean(random_parameters: Make) -> None:
    p = tracking(random_parameters(6, 11))
    smallest = []
    for step in range(50):
        x = batch_of(9, 6, seed=step)
        found = BatchTopK(2).objective(p, Batch(x, torch.ones(9).double(), step=step))
        p.renew(found.state)
        pre = (x - p.b_dec) @ p.W_enc + p.b_enc
        smallest.append(pre.flatten().topk(18).values[-1].item())
        if step == 19:
            assert p.state["threshold"].item() == pytest.approx(sum(smallest) / 20)
    before = sum(smallest[:20]) / 20
    for value in smallest[20:]:
        before += (value - before) / 20
    assert p.state["threshold"].item() == pytest.approx(before)


def test_a_batch_without_active_latents_leaves_the_threshold(random_parameters: Make) -> None:
    p = tracking(random_parameters(6, 11), threshold=0.7)
    with torch.no_grad():
        p.b_enc.fill_(-1e9)
    found = BatchTopK(2).objective(p, Batch(batch_of(9, 6), torch.ones(9).double(), step=5))
    assert found.state["threshold"].item() == 0.7
    assert torch.isfinite(found.loss)


def test_what_is_trained_is_a_jumprelu_sae_with_that_threshold(random_parameters: Make) -> None:
    p, x = tracking(random_parameters(6, 11), threshold=0.7), batch_of(9, 6)
    inference, parameters = BatchTopK(2).trained(p)
    assert isinstance(inference, JumpReLU)
    pre = (x - p.b_dec) @ p.W_enc + p.b_enc
    assert torch.equal(inference.encode(parameters, x), pre * (pre > 0.7))


def test_the_threshold_is_folded_with_the_biases(random_parameters: Make) -> None:
    p, x = tracking(random_parameters(6, 11), threshold=0.7), batch_of(9, 6)
    inference, normalised = BatchTopK(2).trained(p)
    again, raw = BatchTopK(2).trained(p.copy_for_rows_divided_by(0.05))
    torch.testing.assert_close(again.encode(raw, x / 0.05), inference.encode(normalised, x) / 0.05)
