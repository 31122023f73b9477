"""saev's squared error, for activations so large that their squares overflow."""

import torch
from jaxtyping import Float
from torch import Tensor

from saeflow.train.seeds.axes import widened


def mean_squared_err(
    x_hat: Float[Tensor, "*batch d"], x: Float[Tensor, "*batch d"], norm: bool = False
) -> Float[Tensor, "*batch d"]:
    """Squared error of every element; the mean is left to the caller.

    Without `norm` a value is infinite only where the squared error itself is beyond
    the dtype. With `norm` it is divided by its row's Euclidean norm, not by the
    norm's square (for that, see `saeflow.train.metrics.FVU`), and neither the square
    nor the norm is ever formed, so that it is finite wherever the quotient is.
    A row does not depend on the others. Half precision is computed and given back
    as float32.

    Args:
        x_hat: reconstructions.
        x: what they should be.
        norm: divide by each row's norm. A row of zeros has none: its error is left
            undivided, so that it neither is infinite nor rules a mean.

    >>> import torch
    >>> x, x_hat = torch.full((1, 2), 3e28), torch.ones(1, 2)
    >>> mean_squared_err(x_hat, x, norm=True)
    tensor([[2.1213e+28, 2.1213e+28]])
    >>> mean_squared_err(torch.ones(1, 2), torch.full((1, 2), 3.0))
    tensor([[4., 4.]])
    """
    error = widened(x_hat) - widened(x)
    return error * (error / row_norms(widened(x))) if norm else error.square()


def row_norms(x: Float[Tensor, "*batch d"]) -> Float[Tensor, "*batch 1"]:
    """Euclidean norms, 1 for rows of zeros; of scaled rows, whose squares do not overflow."""
    largest = x.detach().abs().amax(-1, keepdim=True)
    scale = torch.where(largest > 0, largest, 1)
    norms = scale * torch.linalg.vector_norm(x / scale, dim=-1, keepdim=True)
    return torch.where(largest > 0, norms, 1)
