"""Build one shard: forward passes over its sequences, rows into their places, files.

A batch of the source model never crosses a shard, so a shard that is built
again goes through the same forward passes and gets the same bytes. A sequence
whose rows fall into two shards is run for both.
"""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TypedDict, Unpack

import numpy as np
import torch
from jaxtyping import Float, Int64, UInt32
from torch import Tensor

from saeflow.errors import BadInputError
from saeflow.harvest.capture import capture
from saeflow.harvest.commits import Record
from saeflow.harvest.contexts import Text
from saeflow.harvest.layout import HookPoint, Layout, Split
from saeflow.harvest.models import SourceModel
from saeflow.harvest.quantise import Quantisation
from saeflow.harvest.shard_files import write_shard
from saeflow.harvest.shards import GatheredShard, new_shard, place_shard


class Gathering(TypedDict):
    """The options of `gather_shard`."""

    model: SourceModel
    text: Text
    batch_size: int
    quantisations: Mapping[str, Quantisation]
    on_rows: Callable[[int], None]


def build_shard(
    store: Path, layout: Layout, split: Split, index: int, **options: Unpack[Gathering]
) -> Record:
    """Gather a shard and write its files; returns the record that commits it.

    Args:
        store: the store's folder, its arrays created.
        layout: its layout.
        split: the split of the shard.
        index: the shard's number there.
        options: the others that `gather_shard` takes.

    Raises:
        BadInputError: as `gather_shard`.
    """
    return write_shard(store, layout, gather_shard(layout, split, index, **options))


def gather_shard(
    layout: Layout,
    split: Split,
    index: int,
    *,
    model: SourceModel,
    text: Text,
    batch_size: int,
    quantisations: Mapping[str, Quantisation],
    on_rows: Callable[[int], None],
) -> GatheredShard:
    """Run a shard's sequences through the model and put their rows in their places.

    Args:
        layout: the store's layout.
        split: the split of the shard.
        index: the shard's number there.
        model: the source model.
        text: the split's tokens.
        batch_size: sequences in a forward pass.
        quantisations: by hook point; needed for int8.
        on_rows: told after each batch how many rows it brought.

    Raises:
        BadInputError: an activation is not finite, in the model or in the stored
            precision.
    """
    place = place_shard(layout, split, index)
    contexts = text.contexts(place.rows)
    values = text.row_values(contexts)
    shard = new_shard(layout, place, values, quantisations=quantisations, device=model.device)
    places = torch.from_numpy(place.places)
    for batch in contexts.batches(batch_size):
        captured = capture(model, torch.from_numpy(batch.tokens), layout.hook_points)
        rows = torch.from_numpy(batch.rows - place.rows.start)
        for hook_point in layout.hook_points:
            wanted = captured[hook_point.name][torch.from_numpy(batch.stored).to(model.device)]
            stored = wanted if layout.dtype == "int8" else wanted.to(layout.stored.torch)
            _check_finite(wanted, stored, rows, hook_point, layout, values)
            shard.put(hook_point.name, places[rows], stored)
        on_rows(len(rows))
    return shard


def _check_finite(
    wanted: Float[Tensor, "rows d_in"],
    stored: Float[Tensor, "rows d_in"],
    rows: Int64[Tensor, " rows"],
    hook_point: HookPoint,
    layout: Layout,
    values: Mapping[str, UInt32[np.ndarray, " shard_rows"]],
) -> None:
    """Refuse NaN and infinity, and what the stored precision would make infinite."""
    if torch.isfinite(stored).all():
        return
    bad = int((~torch.isfinite(stored)).any(1).nonzero()[0, 0])
    row = int(rows[bad])
    where = (
        f"at {hook_point.name}, document {values['doc'][row]}, "
        f"sequence {values['seq'][row]}, position {values['pos'][row]}"
    )
    if torch.isfinite(wanted[bad]).all():
        largest = wanted[bad].abs().max().item()
        raise BadInputError(
            f"an activation of {largest:.3g} overflows {layout.dtype} {where}: "
            "harvest with --dtype float32 --overwrite"
        )
    raise BadInputError(
        f"the source model gives NaN or infinity {where}: check its weights, "
        "or give --model-dtype float32 --overwrite if it runs in less"
    )
