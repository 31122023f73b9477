"""The figures of an evaluation, as scores.json holds them; its schema is in docs/evaluation.md."""

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class Estimate:
    """A figure and its 95 % bootstrap interval over documents.

    Attributes:
        value: None where it can't be had: its denominator is near zero.
        low, high: None where there are fewer than two documents, or no value.
    """

    value: float | None
    low: float | None = None
    high: float | None = None


@dataclass(frozen=True, kw_only=True)
class Score:
    """The reconstruction score against one ablation.

    Attributes:
        ratio_of_sums: `(ablated - spliced) / (ablated - clean)` of losses summed over the run.
        mean_of_ratios: the mean of the documents' own ratios.
        items: documents that it is a mean of.
        left_out: documents whose denominator is near zero, and which have no ratio.
    """

    ratio_of_sums: Estimate
    mean_of_ratios: Estimate
    items: int
    left_out: int


@dataclass(frozen=True, kw_only=True)
class Breakdown:
    """Mean losses of each pass over bins of predictions.

    Attributes:
        labels: of the bins, for people: `1-15`, `1e-4 to 1e-3`.
        count: predictions in each.
        losses: of each pass, in nats; None where a bin is empty.
    """

    labels: tuple[str, ...]
    count: tuple[int, ...]
    losses: Mapping[str, tuple[float | None, ...]]


@dataclass(frozen=True, kw_only=True)
class Reconstruction:
    """How well the rows of one hook point are given back; None for what is divided by zero.

    Attributes:
        hook_point: whose rows.
        rows: how many.
        fvu: sum of `|x - x_hat|^2` over sum of `|x - mean|^2`.
        fvu_without_massive: the same of the rows that are not massive.
        row_fvu: mean of each row's own fraction.
        explained_variance: 1 less the variance of `x - x_hat` over that of `x`, each summed
            over channels.
        mse: mean of `|x - x_hat|^2`, summed over channels.
        cosine: mean cosine of x and x_hat.
        l2_ratio: mean of `|x_hat| / |x|`.
        relative_bias: `E|x_hat|^2 / E[x . x_hat]` (Rajamanoharan et al. 2024); 1 is unbiased.
        massive_rows: rows whose norm is over ten times the median.
        massive_share_of_error: of the sum of squared errors.
        massive_share_of_loss: of what the splice adds to the loss, at predictions made from
            massive rows; None where it adds next to nothing.
    """

    hook_point: str
    rows: int
    fvu: float | None
    fvu_without_massive: float | None
    row_fvu: float | None
    explained_variance: float | None
    mse: float
    cosine: float | None
    l2_ratio: float | None
    relative_bias: float | None
    massive_rows: int
    massive_share_of_error: float | None
    massive_share_of_loss: float | None


@dataclass(frozen=True, kw_only=True)
class Sparsity:
    """How latents are active.

    Attributes:
        l0: mean number of latents above zero in a row.
        l0_quantiles: at 0.05, 0.25, 0.5, 0.75, 0.95, by that name.
        l0_edges: of the histogram of L0; a bin holds its lower edge and not its upper one.
        l0_counts: rows in each bin.
        l1: mean sum of a row's latents.
        dead: latents above zero in none of the rows.
        dense: latents above zero in more than a tenth of the rows.
        density_edges: of the histogram, log10 of the share of rows; dead latents are in no bin.
        density_counts: latents in each bin.
        decoder_cosine_quantiles: of each latent's largest cosine with another decoder row, at
            0.05, 0.5, 0.95 and 1.
        decoder_cosine_latents: of how many latents, spread evenly, that was taken.
    """

    l0: float
    l0_quantiles: Mapping[str, float]
    l0_edges: tuple[int, ...]
    l0_counts: tuple[int, ...]
    l1: float
    dead: int
    dense: int
    density_edges: tuple[float, ...]
    density_counts: tuple[int, ...]
    decoder_cosine_quantiles: Mapping[str, float]
    decoder_cosine_latents: int
