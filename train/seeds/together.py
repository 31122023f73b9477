"""What several processes of one training run know together; with one process, what it knows."""

from jaxtyping import Float, Int64, Shaped
from torch import Tensor, distributed

from saeflow.train.seeds.gather import gather_items


def n_processes() -> int:
    """How many processes train together."""
    return distributed.get_world_size() if _several() else 1


def rank() -> int:
    """Which of them this is, from 0."""
    return distributed.get_rank() if _several() else 0


def summed(values: Shaped[Tensor, "*shape"]) -> Shaped[Tensor, "*shape"]:
    """The sum over all processes, in each of them.

    >>> import torch
    >>> summed(torch.tensor([1, 2]))
    tensor([1, 2])
    """
    values = values.clone()
    if _several():
        distributed.all_reduce(values)
    return values


def gathered(items: Float[Tensor, "items width"]) -> list[Float[Tensor, "_ width"]]:
    """Every process's items, by rank; they may have different numbers of them."""
    return gather_items(items) if _several() else [items]


def of_the_first(values: Int64[Tensor, "*shape"]) -> Int64[Tensor, "*shape"]:
    """What the first process has, in each of them; all must have the same shape."""
    if _several():
        values = values.clone()
        distributed.broadcast(values, src=0)
    return values


def _several() -> bool:
    return distributed.is_available() and distributed.is_initialized()
