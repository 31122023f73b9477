"""The component axis: always there inside, optional at the edge.

A component is one of several SAEs that are looked at together. Activations are
`(batch, components, width)`, and `(batch, width)` where there is one.
"""

import torch
from jaxtyping import Float, Shaped
from torch import Tensor

from saeflow.errors import BadInputError


def checked_components(num_components: int | None) -> int:
    """How many components a metric keeps room for; None means one, without an axis.

    Raises:
        BadInputError: it is not a positive number.
    """
    if num_components is not None and num_components < 1:
        raise BadInputError(f"num_components is {num_components}: give at least 1, or None")
    return num_components or 1


def with_component_axis(
    values: Shaped[Tensor, " batch *rest"], num_components: int | None, *, width_axes: int = 1
) -> Shaped[Tensor, "batch components *width"]:
    """Values with a component axis, whether they came with one or not.

    Args:
        values: (batch, [components], *width).
        num_components: how many there must be; None and 1 take both forms.
        width_axes: how many axes follow the component axis.

    Raises:
        BadInputError: the components are not as many as `num_components` says.
    """
    expected = num_components or 1
    shape = tuple(values.shape)
    if values.ndim == 1 + width_axes:
        values = values.unsqueeze(1)
    if values.ndim != 2 + width_axes or values.shape[1] != expected:
        raise BadInputError(
            f"activations of shape {shape} do not hold {expected} component(s): the axis after "
            "the batch is the component axis, and num_components says how long it is"
        )
    return values


def at_the_edge(
    values: Shaped[Tensor, " components *width"], num_components: int | None
) -> Shaped[Tensor, "*components_and_width"]:
    """Values as they are handed out: without the axis where the metric was made without one."""
    return values[0] if num_components is None else values


def widened(values: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
    """Half precision as float32, in which a square does not overflow; the rest as it is."""
    return values.to(torch.promote_types(values.dtype, torch.float32))
