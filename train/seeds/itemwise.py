"""The seeds' loss of each activation vector, as plain functions: what a training loop calls.

They keep no state and no graph beyond their result.
"""

from jaxtyping import Float
from torch import Tensor

from saeflow.errors import BadInputError
from saeflow.train.seeds.axes import widened


def absolute_sum(
    learned_activations: Float[Tensor, "batch *component learned"],
) -> Float[Tensor, " batch *component"]:
    """L1 norm of the learned activations of each item.

    >>> import torch
    >>> absolute_sum(torch.tensor([[1.0, 0.0, -2.0]]))
    tensor([3.])
    """
    return widened(learned_activations).abs().sum(-1)


def mean_square(
    decoded_activations: Float[Tensor, "batch *component width"],
    source_activations: Float[Tensor, "batch *component width"],
) -> Float[Tensor, " batch *component"]:
    """Mean over the width, not the sum, of the squared error of each item.

    Raises:
        BadInputError: the shapes differ.

    >>> import torch
    >>> mean_square(torch.tensor([[1.0, 3.0]]), torch.tensor([[1.0, 1.0]]))
    tensor([2.])
    """
    if decoded_activations.shape != source_activations.shape:
        raise BadInputError(
            f"decoded activations of shape {tuple(decoded_activations.shape)} are not those of "
            f"source activations of shape {tuple(source_activations.shape)}: give the same rows"
        )
    return (widened(decoded_activations) - widened(source_activations)).square().mean(-1)


def sparse_autoencoder_loss(
    source_activations: Float[Tensor, "batch *component width"],
    learned_activations: Float[Tensor, "batch *component learned"],
    decoded_activations: Float[Tensor, "batch *component width"],
    l1_coefficient: float = 0.001,
) -> Float[Tensor, " batch *component"]:
    """`l1_coefficient * absolute_sum + mean_square`, of each item.

    >>> import torch
    >>> source, learned = torch.tensor([[1.0, 1.0]]), torch.tensor([[2.0, 0.0, 2.0]])
    >>> sparse_autoencoder_loss(source, learned, torch.tensor([[1.0, 3.0]]), l1_coefficient=0.5)
    tensor([4.])
    """
    penalty = l1_coefficient * absolute_sum(learned_activations)
    return penalty + mean_square(decoded_activations, source_activations)
