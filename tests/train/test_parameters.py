"""The four tensors: how they start, and where b_dec's gradient comes from."""

from collections.abc import Callable

import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from saeflow.train.parameters import Parameters


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
