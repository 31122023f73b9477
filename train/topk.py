"""TopK SAEs (Gao et al., "Scaling and evaluating sparse autoencoders", 2024, section 2.3)."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from saeflow.config import require
from saeflow.train.architecture import Batch, Inference, Objective, pre_activations
from saeflow.train.auxk import AuxK, auxiliary
from saeflow.train.config import TrainConfig
from saeflow.train.parameters import Parameters, Rule
from saeflow.train.sparse import Codes, encode_topk

DEFAULT_K = 32


@dataclass(frozen=True)
class TopK:
    """`z = relu(topk((x - b_dec) W_enc + b_enc))`, loss `|x - x_hat|^2` and AuxK's.

    Attributes:
        k: latents kept of each row.
        aux: the loss that revives dead latents; None for none.
    """

    k: int
    aux: AuxK | None = None
    name: ClassVar = "topk"
    rules: ClassVar[Mapping[str, Rule]] = {}
    renamed: ClassVar[Mapping[str, str]] = {}

    @property
    def revives(self) -> bool:
        """If there is an auxiliary loss."""
        return self.aux is not None

    def initial(self, d_sae: int) -> Mapping[str, Tensor]:  # noqa: ARG002  # it has none
        """Nothing beside the four."""
        return {}

    def activate(
        self, pre_activations: Float[Tensor, "*batch d_sae"]
    ) -> Float[Tensor, "*batch d_sae"]:
        """All but the k largest to zero, and those below zero too."""
        values, latents = pre_activations.topk(self.k, dim=-1)
        return torch.zeros_like(pre_activations).scatter(-1, latents, values.relu())

    def encode(
        self, parameters: Parameters, x: Float[Tensor, "*batch d_in"]
    ) -> Float[Tensor, "*batch d_sae"]:
        """Latents of rows."""
        return self.activate(pre_activations(parameters, x))

    def codes(self, parameters: Parameters, batch: Batch) -> Codes:
        """The active latents of a training batch."""
        centred, bias = parameters.centred(batch.x)
        return encode_topk(centred, parameters.encoder, bias, self.k, known=batch.known)

    def penalty(self, codes: Codes, parameters: Parameters, batch: Batch) -> float:  # noqa: ARG002  # its k is fixed
        """None: how many latents are active needs no encouragement."""
        return 0.0

    def renewed(
        self,
        codes: Codes,  # noqa: ARG002  # it keeps no state
        parameters: Parameters,  # noqa: ARG002
        batch: Batch,  # noqa: ARG002
    ) -> Mapping[str, Tensor]:
        """No state."""
        return {}

    def objective(self, parameters: Parameters, batch: Batch) -> Objective:
        """Mean over rows of the weighted squared error, and the auxiliary loss."""
        codes = self.codes(parameters, batch)
        reconstruction = codes.decode(parameters.W_dec) + parameters.offset(batch.x)
        loss = batch.error(reconstruction)
        if self.aux is not None:
            loss = loss + self.aux.loss(parameters, batch, reconstruction)
        return Objective(loss, reconstruction.detach(), codes.fired())

    def trained(self, parameters: Parameters) -> tuple[Inference, Parameters]:
        """A TopK SAE."""
        return self, parameters

    def to_cfg(self) -> dict[str, Any]:
        """SAELens's `topk`, without its scaling by decoder norms: ours are one."""
        return {"architecture": "topk", "k": self.k, "rescale_acts_by_decoder_norm": False}


def from_cfg(cfg: Mapping[str, Any]) -> TopK:
    """The inverse of `TopK.to_cfg`."""
    k = int(cfg["k"])
    if not 0 < k <= int(cfg.get("d_sae", k)):
        raise ValueError(f"k is {k}, but d_sae is {cfg['d_sae']}")
    return TopK(k)


def from_config(config: TrainConfig, d_in: int, d_sae: int) -> TopK:  # noqa: ARG001  # as every maker
    """From `--k` and `--aux-k`."""
    k = checked_k(config, d_sae)
    return TopK(k, auxiliary(config.aux_k, k))


def checked_k(config: TrainConfig, d_sae: int) -> int:
    """`--k`, or its default.

    Raises:
        BadInputError: there are not so many latents.
    """
    k = config.k or DEFAULT_K
    require(k <= d_sae, f"--k {k} is more than the {d_sae} latents: lower --k or raise --d-sae")
    return k
