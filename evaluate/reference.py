"""What rows are held against: their mean, the median of their norms, and rows of other tokens.

The first two are the store's, of all its training rows, where the store is at hand. Where
it isn't, and for SAEs that others have trained, they are those of some of the text.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from saeflow.errors import BadInputError
from saeflow.evaluate.ablation import Resampler
from saeflow.evaluate.opening import OpenedSAE
from saeflow.evaluate.positions import chosen_positions
from saeflow.evaluate.text import HeldOutText
from saeflow.harvest.capture import capture, probe_hook_points
from saeflow.harvest.models import SourceModel
from saeflow.harvest.store import Store

_SEQUENCES = 64
"""Of the text, for what no store says, and for the rows that take others' places."""


@dataclass(frozen=True)
class Reference:
    """What is known of the ordinary rows of a hook point.

    Attributes:
        mean: of the rows, float32.
        median_norm: of the rows; ten times that is massive.
    """

    mean: Float[Tensor, " d_in"]
    median_norm: float


@dataclass(frozen=True)
class SampledRows:
    """Rows of some of the text, at the chosen positions.

    Attributes:
        rows: of each hook point, float32; those of one index are of one token.
        sequences, positions: where they are from.
    """

    rows: Mapping[str, Float[Tensor, "rows _"]]
    sequences: Int[Tensor, " rows"]
    positions: Int[Tensor, " rows"]

    def reference(self, hook_point: str, mean: Float[Tensor, " d_in"] | None) -> Reference:
        """What they say of a hook point, whose mean may be known from elsewhere."""
        rows = self.rows[hook_point]
        found = rows.double().mean(0).float() if mean is None else mean.to(rows)
        return Reference(found, float(rows.norm(dim=1).median()))

    def resampler(self, seed: int) -> Resampler:
        """They take other rows' places."""
        return Resampler(self.rows, self.sequences, self.positions, seed)


def sample_rows(
    model: SourceModel,
    text: HeldOutText,
    hook_points: Sequence[str],
    batch_size: int,
) -> SampledRows:
    """Rows of text, of up to 64 sequences that are spread evenly over all.

    Args:
        model: run up to the deepest hook point.
        text: the evaluation's.
        hook_points: whose rows.
        batch_size: sequences in a forward pass.

    Raises:
        BadInputError: there are fewer than two.
    """
    points = probe_hook_points(model, hook_points)
    special = sorted(set(model.tokenizer.all_special_ids))
    count = min(_SEQUENCES, len(text.sequences))
    numbers = np.arange(count) * len(text.sequences) // count
    found: dict[str, list[Tensor]] = {point.name: [] for point in points}
    places = []
    for first in range(0, count, batch_size):
        some = numbers[first : first + batch_size]
        tokens = torch.from_numpy(text.sequences[some].astype(np.int64))
        lengths = torch.from_numpy(text.lengths[some])
        own = torch.arange(tokens.shape[1]) < lengths[:, None]
        chosen = chosen_positions(tokens, own, special)
        for name, activation in capture(model, tokens, points).items():
            found[name].append(activation[chosen.to(activation.device)].float())
        which, position = chosen.nonzero().unbind(1)
        places.append(torch.stack([torch.from_numpy(some)[which], position]))
    rows = {name: torch.cat(parts) for name, parts in found.items()}
    sequences, positions = torch.cat(places, 1).to(model.device)
    if len(sequences) < 2:
        raise BadInputError(
            f"text of {text.source} has {len(sequences)} tokens that are neither first nor special "
            f"in {count} sequences: give other text with --dataset, or more with --tokens"
        )
    return SampledRows(rows, sequences, positions)


def of_store(
    store: Store | None, hook_points: Sequence[str], device: torch.device
) -> dict[str, Reference]:
    """What a store says of those of some hook points that it holds; nothing without a store."""
    if store is None:
        return {}
    held = {hook_point.name for hook_point in store.layout.hook_points}
    return {name: _of_statistics(store, name, device) for name in hook_points if name in held}


def carried_means(saes: Sequence[OpenedSAE]) -> dict[str, Tensor]:
    """The means of training rows that SAEs have with them, by hook point."""
    return {
        name: mean
        for one in saes
        if one.sae.mean is not None
        for name, mean in zip(
            one.sae.target_hook_points, one.sae.mean.split(list(one.sae.d_outs)), strict=True
        )
    }


def _of_statistics(store: Store, name: str, device: torch.device) -> Reference:
    figures = store.statistics(store.hook_point(name))
    mean = torch.as_tensor(figures["mean"], dtype=torch.float32, device=device)
    return Reference(mean, float(np.median(figures["median_norm"])))
