"""The sparse encode and decode: values and gradients are those of the dense formula."""

from collections.abc import Iterator
from dataclasses import replace

import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st
from torch import Tensor

from saeflow.train.dense import Dense
from saeflow.train.sparse import Codes, encode_batchtopk, encode_topk


def draw(seed: int, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def leaves(seed: int, d_in: int, d_sae: int) -> list[Tensor]:
    """Encoder, bias and decoder, with gradients."""
    shapes = ((d_sae, d_in), (d_sae,), (d_sae, d_in))
    return [draw(seed + i, *shape).requires_grad_() for i, shape in enumerate(shapes)]


def dense_latents(x: Tensor, encoder: Tensor, bias: Tensor, k: int) -> Tensor:
    pre = x @ encoder.t() + bias
    kept = torch.zeros_like(pre).scatter(1, pre.topk(k, dim=1).indices, 1.0)
    return (pre * kept).relu()


def dense_of(codes: Codes, d_sae: int) -> Tensor:
    zeros = torch.zeros(len(codes.row_bags), d_sae, dtype=codes.values.dtype)
    return zeros.index_put((codes.rows, codes.latents), codes.values)


sizes = st.tuples(
    st.integers(1, 12),  # batch
    st.integers(1, 9),  # d_in
    st.integers(1, 20),  # d_sae
).flatmap(lambda s: st.tuples(*map(st.just, s), st.integers(1, s[2])))  # k


@given(sizes, st.integers(0, 2**20))
@example((5, 3, 7, 7), 0)  # k = d_sae
@example((1, 1, 1, 1), 0)
def test_encode_and_decode_equal_the_dense_formula(
    shape: tuple[int, int, int, int], seed: int
) -> None:
    batch, d_in, d_sae, k = shape
    x, upstream = draw(seed + 10, batch, d_in), draw(seed + 11, batch, d_in)
    encoder, bias, decoder = leaves(seed, d_in, d_sae)

    codes = encode_topk(x, encoder, bias, k)
    sparse = codes.decode(decoder)
    found = torch.autograd.grad((sparse * upstream).sum(), (encoder, bias, decoder))

    latents = dense_latents(x, encoder, bias, k)
    dense = latents @ decoder
    expected = torch.autograd.grad((dense * upstream).sum(), (encoder, bias, decoder))

    torch.testing.assert_close(dense_of(codes, d_sae), latents)
    torch.testing.assert_close(sparse, dense)
    torch.testing.assert_close(found, expected)
    assert torch.equal(codes.fired(), (latents > 0).float().sum(0))


def dense_batchtopk(pre: Tensor, n_pairs: int) -> Tensor:
    flat = pre.flatten()
    kept = torch.zeros_like(flat).scatter(0, flat.topk(n_pairs).indices, 1.0)
    return (pre * kept.view_as(pre)).relu()


@given(sizes, st.integers(0, 2**20))
@example((5, 3, 7, 7), 0)  # all of them
@example((6, 3, 20, 1), 3)  # rows without any
def test_the_largest_of_a_batch_equal_the_dense_formula(
    shape: tuple[int, int, int, int], seed: int
) -> None:
    batch, d_in, d_sae, k = shape
    x, upstream = draw(seed + 10, batch, d_in), draw(seed + 11, batch, d_in)
    encoder, bias, decoder = leaves(seed, d_in, d_sae)

    codes = encode_batchtopk(x, encoder, bias, k, torch.ones(batch).double())
    sparse = codes.decode(decoder)
    found = torch.autograd.grad((sparse * upstream).sum(), (encoder, bias, decoder))

    latents = dense_batchtopk(x @ encoder.t() + bias, k * batch)
    dense = latents @ decoder
    expected = torch.autograd.grad((dense * upstream).sum(), (encoder, bias, decoder))

    torch.testing.assert_close(dense_of(codes, d_sae), latents)
    torch.testing.assert_close(sparse, dense)
    torch.testing.assert_close(found, expected)
    assert torch.equal(codes.fired(), (latents > 0).float().sum(0))


@pytest.mark.parametrize("n_massive", [0, 1, 2])
def test_massive_rows_are_measured_by_the_threshold_of_the_others(n_massive: int) -> None:
    """Others keep k each on average, whatever the massive ones do."""
    k, d_sae = 4, 30
    x, weights = draw(1, 64, 6), torch.ones(64).double()
    encoder, bias, decoder = leaves(2, 6, d_sae)
    massive = torch.tensor([5, 21, 60])[:n_massive]
    x[massive] *= 100
    weights[massive] = 1e-3

    codes = encode_batchtopk(x, encoder, bias, k, weights)
    found = torch.autograd.grad(codes.decode(decoder).square().sum(), (encoder, bias, decoder))

    pre = x @ encoder.t() + bias
    smallest = pre[weights == 1].flatten().topk(k * (64 - n_massive)).values[-1]
    latents = pre * (pre >= smallest)
    dense = torch.autograd.grad((latents @ decoder).square().sum(), (encoder, bias, decoder))
    torch.testing.assert_close(dense_of(codes, d_sae), latents)
    torch.testing.assert_close(found, dense)


def test_more_massive_rows_than_can_be_set_apart_compete_with_the_others() -> None:
    x, weights = draw(1, 64, 6), torch.full((64,), 0.5).double()
    encoder, bias, _ = leaves(2, 6, 30)
    codes = encode_batchtopk(x, encoder, bias, 4, weights)
    assert (codes.values > 0).sum() <= 4 * 64 + 4 * 64 // 8
    assert len(codes.rows.unique()) > 50


def test_what_is_not_a_number_is_not_passed_over() -> None:
    encoder, bias, decoder = leaves(2, 6, 30)
    codes = encode_batchtopk(draw(1, 64, 6), encoder * torch.nan, bias, 4, torch.ones(64).double())
    assert codes.decode(decoder).isnan().any()


@given(sizes, st.integers(0, 2**20), st.data())
def test_prefixes_are_decoded_as_dense_slices_are(
    shape: tuple[int, int, int, int], seed: int, data: st.DataObject
) -> None:
    batch, d_in, d_sae, k = shape
    widths = sorted({*data.draw(st.sets(st.integers(1, d_sae), max_size=4)), d_sae})
    x, encoder_bias_decoder = draw(seed + 10, batch, d_in), leaves(seed, d_in, d_sae)
    encoder, bias, decoder = encoder_bias_decoder
    upstream = draw(seed + 11, batch, len(widths), d_in)

    codes = encode_topk(x, encoder, bias, k)
    nested = codes.decode_prefixes(decoder, widths)
    found = torch.autograd.grad((nested * upstream).sum(), encoder_bias_decoder)

    latents = dense_latents(x, encoder, bias, k)
    expected = torch.stack([latents[:, :m] @ decoder[:m] for m in widths], 1)
    torch.testing.assert_close(nested, expected)
    torch.testing.assert_close(Dense(latents).decode_prefixes(decoder, widths), expected)
    torch.testing.assert_close(
        found, torch.autograd.grad((expected * upstream).sum(), encoder_bias_decoder)
    )


@given(st.sets(st.integers(0, 9), max_size=7), st.integers(0, 2**20))
@example({9}, 0)  # the last one
@example({0, 1, 2}, 0)
def test_latents_that_are_never_active_get_no_gradient(silent: set[int], seed: int) -> None:
    encoder, bias, decoder = leaves(seed, 4, 10)
    lowered = bias.detach().clone()
    lowered[list(silent)] = -1e9
    lowered.requires_grad_()
    codes = encode_topk(draw(seed + 5, 6, 4), encoder, lowered, 3)
    codes.decode(decoder).square().sum().backward()
    for leaf in (encoder, lowered, decoder):
        assert leaf.grad is not None
        assert torch.all(leaf.grad[list(silent)] == 0)
        assert torch.all(torch.isfinite(leaf.grad))
    assert torch.all(codes.fired()[list(silent)] == 0)


def test_pre_activations_below_zero_are_cut_off() -> None:
    encoder = torch.tensor([[1.0], [-1.0], [2.0]])
    codes = encode_topk(torch.tensor([[1.0], [-3.0]]), encoder, torch.zeros(3), 2)
    assert dense_of(codes, 3).tolist() == [[1.0, 0.0, 2.0], [0.0, 3.0, 0.0]]
    assert codes.fired().tolist() == [1.0, 1.0, 1.0]


def test_decode_passes_gradcheck() -> None:
    encoder, bias, decoder = leaves(0, 3, 6)
    codes = encode_topk(draw(7, 4, 3), encoder, bias, 2)
    values = codes.values.detach().requires_grad_()

    def decoded(values: Tensor, decoder: Tensor) -> Tensor:
        return replace(codes, values=values).decode(decoder)

    assert torch.autograd.gradcheck(decoded, (values, decoder))


@pytest.fixture
def four_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(4)
    yield
    torch.set_num_threads(before)


@pytest.mark.usefixtures("four_threads")
@pytest.mark.parametrize("of_the_batch", [False, True])
def test_gradients_are_the_same_bits_in_every_run(of_the_batch: bool) -> None:
    x = draw(1, 512, 48).float()
    weights = [leaf.detach().float().requires_grad_() for leaf in leaves(2, 48, 300)]

    def gradients() -> tuple[Tensor, ...]:
        if of_the_batch:
            codes = encode_batchtopk(x, weights[0], weights[1], 16, torch.ones(512))
        else:
            codes = encode_topk(x, weights[0], weights[1], 16)
        return torch.autograd.grad(codes.decode(weights[2]).square().sum(), weights)

    first = gradients()
    for _ in range(5):
        assert all(torch.equal(a, b) for a, b in zip(first, gradients(), strict=True))
