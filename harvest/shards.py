"""One shard in memory: which rows are its, where each of them goes, and what they are."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Float32, Int64, Shaped, UInt32
from torch import Tensor

from saeflow.harvest.layout import Layout, Split
from saeflow.harvest.permutation import derive_key, permute
from saeflow.harvest.quantise import Quantisation

_CPU = torch.device("cpu")


@dataclass(frozen=True)
class ShardPlace:
    """Which shard, and where each of its rows goes.

    Attributes:
        split: the split that it belongs to.
        index: its number there.
        rows: its rows in the order of sequence and position.
        places: for each of them, its place in the shard.
    """

    split: Split
    index: int
    rows: range
    places: Int64[np.ndarray, " rows"]


def place_shard(layout: Layout, split: Split, index: int) -> ShardPlace:
    """Where a shard's rows go: the permutation is a function of seed, split and shard alone."""
    rows = split.shard(index)
    places = np.arange(len(rows))
    if layout.order == "permuted":
        key = derive_key(layout.seed, "shard", split.name, index)
        places = permute(places, len(rows), key)
    return ShardPlace(split, index, rows, places)


@dataclass(frozen=True)
class GatheredShard:
    """A shard in memory, ready to be written.

    Attributes:
        place: which shard.
        matrices: by hook point, the activations in their places, in the stored
            precision, filled up to whole chunks.
        scales: by hook point, the scale of each row in its place; int8 only.
        quantisations: by hook point, what int8 rows are widened with.
        row_values: by name, one value a row, in the order of sequence and position.
        device: where statistics are computed.
    """

    place: ShardPlace
    matrices: Mapping[str, Shaped[Tensor, "stored_rows _"]]
    scales: Mapping[str, Float32[Tensor, " rows"]]
    quantisations: Mapping[str, Quantisation]
    row_values: Mapping[str, UInt32[np.ndarray, " rows"]]
    device: torch.device = _CPU

    def rows(self, name: str, first: int, stop: int) -> Float32[Tensor, "rows _"]:
        """Some of its stored rows, widened."""
        stored = self.matrices[name][first:stop].to(self.device)
        if name not in self.scales:
            return stored.float()
        scales = self.scales[name][first:stop].to(self.device)
        return self.quantisations[name].dequantise(stored, scales)

    def put(
        self, name: str, places: Int64[Tensor, " rows"], rows: Float[Tensor, "rows d_in"]
    ) -> None:
        """Put finite rows in their places: in the stored precision, or still to be quantised."""
        if name in self.scales:
            rows, scale = self.quantisations[name].quantise(rows)
            self.scales[name][places] = scale.cpu()
        self.matrices[name][places] = rows.cpu()


def new_shard(
    layout: Layout,
    place: ShardPlace,
    row_values: Mapping[str, UInt32[np.ndarray, " rows"]],
    *,
    quantisations: Mapping[str, Quantisation],
    device: torch.device = _CPU,
) -> GatheredShard:
    """Memory for a shard: absent rows of a chunk hold the fill value."""
    matrices, scales = {}, {}
    for hook_point in layout.hook_points:
        chunk = layout.rows_per_chunk(hook_point)
        shape = -(-len(place.rows) // chunk) * chunk, hook_point.d_in
        fill = layout.stored.fill if layout.dtype == "int8" else torch.nan
        matrices[hook_point.name] = torch.full(shape, fill, dtype=layout.stored.torch)
        if layout.dtype == "int8":
            scales[hook_point.name] = torch.full((len(place.rows),), torch.nan)
    return GatheredShard(place, matrices, scales, quantisations, row_values, device)
