"""Build one shard: forward passes over its sequences, rows into their places, files.

A batch of the source model never crosses a shard, so a shard that is built
again goes through the same forward passes and gets the same bytes. A sequence
whose rows fall into two shards is run for both.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float, UInt32, UInt64
from torch import Tensor

from saeflow.errors import BadInputError
from saeflow.harvest.capture import capture
from saeflow.harvest.commits import Record
from saeflow.harvest.layout import HookPoint, Layout, Split
from saeflow.harvest.models import SourceModel
from saeflow.harvest.sequences import row_values
from saeflow.harvest.shards import ShardPlace, new_matrix, place_shard, write_shard


@dataclass(frozen=True)
class Text:
    """A split's tokens as the store holds them.

    Attributes:
        sequences: gives the sequences from `first` to `stop` (excluded).
        documents, starts: the dataset index of each document, and where it begins.
    """

    sequences: Callable[[int, int], UInt32[np.ndarray, "n context"]]
    documents: UInt32[np.ndarray, " documents"]
    starts: UInt64[np.ndarray, " documents"]


def build_shard(
    store: Path,
    layout: Layout,
    split: Split,
    index: int,
    *,
    model: SourceModel,
    text: Text,
    batch_size: int,
    on_rows: Callable[[int], None],
) -> Record:
    """Write one shard's files and return the record that commits it.

    Args:
        store: the store's folder, its arrays created.
        layout: its layout.
        split: the split of the shard.
        index: the shard's number there.
        model: the source model.
        text: the split's tokens.
        batch_size: sequences in a forward pass.
        on_rows: told after each batch how many rows it brought.

    Raises:
        BadInputError: an activation is not finite, in the model or in the stored
            precision.
    """
    place = place_shard(layout, split, index)
    per_sequence = layout.packing.rows_per_sequence
    first = place.rows.start // per_sequence
    sequences = text.sequences(first, (place.rows.stop - 1) // per_sequence + 1)
    values = row_values(sequences, first, place.rows, text.documents, text.starts)
    matrices = {h.name: new_matrix(layout, h, place) for h in layout.hook_points}
    for begin in range(0, len(sequences), batch_size):
        batch = torch.from_numpy(sequences[begin : begin + batch_size].astype(np.int64))
        rows = _rows_of_batch(place, first + begin, len(batch), per_sequence)
        captured = capture(model, batch, layout.hook_points)
        skipped = rows.start - (first + begin) * per_sequence
        for hook_point in layout.hook_points:
            activations = captured[hook_point.name][:, 1:].flatten(0, 1)
            wanted = activations[skipped : skipped + len(rows)]
            stored = wanted.to(layout.stored.torch).cpu()
            if not torch.isfinite(stored).all():
                raise _not_finite(wanted.cpu(), stored, hook_point, layout, rows, place, values)
            local = slice(rows.start - place.rows.start, rows.stop - place.rows.start)
            matrices[hook_point.name][torch.from_numpy(place.places[local])] = stored
        on_rows(len(rows))
    return write_shard(store, layout, place, matrices, values)


def _rows_of_batch(
    place: ShardPlace, first_sequence: int, n_sequences: int, per_sequence: int
) -> range:
    return range(
        max(first_sequence * per_sequence, place.rows.start),
        min((first_sequence + n_sequences) * per_sequence, place.rows.stop),
    )


def _not_finite(
    wanted: Float[Tensor, "rows d_in"],
    stored: Float[Tensor, "rows d_in"],
    hook_point: HookPoint,
    layout: Layout,
    rows: range,
    place: ShardPlace,
    values: dict[str, UInt32[np.ndarray, " shard_rows"]],
) -> BadInputError:
    bad = int((~torch.isfinite(stored)).any(1).nonzero()[0, 0])
    row = rows.start - place.rows.start + bad
    where = (
        f"at {hook_point.name}, document {values['doc'][row]}, "
        f"sequence {values['seq'][row]}, position {values['pos'][row]}"
    )
    if torch.isfinite(wanted[bad]).all():
        largest = wanted[bad].abs().max().item()
        return BadInputError(
            f"an activation of {largest:.3g} overflows {layout.dtype} {where}: "
            "harvest with --dtype float32 --overwrite"
        )
    return BadInputError(
        f"the source model gives NaN or infinity {where}: check its weights, "
        "or give --model-dtype float32 --overwrite if it runs in less"
    )
