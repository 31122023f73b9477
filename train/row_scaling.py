"""Rows normalised one by one, as SAELens does at run time, and reconstructions brought back.

Our own SAEs have their normalisation in their weights, where it is the same for all
rows; here it depends on the row, so it stays a step of its own.
"""

from dataclasses import dataclass
from typing import Literal

from jaxtyping import Float
from torch import Tensor

_EPSILON = 1e-5
"""SAELens's, added to a deviation before dividing by it, and not when multiplying back."""


@dataclass(frozen=True)
class RowScaling:
    """How a row is normalised before it is encoded.

    Attributes:
        name: SAELens's name for it, `normalize_activations` in cfg.json:
            `constant_norm_rescale` gives every row the norm `sqrt(d_in)`, `layer_norm`
            takes its mean off and divides by its deviation, `n - 1` in the denominator.
    """

    name: Literal["constant_norm_rescale", "layer_norm"]

    def normalised(self, x: Float[Tensor, "*batch d_in"]) -> Float[Tensor, "*batch d_in"]:
        """Rows as they are encoded."""
        if self.name == "constant_norm_rescale":
            return x / _unit(x)
        centred = x - x.mean(dim=-1, keepdim=True)
        return centred / (x.std(dim=-1, keepdim=True) + _EPSILON)

    def restored(
        self, reconstruction: Float[Tensor, "*batch d_in"], x: Float[Tensor, "*batch d_in"]
    ) -> Float[Tensor, "*batch d_in"]:
        """Reconstructions of normalised rows in the units of the rows `x` that they are of."""
        if self.name == "constant_norm_rescale":
            return reconstruction * _unit(x)
        return reconstruction * x.std(dim=-1, keepdim=True) + x.mean(dim=-1, keepdim=True)


def _unit(x: Float[Tensor, "*batch d_in"]) -> Float[Tensor, "*batch 1"]:
    """What a row is divided by to have the norm `sqrt(d_in)`."""
    return x.square().mean(dim=-1, keepdim=True).sqrt()


ROW_SCALINGS = {
    "constant_norm_rescale": RowScaling("constant_norm_rescale"),
    "layer_norm": RowScaling("layer_norm"),
}
"""By their names in cfg.json."""
