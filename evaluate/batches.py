"""An evaluation's text, in batches: which positions are replaced, which predictions scored."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from jaxtyping import Bool, Int
from torch import Tensor

from saeflow.errors import BadInputError
from saeflow.evaluate.ablation import Resampler
from saeflow.evaluate.config import PositionChoice
from saeflow.evaluate.positions import chosen_positions, scored_predictions
from saeflow.evaluate.reference import Reference
from saeflow.evaluate.tally import Binning, Predictions
from saeflow.evaluate.text import HeldOutText
from saeflow.harvest.models import SourceModel


@dataclass(frozen=True)
class Setting:
    """What is the same for all SAEs of an evaluation.

    Attributes:
        model: the source model.
        text: what it reads.
        replace, score: which positions are replaced, and which predictions scored.
        batch_size: sequences in a forward pass.
        references: of each replaced hook point.
        resampler: None if no resample ablation was asked for.
    """

    model: SourceModel
    text: HeldOutText
    replace: PositionChoice
    score: PositionChoice
    batch_size: int
    references: Mapping[str, Reference]
    resampler: Resampler | None

    @cached_property
    def special(self) -> list[int]:
        """Ids of the special tokens."""
        return sorted(set(self.model.tokenizer.all_special_ids))

    @cached_property
    def binning(self) -> Binning:
        """The bins that losses are broken down by."""
        frequency = torch.from_numpy(self.text.frequency).to(self.model.device)
        return Binning.of(self.text.sequences.shape[1], frequency)

    def chosen(self, tokens: Tensor, own: Tensor, which: PositionChoice) -> Tensor:
        """The positions of a batch that a choice names."""
        return chosen_positions(tokens, own, self.special, which)


@dataclass(frozen=True)
class Batch:
    """Some sequences, and what is done where in them.

    Attributes:
        numbers: of the sequences in the text.
        tokens: token ids.
        own: False at padding.
        documents: which document each token is of.
        replaced: where rows are replaced.
        predictions: those that are scored.
    """

    numbers: Int[Tensor, " batch"]
    tokens: Int[Tensor, "batch position"]
    own: Bool[Tensor, "batch position"]
    documents: Int[Tensor, "batch position"]
    replaced: Bool[Tensor, "batch position"]
    predictions: Predictions

    @property
    def scored(self) -> Bool[Tensor, "batch predictions"]:
        """Which predictions are scored."""
        return self.predictions.scored


def batches(setting: Setting) -> Iterator[Batch]:
    """All of the text, in its order."""
    text, device = setting.text, setting.model.device
    lengths = torch.from_numpy(text.lengths).to(device)
    for numbers in torch.arange(len(text.sequences)).split(setting.batch_size):
        tokens = torch.from_numpy(text.sequences[numbers.numpy()].astype(np.int64)).to(device)
        documents = torch.from_numpy(text.documents[numbers.numpy()]).to(device)
        numbers = numbers.to(device)
        own = torch.arange(tokens.shape[1], device=device) < lengths[numbers, None]
        replaced = setting.chosen(tokens, own, setting.replace)
        scored = scored_predictions(setting.chosen(tokens, own, setting.score))
        predictions = setting.binning.place(tokens, documents, scored)
        yield Batch(numbers, tokens, own, documents, replaced, predictions)


def check_text(setting: Setting) -> None:
    """See that there is something to replace and something to score.

    Raises:
        BadInputError: there isn't, in all of the text.
    """
    replaced = scored = False
    for batch in batches(setting):
        replaced |= bool(batch.replaced.any())
        scored |= bool(batch.scored.any())
        if replaced and scored:
            return
    missing = "prediction to score" if replaced else "position to replace"
    raise BadInputError(
        f"text of {setting.text.source} has no {missing} in its {len(setting.text.sequences):,} "
        f"sequences of up to {setting.text.sequences.shape[1]} tokens: give other text with "
        "--dataset, or choose other positions with --replace and --score"
    )
