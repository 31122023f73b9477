"""Silent latents are pulled up until a row makes them active.

As in "Circuits Updates", Anthropic, January 2025, where it goes on with those that are
active already: here it stops, so that no latent is pulled to where it is always active.
"""

from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor

from saeflow.train.architecture import Batch
from saeflow.train.config import TrainConfig
from saeflow.train.encoded import encoded
from saeflow.train.parameters import Parameters

WEIGHT = 1.0


@dataclass(frozen=True)
class Silent:
    """`weight sum |pre_i|`, over the latents i that were silent for long, and are in all the batch.

    What is active nowhere has no gradient, neither of an error nor of an L1 penalty, and
    would stay as it is.

    Attributes:
        weight: of the loss.
    """

    weight: float = WEIGHT

    def loss(
        self,
        parameters: Parameters,
        batch: Batch,
        reconstruction: Float[Tensor, "batch d_out"],  # noqa: ARG002  # as AuxK's
    ) -> Float[Tensor, ""] | float:
        """Mean over rows of the weighted sum; 0 where nothing is dead."""
        dead = batch.dead
        if dead is None or len(dead) == 0:
            return 0.0
        centred, bias = parameters.centred(batch.x)
        below = -encoded(centred, parameters.encoder[dead], bias[dead])
        still = (below.detach() >= 0).all(0)
        return self.weight * (batch.weights * (below * still).sum(1)).mean()


def revival(config: TrainConfig) -> Silent | None:
    """From `--revive`; not given, silent latents are left to the resampler, if there is one."""
    usual = 0.0 if config.resample else WEIGHT
    weight = usual if config.revive is None else config.revive
    return Silent(weight) if weight else None
