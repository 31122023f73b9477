"""Means, losses added and reconstruction scores, with intervals over documents.

Predictions of one document are alike, so an interval that took them for independent would
be too narrow: what is drawn again here is whole documents (Efron & Tibshirani 1993, ch. 8
and 13). All intervals are the middle 95 % of the resamples. Those of a handful of documents
are too narrow all the same: no bootstrap knows what it has not seen.
"""

import numpy as np
from jaxtyping import Bool, Float64

from saeflow.evaluate.document_sums import DocumentSums
from saeflow.evaluate.figures import Estimate, Score
from saeflow.evaluate.resamples import Resamples

LEAST_DENOMINATOR = 1e-3
"""Nats a token: ablation that costs less, or that helps, leaves nothing to give back."""

_TAIL = 0.025
_Column = Float64[np.ndarray, " documents"]


def mean_estimate(sums: DocumentSums, resamples: Resamples, column: str) -> Estimate:
    """The mean of a column over predictions, every prediction counting the same."""
    return _ratio(resamples, sums.columns[column], sums.count.astype(np.float64))


def difference_estimate(sums: DocumentSums, resamples: Resamples, more: str, less: str) -> Estimate:
    """The mean of `more` less that of `less`, such as what a splice adds to the loss.

    Both are of the same documents in every resample: the interval is the difference's own,
    and far narrower than that of either.
    """
    difference = sums.columns[more] - sums.columns[less]
    return _ratio(resamples, difference, sums.count.astype(np.float64))


def score_estimate(
    sums: DocumentSums,
    resamples: Resamples,
    ablated: str,
    *,
    spliced: str = "spliced",
    clean: str = "clean",
) -> Score:
    """The reconstruction score against one ablation, `(ablated - spliced) / (ablated - clean)`.

    Both of its definitions: a ratio of sums over the run, and the mean of the documents' own
    ratios. 1: the model does not notice the splice; 0: it might as well be ablated. There is
    no ratio, of the run or of a document, where ablation costs less than a thousandth of a
    nat a token.

    Args:
        sums: of each document.
        resamples: of as many documents.
        ablated: the column of the losses under ablation.
        spliced: that of the losses with the SAE in its place.
        clean: that of the model's own losses.
    """
    count = sums.count.astype(np.float64)
    recovered = sums.columns[ablated] - sums.columns[spliced]
    cost = sums.columns[ablated] - sums.columns[clean]
    kept: Bool[np.ndarray, " documents"] = cost > LEAST_DENOMINATOR * count
    ratios = np.divide(recovered, cost, out=np.zeros_like(cost), where=kept)
    return Score(
        ratio_of_sums=_ratio(resamples, recovered, cost, LEAST_DENOMINATOR * count),
        mean_of_ratios=_ratio(resamples, ratios, kept.astype(np.float64), items=int(kept.sum())),
        items=int(kept.sum()),
        left_out=int((~kept).sum()),
    )


def _ratio(
    resamples: Resamples,
    top: _Column,
    bottom: _Column,
    least: _Column | None = None,
    items: int | None = None,
) -> Estimate:
    """The total of `top` over that of `bottom`; nothing where that is not above that of `least`.

    A resample without a ratio might have had any: it is counted below the interval as well
    as above it, and where there are so many that they reach into the middle 95 %, the
    interval has no end that could be given.
    """
    columns = np.stack([top, bottom, np.zeros_like(top) if least is None else least], 1)
    value, there = _divided(columns.sum(0)[None])
    if not there[0]:
        return Estimate(None, None, None)
    if (len(top) if items is None else items) < 2:
        return Estimate(float(value[0]), None, None)
    ratios, defined = _divided(resamples.totals(columns))
    low = np.quantile(np.where(defined, ratios, -np.inf), _TAIL, method="lower")
    high = np.quantile(np.where(defined, ratios, np.inf), 1 - _TAIL, method="higher")
    if not np.isfinite([low, high]).all():
        return Estimate(float(value[0]), None, None)
    return Estimate(float(value[0]), float(low), float(high))


def _divided(
    totals: Float64[np.ndarray, "n 3"],
) -> tuple[Float64[np.ndarray, " n"], Bool[np.ndarray, " n"]]:
    """The first column over the second, and where this is above the third."""
    top, bottom, least = totals.T
    defined = bottom > least
    return np.divide(top, bottom, out=np.zeros_like(top), where=defined), defined
