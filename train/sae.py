"""A trained SAE: encode and decode rows in the source model's own units."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from saeflow.errors import BadInputError
from saeflow.train.architecture import Inference
from saeflow.train.architectures import LOADERS
from saeflow.train.parameters import Parameters


@dataclass(frozen=True)
class SAE:
    """A sparse autoencoder.

    Attributes:
        architecture: its kind and settings.
        parameters: its tensors; decoder rows have unit norm.
        cfg: the cfg.json that it came from, or will be written with.
        mean: mean of the ordinary rows that it was trained on, the reference of
            its variances; None where it is not known.
    """

    architecture: Inference
    parameters: Parameters
    cfg: Mapping[str, Any]
    mean: Float[Tensor, " d_in"] | None = None

    @property
    def d_in(self) -> int:
        """Width of a row."""
        return self.parameters.d_in

    @property
    def d_sae(self) -> int:
        """Latents."""
        return self.parameters.d_sae

    @property
    def hook_point(self) -> str:
        """Where in the source model its rows are from."""
        return str(self.cfg["metadata"]["hook_name"])

    @torch.inference_mode()
    def encode(self, x: Float[Tensor, "*batch d_in"]) -> Float[Tensor, "*batch d_sae"]:
        """Latents of rows, dense, in the parameters' dtype."""
        return self.architecture.encode(self.parameters, x.to(self.parameters.encoder.dtype))

    @torch.inference_mode()
    def decode(self, latents: Float[Tensor, "*batch d_sae"]) -> Float[Tensor, "*batch d_in"]:
        """Rows from latents."""
        return latents @ self.parameters.W_dec + self.parameters.b_dec

    def __call__(self, x: Float[Tensor, "*batch d_in"]) -> Float[Tensor, "*batch d_in"]:
        """Reconstructions of rows."""
        return self.decode(self.encode(x))

    def to(self, device: torch.device) -> "SAE":
        """Move the parameters, in place, and return the SAE."""
        self.parameters.to(device)
        return self


def architecture_of(cfg: Mapping[str, Any], where: str) -> Inference:
    """The architecture that a cfg.json names.

    Raises:
        BadInputError: it names none that saeflow knows, or lacks a setting.
    """
    name = str(cfg.get("architecture"))
    if name not in LOADERS:
        raise BadInputError(
            f"{where} holds an SAE of architecture {name}: known are {', '.join(LOADERS)}"
        )
    try:
        return LOADERS[name](cfg)
    except (KeyError, TypeError, ValueError) as error:
        raise BadInputError(f"{where} has no usable settings for {name}: {error!r}") from error
