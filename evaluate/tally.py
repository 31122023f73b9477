"""Losses of passes, added up by document, by position, and by the predicted token's frequency."""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Float64, Int
from torch import Tensor

from saeflow.evaluate.breakdown import Bins, LossBreakdown, frequency_bins, position_bins
from saeflow.evaluate.document_sums import DocumentTable


@dataclass(frozen=True)
class Predictions:
    """The scored predictions of a batch, in the order of `torch.nonzero(scored)`.

    Attributes:
        scored: which they are.
        documents: each one's document, int64.
        positions, frequencies: the bin of the position that each is made from, and of the
            share of the text that the predicted token has.
    """

    scored: Bool[Tensor, "batch predictions"]
    documents: Int[Tensor, " scored"]
    positions: Int[Tensor, " scored"]
    frequencies: Int[Tensor, " scored"]


@dataclass(frozen=True)
class Binning:
    """Which bins there are in an evaluation.

    Attributes:
        positions, frequencies: the bins.
        frequency: the share of the text that each token has.
    """

    positions: Bins
    frequencies: Bins
    frequency: Float64[Tensor, " vocabulary"]

    @staticmethod
    def of(context: int, frequency: Float64[Tensor, " vocabulary"]) -> "Binning":
        """The bins for contexts of a length."""
        return Binning(position_bins(max(context - 2, 0)), frequency_bins(), frequency)

    def place(
        self,
        tokens: Int[Tensor, "batch position"],
        documents: Int[Tensor, "batch position"],
        scored: Bool[Tensor, "batch predictions"],
    ) -> Predictions:
        """Where a batch's scored predictions belong; a prediction is of its token's document."""
        from_positions = scored.nonzero()[:, 1]
        return Predictions(
            scored,
            documents[:, 1:][scored],
            self.positions.of(from_positions),
            self.frequencies.of(self.frequency[tokens[:, 1:][scored]]),
        )


class Tally:
    """Sums of the losses of some passes, and of other columns, over all predictions.

    Args:
        passes: names of the passes.
        binning: of the evaluation.
        device: where the losses are.
        others: names of further columns, which are summed by document only.
    """

    def __init__(
        self,
        passes: tuple[str, ...],
        binning: Binning,
        device: torch.device,
        others: tuple[str, ...] = (),
    ) -> None:
        self.documents = DocumentTable(*passes, *others)
        self.by_position = LossBreakdown(binning.positions.labels, passes).to(device)
        self.by_frequency = LossBreakdown(binning.frequencies.labels, passes).to(device)

    def add(
        self,
        predictions: Predictions,
        losses: Mapping[str, Float[Tensor, " scored"]],
        **others: Float[Tensor, " scored"] | Bool[Tensor, " scored"],
    ) -> None:
        """Add a batch's predictions."""
        self.documents.add(predictions.documents, **losses, **others)
        self.by_position.update(predictions.positions, losses)
        self.by_frequency.update(predictions.frequencies, losses)
