"""What distinguishes one kind of SAE from another.

An `Architecture` is how an SAE is trained, an `Inference` what is left of it
afterwards: how it encodes, and what its folder is. Some are both; others become
another kind, as a BatchTopK SAE becomes a JumpReLU one. Every inference decodes
by `latents @ W_dec + b_dec`. Neither knows whether it is of an SAE, a transcoder or
a crosscoder: that is in the parameters. docs/architectures.md shows how to add one.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol, cast, runtime_checkable

from jaxtyping import Float, Int
from torch import Tensor

from saeflow.train.config import TrainConfig
from saeflow.train.parameters import Parameters, Rule


@dataclass(frozen=True)
class Batch:
    """What a training step works on.

    Attributes:
        x: normalised rows.
        weights: how much each row's error counts, more than 0 and at most 1.
        warm_up: from 0 to 1 over the warm-up, then 1.
        step, n_steps: which step, from 0, of how many.
        dead: int64, the latents that were silent for long, as of a few steps ago;
            None if nobody has looked.
        target: what is to be reconstructed, normalised; `x` if not given.
        known: the pre-activations, where they were computed together with those of
            other SAEs; without a graph.
    """

    x: Float[Tensor, "batch d_in"]
    weights: Float[Tensor, " batch"]
    warm_up: float = 1.0
    step: int = 0
    n_steps: int = 1
    dead: Int[Tensor, " dead"] | None = None
    target: Float[Tensor, "batch d_out"] = cast("Tensor", None)  # noqa: RUF009  # replaced below
    known: Float[Tensor, "batch d_sae"] | None = None

    def __post_init__(self) -> None:
        if cast("Tensor | None", self.target) is None:
            object.__setattr__(self, "target", self.x)

    def error(self, reconstruction: Float[Tensor, "batch d_out"]) -> Float[Tensor, ""]:
        """Mean over rows of the weighted squared error."""
        return (self.weights * (reconstruction - self.target).square().sum(1)).mean()


@dataclass(frozen=True)
class Objective:
    """What one training step needs to know of a batch.

    Attributes:
        loss: scalar to go downhill on; carries the graph.
        reconstruction: the batch's targets as the SAE gives them back, without a graph.
        fired: for each latent, in how many rows it was above zero.
        state: new values of `Parameters.state`, where it changes.
    """

    loss: Float[Tensor, ""]
    reconstruction: Float[Tensor, "batch d_out"]
    fired: Float[Tensor, " d_sae"]
    state: Mapping[str, Tensor] = field(default_factory=dict)


@runtime_checkable
class Inference(Protocol):
    """How a trained SAE encodes, and what its folder holds."""

    @property
    def rules(self) -> Mapping[str, Rule]:
        """The tensors beside the four, by name; in the folder, too."""
        ...

    @property
    def renamed(self) -> Mapping[str, str]:
        """What a tensor is called in the folder, where that is not its name here."""
        ...

    def encode(
        self, parameters: Parameters, x: Float[Tensor, "*batch d_in"]
    ) -> Float[Tensor, "*batch d_sae"]:
        """Latents of rows, dense."""
        ...

    def to_cfg(self) -> dict[str, Any]:
        """Its entries in cfg.json, `architecture` among them, as SAELens 6 names them."""
        ...


@runtime_checkable
class Architecture(Protocol):
    """How one kind of SAE is trained. An implementation is a frozen dataclass of its settings."""

    @property
    def name(self) -> str:
        """Its name on the command line."""
        ...

    @property
    def rules(self) -> Mapping[str, Rule]:
        """The tensors that it trains, or keeps, beside the four."""
        ...

    @property
    def revives(self) -> bool:
        """Its objective wants to know which latents are dead."""
        ...

    def initial(self, d_sae: int) -> Mapping[str, Tensor]:
        """Those tensors before training, in normalised units."""
        ...

    def objective(self, parameters: Parameters, batch: Batch) -> Objective:
        """The training loss of a batch."""
        ...

    def trained(self, parameters: Parameters) -> tuple[Inference, Parameters]:
        """What these parameters, folded or not, are for inference."""
        ...


Loader = Callable[[Mapping[str, Any]], Inference]
"""Makes an inference from a cfg.json."""

Maker = Callable[[TrainConfig, int, int], Architecture]
"""Makes an architecture from the options, d_in and d_sae."""


def pre_activations(
    parameters: Parameters, x: Float[Tensor, "*batch d_in"]
) -> Float[Tensor, "*batch d_sae"]:
    """`(x - b_dec) W_enc + b_enc`; a transcoder's rows have their own centre."""
    return (x - parameters.input_centre) @ parameters.W_enc + parameters.b_enc
