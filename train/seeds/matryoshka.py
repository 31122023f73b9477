"""saev's Matryoshka objective: every prefix of the dictionary is to reconstruct the input.

Bussmann et al., "Learning Multi-Level Features with Matryoshka Sparse Autoencoders", 2025.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int, Int64
from torch import Tensor, nn

from saeflow.errors import BadInputError
from saeflow.train.seeds.auxiliary import AuxK, auxiliary_loss
from saeflow.train.seeds.prefixes import decode_prefixes, sample_prefixes
from saeflow.train.seeds.squared_error import mean_squared_err
from saeflow.train.seeds.vanilla import l0_norm, l1_norm


@dataclass(frozen=True, slots=True)
class Matryoshka:
    """Settings of `MatryoshkaObjective`.

    Attributes:
        n_prefixes: lengths drawn for each training batch, the whole dictionary among them.
        sparsity_coeff: weight of the L1 penalty; 0 for TopK and its kind.
        dead_threshold_tokens: a latent is dead after so many training rows without it.
        aux: settings of the auxiliary loss, for TopK and its kind; None for none.
    """

    n_prefixes: int = 10
    sparsity_coeff: float = 4e-4
    dead_threshold_tokens: int = 10_000_000
    aux: AuxK | None = None

    def __post_init__(self) -> None:
        if self.n_prefixes < 1:
            raise BadInputError(f"n_prefixes is {self.n_prefixes}: give at least 1")


@dataclass(frozen=True, slots=True)
class MatryoshkaLoss:
    """The terms of one batch; each is a scalar, those of the loss with their graph.

    Attributes:
        mse: mean over items, prefixes and dimensions of the squared error.
        sparsity: the penalty: coefficient times `l1`.
        l0: mean over items of the latents that are not zero, of the whole dictionary.
        l1: mean over items of the sum of absolute values, of the whole dictionary.
        aux: the auxiliary loss.
        n_dead: latents that were dead in this batch.
        mse_whole: the part of `mse` that the whole dictionary has.
    """

    mse: Float[Tensor, ""]
    sparsity: Float[Tensor, ""]
    l0: Float[Tensor, ""]
    l1: Float[Tensor, ""]
    aux: Float[Tensor, ""]
    n_dead: Int[Tensor, ""]
    mse_whole: Float[Tensor, ""]

    @property
    def loss(self) -> Float[Tensor, ""]:
        """What to go downhill on."""
        return self.mse + self.sparsity + self.aux

    def metrics(self) -> dict[str, float | int]:
        """All of it as plain numbers. Waits for the device."""
        return {
            "loss": self.loss.item(),
            "mse": self.mse.item(),
            "mse_whole": self.mse_whole.item(),
            "l0": self.l0.item(),
            "l1": self.l1.item(),
            "sparsity": self.sparsity.item(),
            "aux": self.aux.item(),
            "n_dead": self.n_dead.item(),
        }


class MatryoshkaObjective(nn.Module):
    """Mean squared error over nested prefixes of the latents, a penalty, and AuxK.

    In training, prefix lengths are drawn for each batch (`sample_prefixes`), and the
    rows since each latent was last active are counted; both are the same in every run
    with the same generator, and the counts are in the `state_dict`. In evaluation
    (`.eval()`) the whole dictionary is the only prefix, so that `mse` is not noisy and
    means the same as the `mse` of `VanillaObjective`, and nothing is counted.

    Args:
        cfg: its settings.
        generator: for the prefixes, on the CPU; None for torch's global one.

    >>> import torch
    >>> objective = MatryoshkaObjective(Matryoshka(sparsity_coeff=0.5))
    >>> x, f_x, W_dec = torch.ones(1, 2), torch.tensor([[0.5, 1.0]]), torch.eye(2)
    >>> prefixes = torch.tensor([1, 2])  # reconstructions (0.5, 0) and (0.5, 1)
    >>> objective(x, f_x, W_dec, torch.zeros(2), prefixes=prefixes).mse
    tensor(0.3750)
    """

    def __init__(
        self, cfg: Matryoshka | None = None, generator: torch.Generator | None = None
    ) -> None:
        super().__init__()
        self.cfg = cfg or Matryoshka()
        self.generator = generator
        self.rows_since_active: Int64[Tensor, " d_sae"]
        # Its length is known at the first batch, so it is saved as extra state, not as a buffer.
        self.register_buffer(
            "rows_since_active", torch.zeros(0, dtype=torch.int64), persistent=False
        )

    def get_extra_state(self) -> Int64[Tensor, " d_sae"]:
        """The counts, for the `state_dict`."""
        return self.rows_since_active

    def set_extra_state(self, state: Int64[Tensor, " d_sae"]) -> None:
        """The counts, from a `state_dict`."""
        self.rows_since_active = state.to(self.rows_since_active.device, copy=True)

    def forward(
        self,
        x: Float[Tensor, "batch d"],
        f_x: Float[Tensor, "batch d_sae"],
        W_dec: Float[Tensor, "d_sae d"],
        b_dec: Float[Tensor, " d"],
        *,
        h_x: Float[Tensor, "batch d_sae"] | None = None,
        prefixes: Int64[Tensor, " n_prefixes"] | None = None,
        progress: float = 1.0,
    ) -> MatryoshkaLoss:
        """The loss of a batch.

        Args:
            x: what the SAE was given.
            f_x: its latents.
            W_dec: its decoder rows.
            b_dec: its decoder bias.
            h_x: its pre-activations, needed for the auxiliary loss.
            prefixes: lengths in rising order, the last d_sae; None to draw them.
            progress: through the sparsity warm-up, from 0 to 1: the penalty's weight.

        Raises:
            BadInputError: more prefixes than latents; no `h_x` for the auxiliary loss.
        """
        if prefixes is None:
            prefixes = self._prefixes(f_x.shape[1])
        x_hats = decode_prefixes(f_x, W_dec, b_dec, prefixes)
        errors = mean_squared_err(x_hats, x.unsqueeze(1).expand_as(x_hats))
        l1 = l1_norm(f_x)
        dead = self._count(f_x) >= self.cfg.dead_threshold_tokens
        return MatryoshkaLoss(
            mse=errors.mean(),
            sparsity=self.cfg.sparsity_coeff * progress * l1,
            l0=l0_norm(f_x),
            l1=l1,
            aux=self._aux(x - x_hats[:, -1], h_x, dead, W_dec),
            n_dead=dead.sum(),
            mse_whole=errors[:, -1].mean(),
        )

    def _prefixes(self, d_sae: int) -> Int64[Tensor, " n_prefixes"]:
        n_prefixes = self.cfg.n_prefixes if self.training else 1
        return sample_prefixes(d_sae, n_prefixes, generator=self.generator)

    def _count(self, f_x: Float[Tensor, "batch d_sae"]) -> Int64[Tensor, " d_sae"]:
        """Rows since each latent was last active, with this batch where it is training."""
        if not len(self.rows_since_active):
            self.rows_since_active = torch.zeros(f_x.shape[1], dtype=torch.int64, device=f_x.device)
        if self.training:
            idle = ~(f_x != 0).any(0)
            self.rows_since_active = (self.rows_since_active + len(f_x)) * idle
        return self.rows_since_active

    def _aux(
        self,
        error: Float[Tensor, "batch d"],
        h_x: Float[Tensor, "batch d_sae"] | None,
        dead: torch.Tensor,
        W_dec: Float[Tensor, "d_sae d"],
    ) -> Float[Tensor, ""]:
        if self.cfg.aux is None or not self.training:
            return error.new_zeros(())
        if h_x is None:
            raise BadInputError("h_x is missing: the auxiliary loss needs the pre-activations")
        return auxiliary_loss(error, h_x, dead, W_dec, self.cfg.aux)
