"""What distinguishes one kind of SAE from another: activation, objective, name on disk."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

from jaxtyping import Float
from torch import Tensor

from saeflow.train.parameters import Parameters


@dataclass(frozen=True)
class Objective:
    """What one training step needs to know of a batch.

    Attributes:
        loss: scalar to go downhill on; carries the graph.
        reconstruction: the batch as the SAE gives it back, without a graph.
        fired: for each latent, in how many rows it was above zero.
    """

    loss: Float[Tensor, ""]
    reconstruction: Float[Tensor, "batch d_in"]
    fired: Float[Tensor, " d_sae"]


@runtime_checkable
class Architecture(Protocol):
    """One kind of SAE. An implementation is a frozen dataclass of its settings."""

    @property
    def name(self) -> str:
        """Its name on the command line."""
        ...

    def activate(
        self, pre_activations: Float[Tensor, "*batch d_sae"]
    ) -> Float[Tensor, "*batch d_sae"]:
        """Latents from pre-activations, as at inference."""
        ...

    def objective(
        self,
        parameters: Parameters,
        x: Float[Tensor, "batch d_in"],
        weights: Float[Tensor, " batch"],
        progress: float,
    ) -> Objective:
        """The training loss of a batch.

        Args:
            parameters: of the SAE.
            x: normalised rows.
            weights: how much each row's error counts, at most 1.
            progress: from 0 to 1 over the warm-up, then 1.
        """
        ...

    def to_cfg(self) -> dict[str, Any]:
        """Its entries in cfg.json, `architecture` among them, as SAELens 6 names them."""
        ...


Loader = Callable[[Mapping[str, Any]], Architecture]
"""Makes an architecture from a cfg.json."""
