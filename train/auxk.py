"""AuxK: dead latents learn what the living ones miss (Gao et al. 2024, appendix A.2)."""

from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor

from saeflow.train.architecture import Batch
from saeflow.train.parameters import Parameters
from saeflow.train.sparse import encode_topk


@dataclass(frozen=True)
class AuxK:
    """`alpha |e - z_dead W_dec|^2`, with `e = x - x_hat` taken as a constant.

    `z_dead` are a row's `k` largest pre-activations among the dead latents, as they
    are: a negative one is used too, since a latent whose input is always negative
    would otherwise get no gradient and stay dead. Only the dead latents' weights
    take part.

    Attributes:
        k: dead latents used for each row, at most.
        alpha: weight of the loss.
    """

    k: int
    alpha: float = 1 / 32

    def loss(
        self, parameters: Parameters, batch: Batch, reconstruction: Float[Tensor, "batch d_out"]
    ) -> Float[Tensor, ""] | float:
        """Mean over rows of the weighted auxiliary error; 0 where nothing is dead."""
        dead = batch.dead
        if dead is None or len(dead) == 0:
            return 0.0
        centred, bias = parameters.centred(batch.x)
        k = min(self.k, len(dead))
        codes = encode_topk(centred, parameters.encoder[dead], bias[dead], k, negative=True)
        missed = (batch.target - reconstruction).detach()
        squared_error = (codes.decode(parameters.W_dec[dead]) - missed).square().sum(1)
        return self.alpha * (batch.weights * squared_error).mean()


def auxiliary(aux_k: int | None, k: int) -> AuxK | None:
    """From the option: None is as many as are active otherwise; 0 is off."""
    return None if aux_k == 0 else AuxK(aux_k or k)
