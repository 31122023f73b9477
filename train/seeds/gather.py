"""Lists of items across processes, of which some may have none."""

from typing import Any

import torch
from jaxtyping import Shaped
from torch import Tensor

from saeflow.train.lean import gather_all_tensors

_DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
_MOST_AXES = 3


def gather_items(items: Shaped[Tensor, "*shape"], group: Any = None) -> list[Tensor]:
    """Every process's items, in the order of their ranks: a `dist_sync_fn` for a metric.

    A process without any item knows neither their width nor their dtype. torchmetrics
    1.9 sends an empty vector for it, on which gloo aborts the process; here it first
    learns from the others what its nothing should look like.
    """
    if items.is_floating_point() and items.ndim:
        items = _like_the_others(items, group)
    gathered: list[Tensor] = gather_all_tensors(items, group)
    return gathered


def _like_the_others(items: Tensor, group: Any) -> Tensor:
    padding = (_MOST_AXES - items.ndim) * [-1]
    header = torch.tensor([_DTYPES.index(items.dtype), *items.shape, *padding], device=items.device)
    headers = [each.tolist() for each in gather_all_tensors(header, group)]
    dtype, *shape = max(headers, key=lambda header: header[1])
    if len(items) or not shape[0]:
        return items
    width = [size for size in shape[1:] if size >= 0]
    return items.new_zeros((0, *width), dtype=_DTYPES[dtype])
