"""A batch in parts, one after the other, to save memory: what they give is put together again."""

from collections.abc import Iterator, Sequence
from dataclasses import replace

import torch

from saeflow.train.architecture import Batch, Objective


def parts_of(batch: Batch, n_parts: int) -> Iterator[tuple[Batch, float]]:
    """Parts of a batch, as equal as can be, and which share of its rows each has."""
    if n_parts == 1:
        yield batch, 1.0
        return
    pieces = (batch.x, batch.target, batch.weights)
    for x, target, weights in zip(*(p.tensor_split(n_parts) for p in pieces), strict=True):
        yield replace(batch, x=x, target=target, weights=weights), len(x) / len(batch.x)


def together(objectives: Sequence[Objective], shares: Sequence[float]) -> Objective:
    """What a batch's parts say of it: losses and new state are weighted means, counts sums."""
    if len(objectives) == 1:
        return objectives[0]
    weighted = list(zip(objectives, shares, strict=True))
    return Objective(
        loss=torch.stack([o.loss.detach() * share for o, share in weighted]).sum(),
        reconstruction=torch.cat([o.reconstruction for o in objectives]),
        fired=torch.stack([o.fired for o in objectives]).sum(0),
        state={
            name: torch.stack([o.state[name] * share for o, share in weighted]).sum(0)
            for name in objectives[0].state
        },
    )
