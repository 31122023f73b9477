"""BatchTopK SAEs (Bussmann et al., "BatchTopK Sparse Autoencoders", 2024)."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from saeflow.train.architecture import Batch, Inference, Objective
from saeflow.train.auxk import AuxK, auxiliary
from saeflow.train.config import TrainConfig
from saeflow.train.jumprelu import JumpReLU
from saeflow.train.parameters import Parameters, Rule
from saeflow.train.sparse import Codes, encode_batchtopk
from saeflow.train.topk import checked_k

_MEMORY = 20
"""Steps over which the threshold is averaged, once there were so many; it moves in training."""


@dataclass(frozen=True)
class BatchTopK:
    """The `k * batch` largest of a batch's `relu((x - b_dec) W_enc + b_enc)`, wherever they are.

    The loss is `|x - x_hat|^2` and AuxK's. Rows so compete for latents. Massive rows,
    which count with a weight below 1, don't: a few would take most. They have the latents
    that are as active as the weakest of the others, as many as that may be.

    What is active must not depend on the rest of a batch at inference. So the
    running mean of the smallest activation that a batch keeps becomes the one
    threshold of a JumpReLU SAE.

    Attributes:
        k: latents kept of each row, on average.
        aux: the loss that revives dead latents; None for none.
    """

    k: int
    aux: AuxK | None = None
    name: ClassVar = "batchtopk"
    rules: ClassVar[Mapping[str, Rule]] = {"threshold": Rule(axes=(), trained=False)}

    @property
    def revives(self) -> bool:
        """If there is an auxiliary loss."""
        return self.aux is not None

    def initial(self, d_sae: int) -> Mapping[str, Tensor]:  # noqa: ARG002  # one for all latents
        """A threshold of zero: no batch has been seen."""
        return {"threshold": torch.zeros(())}

    def codes(self, parameters: Parameters, batch: Batch) -> Codes:
        """The active latents of a training batch."""
        centred, bias = parameters.centred(batch.x)
        return encode_batchtopk(
            centred, parameters.encoder, bias, self.k, batch.weights, known=batch.known
        )

    def penalty(self, codes: Codes, parameters: Parameters, batch: Batch) -> float:  # noqa: ARG002  # its k is fixed
        """None: how many latents are active needs no encouragement."""
        return 0.0

    def renewed(
        self, codes: Codes, parameters: Parameters, batch: Batch
    ) -> Mapping[str, Float[Tensor, ""]]:
        """The threshold after a batch: a mean over the first steps, then over the last ones."""
        values = F.pad(codes.values.detach(), (0, 1))  # there may be none
        smallest = torch.where(values > 0, values, torch.inf).amin()
        before = parameters.state["threshold"]
        after = before.lerp(smallest.to(before.dtype), 1 / min(batch.step + 1, _MEMORY))
        return {"threshold": torch.where(smallest.isfinite(), after, before)}

    def objective(self, parameters: Parameters, batch: Batch) -> Objective:
        """Mean over rows of the weighted squared error, and the auxiliary loss."""
        codes = self.codes(parameters, batch)
        reconstruction = codes.decode(parameters.W_dec) + parameters.offset(batch.x)
        loss = batch.error(reconstruction)
        if self.aux is not None:
            loss = loss + self.aux.loss(parameters, batch, reconstruction)
        state = self.renewed(codes, parameters, batch)
        return Objective(loss, reconstruction.detach(), codes.fired(), state)

    def trained(self, parameters: Parameters) -> tuple[Inference, Parameters]:
        """A JumpReLU SAE, all of whose thresholds are the tracked one."""
        threshold = parameters.state["threshold"].detach()
        extra = {"threshold": threshold.expand(parameters.d_sae).clone()}
        return JumpReLU(), parameters.with_more(extra, JumpReLU.rules)


def from_config(config: TrainConfig, d_in: int, d_sae: int) -> BatchTopK:  # noqa: ARG001  # as every maker
    """From `--k` and `--aux-k`."""
    k = checked_k(config, d_sae)
    return BatchTopK(k, auxiliary(config.aux_k, k))
