"""A new store's skeleton: everything that is known before the first shard is built."""

from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from saeflow.harvest.arrays import create_arrays, write_array
from saeflow.harvest.capture import capture
from saeflow.harvest.contexts import Text, open_text
from saeflow.harvest.layout import Layout
from saeflow.harvest.models import SourceModel
from saeflow.harvest.plan import Plan
from saeflow.harvest.quantise import Quantisation, calibrate
from saeflow.harvest.sample import sample_rows
from saeflow.harvest.sequences import write_sequences
from saeflow.harvest.store import Store

_CALIBRATION_PLACES, _CALIBRATION_SEQUENCES = 32, 4
"""Places of the training text, and sequences at each, that int8's channels are measured on."""


def create_skeleton(store: Path, plan: Plan, model: SourceModel) -> None:
    """Write the tokens of every sequence, and the metadata of every array.

    Args:
        store: the store's folder.
        plan: its layout, and the tokenised text.
        model: the source model; int8's calibration runs it on a few sequences.
    """
    layout = plan.layout
    assert layout.packing is not None
    for split in layout.splits.values():
        write_sequences(store, split, plan.streams[split.name], layout.packing)
        create_arrays(store, layout, split)
    write_array(store, "sample", sample_rows(layout), ("row",))
    if layout.dtype == "int8":
        text = open_text(Store(store, layout, {}, identity=""), layout.splits["train"])
        for name, quantisation in _calibrate(layout, model, text).items():
            write_array(store, f"quant/{name}", quantisation.to_array(), ("mean_deviation", "d_in"))


def _calibrate(layout: Layout, model: SourceModel, text: Text) -> dict[str, Quantisation]:
    """Channels' mean and deviation at each hook point, from places all over the text."""
    n_sequences = layout.splits["train"].n_sequences
    places = min(_CALIBRATION_PLACES, n_sequences)
    found: dict[str, list[torch.Tensor]] = {h.name: [] for h in layout.hook_points}
    for first in (np.arange(places) * n_sequences // places).tolist():
        stop = min(first + _CALIBRATION_SEQUENCES, n_sequences)
        begin, end = text.row_starts(first, first + 1)[0], text.row_starts(stop, stop + 1)[0]
        for batch in text.contexts(range(int(begin), int(end))).batches(_CALIBRATION_SEQUENCES):
            captured = capture(model, torch.from_numpy(batch.tokens), layout.hook_points)
            for name, rows in found.items():
                rows.append(captured[name][torch.from_numpy(batch.stored).to(model.device)].cpu())
    return {name: calibrate(_finite(torch.cat(rows))) for name, rows in found.items()}


def _finite(rows: Float[Tensor, "rows d_in"]) -> Float[Tensor, "some d_in"]:
    """The rows without NaN or infinity; a row of zeros if there are none.

    The others are refused, with their place, when their shard is built.
    """
    finite = rows[rows.isfinite().all(1)]
    return finite if len(finite) else torch.zeros_like(rows[:1])
