"""Dead latents get new weights in training (Bricken et al. 2023, "Towards Monosemanticity")."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from saeflow.train.optimizer import Updater
from saeflow.train.parameters import Parameters
from saeflow.train.seeds.activation_resampler import ActivationResampler
from saeflow.train.seeds.adam_with_reset import AdamWithReset
from saeflow.train.seeds.parameter_updates import apply_updates

ErrorsOf = Callable[[Float[Tensor, "batch d_in"]], Float[Tensor, " batch"]]
"""From normalised rows to how badly each is reconstructed now."""


@dataclass(frozen=True)
class Resampling:
    """The seed's resampler at work on one SAE.

    Decoder rows whose norms are free get the mean norm of those that live.

    Rows are normalised ones, chosen by the square of their error at the time of
    resampling, and taken relative to b_dec, so that no decoder row becomes a copy of it.

    Attributes:
        resampler: of one SAE, without a component axis.
        initial: what latents have beside weights and biases, before training.
    """

    resampler: ActivationResampler
    initial: Mapping[str, Tensor]

    @torch.no_grad()
    def replace(
        self, parameters: Parameters, updater: Updater, errors_of: ErrorsOf
    ) -> Int[Tensor, " replaced"]:
        """Give the dead latents new weights; which latents these were.

        Raises:
            BadInputError: there are more of them than rows to make weights of.
        """
        optimizer = updater.adam
        assert isinstance(optimizer, AdamWithReset)
        updates = self.resampler.compute(
            parameters.encoder.detach(), loss_of=errors_of, bias=parameters.b_dec.detach()
        )
        apply_updates(
            updates,
            encoder_weight=parameters.encoder,
            encoder_bias=parameters.b_enc,
            decoder_weight=parameters.W_dec,
            decoder_axis=-2,
            optimizer=optimizer,
        )
        latents = updates[0].dead_neuron_indices.to(parameters.encoder.device)
        if updater.settings.decoder == "free":
            _lengthen_as_others(parameters.W_dec, latents)
        for name, start in self.initial.items():
            if parameters.rules[name].trained:
                tensor = parameters.extra[name]
                tensor[latents] = start.to(tensor)[latents]
                optimizer.reset_neurons_state(tensor, latents, axis=0)
        updater.reset(latents)
        return latents


def _lengthen_as_others(rows: Float[Tensor, "d_sae d_out"], latents: Int[Tensor, " some"]) -> None:
    """Unit rows of some latents get the mean norm of the others', if there are any."""
    lives = torch.ones(len(rows), device=rows.device).index_fill_(0, latents, 0)
    mean = (rows.norm(dim=1) * lives).sum() / lives.sum().clamp_min(1)
    rows[latents] *= torch.where(lives.any(), mean, 1.0)
