"""The four tensors: how they start, where b_dec's gradient comes from, and free norms."""

from collections.abc import Callable
from typing import Any

import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from saeflow.train.architecture import Batch
from saeflow.train.batchtopk import BatchTopK
from saeflow.train.gated import Gated
from saeflow.train.jumprelu import JumpReLU
from saeflow.train.parameters import Parameters
from saeflow.train.relu import ReLU
from saeflow.train.topk import TopK


def test_shapes_are_the_fields() -> None:
    p = Parameters.initial(torch.zeros(6), d_sae=10, seed=0)
    assert (p.d_in, p.d_sae) == (6, 10)
    shapes = [tuple(t.shape) for t in (p.W_enc, p.b_enc, p.W_dec, p.b_dec)]
    assert shapes == [(6, 10), (10,), (10, 6), (6,)]


def test_w_enc_is_a_view_of_the_stored_encoder() -> None:
    p = Parameters.initial(torch.zeros(3), d_sae=4, seed=0)
    with torch.no_grad():
        p.encoder[1, 2] = 7.0
    assert p.W_enc[2, 1].item() == 7.0


def test_initial_decoder_rows_have_unit_norm_and_b_dec_is_given() -> None:
    start = torch.arange(8.0)
    p = Parameters.initial(start, d_sae=50, seed=3)
    torch.testing.assert_close(p.W_dec.norm(dim=1), torch.ones(50))
    assert torch.equal(p.b_dec, start)
    assert p.b_dec.data_ptr() != start.data_ptr()


def test_a_seed_means_the_same_weights() -> None:
    def decoder(seed: int) -> Tensor:
        torch.rand(3)  # the global generator has no say
        return Parameters.initial(torch.zeros(8), d_sae=16, seed=seed).W_dec

    assert torch.equal(decoder(1), decoder(1))
    assert not torch.equal(decoder(1), decoder(2))


def gradients(loss: Tensor, p: Parameters) -> list[Tensor]:
    return list(torch.autograd.grad(loss, [p.encoder, p.b_enc, p.b_dec]))


@given(
    batch=st.integers(1, 8),
    d_in=st.integers(1, 7),
    d_sae=st.integers(1, 9),
    seed=st.integers(0, 2**20),
)
def test_centred_gives_the_gradients_of_the_plain_formula(
    random_parameters: Callable[..., Parameters], batch: int, d_in: int, d_sae: int, seed: int
) -> None:
    p = random_parameters(d_in, d_sae, seed)
    x = torch.randn(batch, d_in, dtype=torch.float64)
    plain = (x - p.b_dec) @ p.W_enc + p.b_enc
    centred, bias = p.centred(x)
    ours = centred @ p.W_enc + bias

    assert not centred.requires_grad
    torch.testing.assert_close(ours, plain)
    upstream = plain.detach().cos()
    torch.testing.assert_close(
        gradients((ours * upstream).sum(), p), gradients((plain * upstream).sum(), p)
    )


# Decoder rows whose norms are free.


def free(random_parameters: Callable[..., Parameters], **more: Any) -> Parameters:
    """Decoder rows from half as long as they should be to twice."""
    p = random_parameters(6, 11)
    with torch.no_grad():
        p.W_dec.mul_(torch.linspace(0.5, 2, 11)[:, None])
    return p.with_more(more.get("extra", {}), more.get("rules", {})).requires_grad_(True)


def rows() -> Tensor:
    generator = torch.Generator().manual_seed(3)
    return torch.randn(9, 6, generator=generator, dtype=torch.float64)


WEIGHTS = torch.linspace(0.1, 1, 9).double()


def check(found: Tensor, right: Tensor, p: Parameters) -> None:
    torch.testing.assert_close(found, right)
    everything = list(p.parameters())
    torch.testing.assert_close(
        torch.autograd.grad(found, everything), torch.autograd.grad(right, everything)
    )


def test_free_norms_weigh_the_l1_penalty(random_parameters: Callable[..., Parameters]) -> None:
    """Anthropic, April 2024: `|x - x_hat|^2 + l1 sum_i f_i |W_dec,i|`."""
    p, x = free(random_parameters), rows()
    found = ReLU(0.7).objective(p.with_unit_decoder(), Batch(x, WEIGHTS)).loss
    f = ((x - p.b_dec) @ p.W_enc + p.b_enc).relu()
    error = (x - f @ p.W_dec - p.b_dec).square().sum(1)
    check(found, (WEIGHTS * (error + 0.7 * f @ p.W_dec.norm(dim=1))).mean(), p)


def test_free_norms_weigh_what_topk_selects(random_parameters: Callable[..., Parameters]) -> None:
    p, x = free(random_parameters), rows()
    found = TopK(3).objective(p.with_unit_decoder(), Batch(x, WEIGHTS)).loss
    f = ((x - p.b_dec) @ p.W_enc + p.b_enc).relu()
    weighted = f * p.W_dec.norm(dim=1)
    f = f * (weighted >= weighted.topk(3).values[:, -1:])
    check(found, (WEIGHTS * (x - f @ p.W_dec - p.b_dec).square().sum(1)).mean(), p)
    plain = TopK(3).objective(p, Batch(x, WEIGHTS)).loss
    assert plain != found


def test_free_norms_weigh_a_gates_penalty_and_move_no_gate(
    random_parameters: Callable[..., Parameters],
) -> None:
    generator = torch.Generator().manual_seed(5)
    b_mag, r_mag = torch.randn(2, 11, generator=generator, dtype=torch.float64)
    p = free(random_parameters, extra={"b_mag": b_mag, "r_mag": r_mag}, rules=Gated.rules)
    x = rows()
    found = Gated(0.7).objective(p.with_unit_decoder(), Batch(x, WEIGHTS)).loss
    h, norms = (x - p.b_dec) @ p.W_enc, p.W_dec.norm(dim=1)
    gate, magnitude = h + p.b_enc, h * p.more("r_mag").exp() + p.more("b_mag")
    error = (x - (magnitude.relu() * (gate > 0)) @ p.W_dec - p.b_dec).square().sum(1)
    frozen = (p.W_dec / norms[:, None]).detach()
    by_gate = (x - (gate * norms).relu() @ frozen - p.b_dec.detach()).square().sum(1)
    check(found, (WEIGHTS * (error + by_gate + 0.7 * gate.relu() @ norms)).mean(), p)


def test_free_norms_weigh_thresholds(random_parameters: Callable[..., Parameters]) -> None:
    """A latent is active where it was, however long its decoder row is."""
    threshold = torch.linspace(0.1, 2, 11).double()
    p = free(random_parameters, extra={"threshold": threshold}, rules=JumpReLU.rules)
    latents = JumpReLU().encode(p, rows())
    unit = p.with_unit_decoder()
    torch.testing.assert_close(unit.W_dec.norm(dim=1), torch.ones(11).double())
    torch.testing.assert_close(JumpReLU().encode(unit, rows()), latents * p.W_dec.norm(dim=1))
    torch.testing.assert_close(unit.more("threshold"), threshold * p.W_dec.norm(dim=1))


def test_the_state_is_shared_and_stays_as_it_is(
    random_parameters: Callable[..., Parameters],
) -> None:
    extra = BatchTopK(3).initial(11)
    p = free(random_parameters, extra=extra, rules=BatchTopK.rules)
    unit = p.with_unit_decoder()
    p.renew({"threshold": torch.tensor(0.4)})
    assert unit.state["threshold"] == torch.tensor(0.4)


def test_a_latent_without_a_decoder_row_breaks_nothing(
    random_parameters: Callable[..., Parameters],
) -> None:
    p = random_parameters(6, 11)
    with torch.no_grad():
        p.W_dec[3] = 0.0
    ReLU(0.7).objective(p.with_unit_decoder(), Batch(rows(), WEIGHTS)).loss.backward()
    assert all(
        tensor.grad is not None and tensor.grad.isfinite().all() for tensor in p.parameters()
    )


def test_moving_a_transcoders_centre_changes_nothing(
    random_parameters: Callable[..., Parameters],
) -> None:
    """Nor what a gated one does, whose second bias follows the encoder with a gain."""
    p, extra = random_parameters(6, 11), {"b_mag": torch.ones(11), "r_mag": torch.ones(11)}
    four = p.encoder.detach(), p.b_enc.detach(), p.W_dec.detach(), p.b_dec.detach()
    skip = torch.linspace(-1, 1, 36).double().view(6, 6)
    extra = {name: tensor.double() for name, tensor in extra.items()}
    centre = torch.arange(6.0).double()
    before = Parameters(*four, extra, Gated.rules, centre=centre, W_skip=skip)
    after = before.recentred(torch.ones(6).double())
    x = rows()
    torch.testing.assert_close(Gated(1.0).encode(after, x), Gated(1.0).encode(before, x))
    torch.testing.assert_close(after.offset(x), before.offset(x))
    assert not torch.equal(after.b_enc, before.b_enc)
