"""Encoding to few latents and decoding from them at the cost of those few, not of d_sae.

The backward passes touch only active latents. For the weights' gradients the
(row, latent) pairs are grouped by latent once, and both gradients are sums over
bags of rows: no atomics, so they are the same in every run. Weights are row-major
per latent, `(d_sae, d_in)`, so that every gather is of whole rows. The number of
pairs is known beforehand on a GPU, so nothing waits for it.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional as F

Select = Callable[[Tensor], tuple[Tensor, Tensor, Tensor]]
"""From pre-activations, which it may write over: values, rows and latents, rows rising."""

_FEW = 16
"""One of so many rows may be set apart as massive."""

_BESIDE = 8
"""For so many pairs of the others there may be one of rows that are set apart."""


@dataclass(frozen=True)
class Codes:
    """The active latents of a batch, as pairs of a row and a latent.

    Attributes:
        values: their activations.
        latents: int64, which latents they are.
        rows: int64, in which row, rising.
        row_bags: int64, where each row's pairs begin.
        order: int64, the pairs sorted by latent.
        latent_bags: int64, where each latent's pairs begin in `order`.
    """

    values: Float[Tensor, " pairs"]
    latents: Int[Tensor, " pairs"]
    rows: Int[Tensor, " pairs"]
    row_bags: Int[Tensor, " batch"]
    order: Int[Tensor, " pairs"]
    latent_bags: Int[Tensor, " d_sae"]

    def fired(self) -> Float[Tensor, " d_sae"]:
        """How often each latent was above zero, as float32."""
        counts = torch.zeros_like(self.latent_bags, dtype=torch.float32)
        return counts.index_add_(0, self.latents, (self.values.detach() > 0).float())

    def decode(self, decoder: Float[Tensor, "d_sae d_out"]) -> Float[Tensor, "batch d_out"]:
        """Sum the active latents' decoder rows, weighted by their activations."""
        pairs = self.latents, self.rows, self.row_bags, self.order, self.latent_bags
        result: Tensor = _Decode.apply(self.values, decoder, *pairs)  # type: ignore[no-untyped-call]  # torch's own
        return result

    def decode_prefixes(
        self, decoder: Float[Tensor, "d_sae d_out"], widths: Sequence[int]
    ) -> Float[Tensor, "batch prefixes d_out"]:
        """For each width, decode the first so many latents only; each pair is read once.

        Args:
            decoder: one row a latent.
            widths: rising; the last is d_sae.
        """
        blocks = self._by_block(widths).decode(decoder)
        return blocks.view(-1, len(widths), decoder.shape[1]).cumsum(1)

    def _by_block(self, widths: Sequence[int]) -> "Codes":
        """As many rows of each row as there are widths: the pairs between one and the next."""
        rows = self.rows * len(widths)
        for width in widths[:-1]:  # not bucketize, whose bounds a GPU would wait for
            rows = rows + (self.latents >= width)
        by_row = rows.argsort(stable=True)
        latents, rows = self.latents[by_row], rows[by_row]
        return replace(
            self,
            values=self.values.gather(0, by_row),
            latents=latents,
            rows=rows,
            row_bags=_starts(rows, len(self.row_bags) * len(widths)),
            order=latents.argsort(stable=True),
        )


def encode_topk(
    x: Float[Tensor, "batch d_in"],
    encoder: Float[Tensor, "d_sae d_in"],
    bias: Float[Tensor, " d_sae"],
    k: int,
    *,
    negative: bool = False,
    known: Float[Tensor, "batch d_sae"] | None = None,
) -> Codes:
    """The k largest pre-activations of each row, those below zero set to zero.

    Args:
        x: rows; no gradient goes back to them.
        encoder: one row a latent.
        bias: of the pre-activations.
        k: latents kept.
        negative: those below zero stay as they are.
        known: the pre-activations, where someone has computed them.
    """
    return _encode(x, encoder, bias, partial(_largest_of_rows, k=k, negative=negative), known)


def encode_batchtopk(
    x: Float[Tensor, "batch d_in"],
    encoder: Float[Tensor, "d_sae d_in"],
    bias: Float[Tensor, " d_sae"],
    k: int,
    weights: Float[Tensor, " batch"],
    *,
    known: Float[Tensor, "batch d_sae"] | None = None,
) -> Codes:
    """The largest pre-activations of the whole batch, those below zero set to zero.

    A massive row, whose weight is below 1, takes no pairs from the others: it has those that
    are as large as the smallest that the others keep. So it is encoded as by one threshold,
    but for limits that keep the number of pairs: of a sixteenth of the rows, the massive
    ones among them, and to an eighth of the others' pairs.

    Args:
        x: rows; no gradient goes back to them.
        encoder: one row a latent.
        bias: of the pre-activations.
        k: latents kept of each of the others, on average.
        weights: of rows.
        known: the pre-activations, where someone has computed them; written over.
    """
    return _encode(x, encoder, bias, partial(_largest_of_all, k=k, weights=weights), known)


def _largest_of_rows(pre: Tensor, *, k: int, negative: bool) -> tuple[Tensor, Tensor, Tensor]:
    values, latents = pre.topk(k, dim=1, sorted=False)
    rows = torch.arange(len(pre), device=pre.device).repeat_interleave(k)
    return (values if negative else values.relu()).flatten(), rows, latents.flatten()


def _largest_of_all(pre: Tensor, *, k: int, weights: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    (n_rows, d_sae), n_pairs = pre.shape, k * len(pre)
    light, which = weights.topk(n_rows // _FEW, largest=False)
    massive = light < 1
    apart = pre[which].masked_fill_(~massive[:, None], -torch.inf)
    pre[which] = pre[which].masked_fill_(massive[:, None], -torch.inf)

    values, places = pre.flatten().topk(n_pairs)
    n_kept = n_pairs - k * massive.sum()
    values = values.relu_().masked_fill_(torch.arange(n_pairs, device=pre.device) >= n_kept, 0.0)
    smallest = values.where(values > 0, torch.inf).amin()

    beside, there = apart.flatten().topk(min(n_pairs // _BESIDE, apart.numel()))
    beside = beside.masked_fill_(beside < smallest, 0.0)
    there = which[there // d_sae] * d_sae + there % d_sae
    return _by_row(torch.cat([values, beside]), torch.cat([places, there]), d_sae)


def _by_row(values: Tensor, places: Tensor, d_sae: int) -> tuple[Tensor, Tensor, Tensor]:
    """Values with their rows and latents, by their places in rows one after the other."""
    if values.device.type == "cpu":  # elsewhere it would be waited for how many there are
        active = ~(values <= 0)  # what is not a number stays, to be seen
        places, values = places[active], values[active]
    places, order = places.sort()
    return values[order], places // d_sae, places % d_sae


def _encode(
    x: Tensor, encoder: Tensor, bias: Tensor, select: Select, known: Tensor | None
) -> Codes:
    tensors = _Encode.apply(x, encoder, bias, select, known)  # type: ignore[no-untyped-call]  # torch's own
    return Codes(*tensors)


class _Encode(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, encoder: Tensor, bias: Tensor, select: Select, known: Tensor | None
    ) -> tuple[Tensor, ...]:
        values, rows, latents = select(F.linear(x, encoder, bias) if known is None else known)
        values = values.to(encoder.dtype)  # under autocast the product was of lower precision
        order = latents.argsort(stable=True)
        latent_bags = _starts(latents[order], len(encoder))
        row_bags = _starts(rows, len(x))
        ctx.save_for_backward(x, values, rows, order, latent_bags)
        ctx.mark_non_differentiable(latents, rows, row_bags, order, latent_bags)
        return values, latents, rows, row_bags, order, latent_bags

    @staticmethod
    def backward(ctx: Any, grad_values: Tensor, *_: Any) -> tuple[Tensor | None, ...]:
        x, values, rows, order, bags = ctx.saved_tensors
        grad = (grad_values * (values != 0))[order]
        grad_encoder = _sum_of_bags(x, grad, rows[order], bags)
        padded = torch.cat([grad.new_zeros(1), grad.double().cumsum(0)])
        ends = torch.cat([bags[1:], bags.new_full((1,), len(grad))])
        grad_bias = (padded[ends] - padded[bags]).to(values.dtype)
        return None, grad_encoder, grad_bias, None, None


class _Decode(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        values: Tensor,
        decoder: Tensor,
        latents: Tensor,
        rows: Tensor,
        row_bags: Tensor,
        order: Tensor,
        latent_bags: Tensor,
    ) -> Tensor:
        ctx.save_for_backward(values, decoder, latents, rows, row_bags, order, latent_bags)
        return _sum_of_bags(decoder, values, latents, row_bags)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        values, decoder, latents, rows, row_bags, order, latent_bags = ctx.saved_tensors
        grad = grad.contiguous()
        grad_values = torch.ops.aten._embedding_bag_per_sample_weights_backward(
            grad, decoder, latents, row_bags, rows, 0
        )
        grad_decoder = _sum_of_bags(grad, values[order], rows[order], latent_bags)
        return grad_values, grad_decoder, None, None, None, None, None


def _sum_of_bags(vectors: Tensor, weights: Tensor, which: Tensor, bags: Tensor) -> Tensor:
    """For each bag, the weighted sum of its vectors."""
    return F.embedding_bag(
        which, vectors, offsets=bags, mode="sum", per_sample_weights=weights.contiguous()
    )


def _starts(rising: Tensor, n: int) -> Tensor:
    """Where each of the numbers 0 to n - 1 begins in a rising list of them."""
    return torch.searchsorted(rising, torch.arange(n, device=rising.device))
