"""New weights for dead latents, and how they are put in place."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from saeflow.train.seeds.adam_with_reset import AdamWithReset
from saeflow.train.seeds.late_start import part


@dataclass(frozen=True)
class ParameterUpdateResults:
    """What the dead latents of one component get; the seed's names and shapes.

    Attributes:
        dead_neuron_indices: the dead latents; always a vector, of none or one too.
        dead_encoder_weight_updates: their encoder rows.
        dead_encoder_bias_updates: their encoder biases: zeros.
        dead_decoder_weight_updates: their decoder columns, of unit norm.
    """

    dead_neuron_indices: Int64[Tensor, " dead"]
    dead_encoder_weight_updates: Float[Tensor, "dead width"]
    dead_encoder_bias_updates: Float[Tensor, " dead"]
    dead_decoder_weight_updates: Float[Tensor, "width dead"]


@torch.no_grad()
def apply_updates(
    updates: Sequence[ParameterUpdateResults],
    *,
    encoder_weight: Tensor,
    encoder_bias: Tensor,
    decoder_weight: Tensor,
    decoder_axis: int = -1,
    optimizer: AdamWithReset | None = None,
) -> None:
    """Write the updates of all components into the weights, and reset the optimizer there.

    Call it between an optimizer's step and the next forward pass. A gradient that is
    still there is of the latents that are replaced, so it is zeroed for them. Other
    latents, and the bias that is subtracted from the input, keep every bit.

    Args:
        updates: of each component.
        encoder_weight: ([components], latents, width).
        encoder_bias: ([components], latents).
        decoder_weight: ([components], width, latents), or with the last two the other
            way round.
        decoder_axis: of latents: -1, or -2 where a latent's decoder vector is a row.
        optimizer: what trains them, if its moments are to be reset.

    >>> import torch
    >>> new = torch.tensor([[0.6, 0.8]])
    >>> updates = [ParameterUpdateResults(torch.tensor([2]), new / 5, torch.zeros(1), new.T)]
    >>> encoder, bias = torch.nn.Parameter(torch.ones(3, 2)), torch.nn.Parameter(torch.ones(3))
    >>> decoder = torch.nn.Parameter(torch.ones(2, 3))
    >>> apply_updates(
    ...     updates, encoder_weight=encoder, encoder_bias=bias, decoder_weight=decoder
    ... )
    >>> decoder.tolist() == torch.tensor([[1.0, 1.0, 0.6], [1.0, 1.0, 0.8]]).tolist()
    True
    """
    with_axis = encoder_bias.ndim == 2
    for number, update in enumerate(updates):
        component = number if with_axis else None
        columns = update.dead_decoder_weight_updates
        for parameter, values, axis in (
            (encoder_weight, update.dead_encoder_weight_updates, -2),
            (encoder_bias, update.dead_encoder_bias_updates, -1),
            (decoder_weight, columns if decoder_axis == -1 else columns.T, decoder_axis),
        ):
            latents = update.dead_neuron_indices.to(parameter.device)
            part(parameter, component).index_copy_(axis, latents, values.to(parameter))
            if parameter.grad is not None:
                part(parameter.grad, component).index_fill_(axis, latents, 0)
            if optimizer is not None:
                optimizer.reset_neurons_state(parameter, latents, axis, component)


def n_resampled(updates: Iterable[ParameterUpdateResults]) -> list[int]:
    """How many latents of each component get new weights, for a log."""
    return [len(update.dead_neuron_indices) for update in updates]
