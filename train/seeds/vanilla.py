"""saev's first objective: mean squared error and an L1 penalty."""

from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor, nn

from saeflow.train.seeds.squared_error import mean_squared_err


@dataclass(frozen=True, slots=True)
class Vanilla:
    """Settings of `VanillaObjective`.

    Attributes:
        sparsity_coeff: weight of the L1 penalty.
    """

    sparsity_coeff: float = 4e-4


@dataclass(frozen=True, slots=True)
class VanillaLoss:
    """The terms of one batch; each is a scalar with its graph.

    Attributes:
        mse: mean over items and dimensions of the squared error.
        sparsity: the penalty: coefficient times `l1`.
        l0: mean over items of the number of latents that are not zero.
        l1: mean over items of the sum of absolute values.
    """

    mse: Float[Tensor, ""]
    sparsity: Float[Tensor, ""]
    l0: Float[Tensor, ""]
    l1: Float[Tensor, ""]

    @property
    def loss(self) -> Float[Tensor, ""]:
        """What to go downhill on."""
        return self.mse + self.sparsity

    def metrics(self) -> dict[str, float]:
        """All of it as plain numbers. Waits for the device."""
        return {
            "loss": self.loss.item(),
            "mse": self.mse.item(),
            "l0": self.l0.item(),
            "l1": self.l1.item(),
            "sparsity": self.sparsity.item(),
        }


def l0_norm(f_x: Float[Tensor, "batch d_sae"]) -> Float[Tensor, ""]:
    """Mean over items of the number of latents that are not zero."""
    return (f_x != 0).float().sum(1).mean()


def l1_norm(f_x: Float[Tensor, "batch d_sae"]) -> Float[Tensor, ""]:
    """Mean over items of the sum of absolute values."""
    return f_x.abs().sum(1).mean()


class VanillaObjective(nn.Module):
    """Mean squared error plus `sparsity_coeff` times the L1 norm of the latents.

    Args:
        cfg: its settings.

    >>> import torch
    >>> objective = VanillaObjective(Vanilla(sparsity_coeff=0.5))
    >>> x, f_x, x_hat = torch.ones(1, 2), torch.tensor([[2.0, 0.0, 2.0]]), torch.zeros(1, 2)
    >>> objective(x, f_x, x_hat).metrics()
    {'loss': 3.0, 'mse': 1.0, 'l0': 2.0, 'l1': 4.0, 'sparsity': 2.0}
    """

    def __init__(self, cfg: Vanilla | None = None) -> None:
        super().__init__()
        self.cfg = cfg or Vanilla()

    def forward(
        self,
        x: Float[Tensor, "batch d"],
        f_x: Float[Tensor, "batch d_sae"],
        x_hat: Float[Tensor, "batch d"],
        *,
        progress: float = 1.0,
    ) -> VanillaLoss:
        """The loss of a batch.

        Args:
            x: what the SAE was given.
            f_x: its latents.
            x_hat: its reconstruction.
            progress: through the sparsity warm-up, from 0 to 1: the penalty's weight.
        """
        l1 = l1_norm(f_x)
        return VanillaLoss(
            mse=mean_squared_err(x_hat, x).mean(),
            sparsity=self.cfg.sparsity_coeff * progress * l1,
            l0=l0_norm(f_x),
            l1=l1,
        )
