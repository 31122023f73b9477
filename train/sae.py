"""A trained SAE, transcoder or crosscoder: rows in the source model's own units, both ways."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from saeflow.errors import BadInputError
from saeflow.train.architecture import Inference
from saeflow.train.architectures import LOADERS
from saeflow.train.kinds import FORMS, Form
from saeflow.train.normalisation import Kind
from saeflow.train.parameters import Parameters
from saeflow.train.row_scaling import RowScaling


@dataclass(frozen=True)
class SAE:
    """A sparse autoencoder; or a transcoder, or a crosscoder.

    A crosscoder's rows, those that it reads and those that it gives back, are those of
    its hook points, one after the other (`torch.cat(rows, -1)`).

    Attributes:
        architecture: how it activates, and its settings.
        parameters: its tensors. Decoder rows have unit norm, but for a crosscoder's:
            they had it in training, where each hook point's rows were scaled, and its
            latents are in those units.
        cfg: the cfg.json that it came from, or will be written with.
        mean: mean of the ordinary rows that it was trained to reconstruct, the
            reference of its variances; None where it is not known.
        row_scaling: how each row is normalised before it is encoded, and a
            reconstruction brought back; None, as in every SAE of ours, for not at all.
            A transcoder's targets are other rows, and not brought back.
    """

    architecture: Inference
    parameters: Parameters
    cfg: Mapping[str, Any]
    mean: Float[Tensor, " d_out"] | None = None
    row_scaling: RowScaling | None = None

    @property
    def d_in(self) -> int:
        """Width of the rows that it reads."""
        return self.parameters.d_in

    @property
    def d_out(self) -> int:
        """Width of the rows that it gives back."""
        return self.parameters.d_out

    @property
    def d_sae(self) -> int:
        """Latents."""
        return self.parameters.d_sae

    @property
    def form(self) -> Form:
        """What its cfg.json calls `architecture`."""
        return FORMS[self.cfg["architecture"]]

    @property
    def kind(self) -> Kind:
        """If it is a transcoder or a crosscoder."""
        return self.form.kind

    @property
    def hook_point(self) -> str:
        """Where in the source model the rows that it reads are from; not of a crosscoder."""
        return str(self.cfg["metadata"]["hook_name"])

    @property
    def hook_points(self) -> tuple[str, ...]:
        """Where the rows that it reads are from; several of a crosscoder."""
        if self.kind == "crosscoder":
            return tuple(self.cfg["hook_names"])
        return (self.hook_point,)

    @property
    def target_hook_points(self) -> tuple[str, ...]:
        """Where the rows that it gives back belong."""
        if self.kind == "transcoder":
            return (str(self.cfg["metadata"]["hook_name_out"]),)
        return self.hook_points

    @property
    def d_ins(self) -> tuple[int, ...]:
        """Widths of the rows of each of `hook_points`."""
        return self.parameters.blocks or (self.d_in,)

    @property
    def d_outs(self) -> tuple[int, ...]:
        """Widths of the rows of each of `target_hook_points`."""
        return self.parameters.blocks or (self.d_out,)

    @property
    def needs_rows(self) -> bool:
        """If `decode` must be given the rows that were encoded."""
        return self.parameters.W_skip is not None or self._restores

    @torch.inference_mode()
    def encode(self, x: Float[Tensor, "*batch d_in"]) -> Float[Tensor, "*batch d_sae"]:
        """Latents of rows, dense, in the parameters' dtype."""
        rows = x.to(self.parameters.encoder.dtype)
        if self.row_scaling is not None:
            rows = self.row_scaling.normalised(rows)
        return self.architecture.encode(self.parameters, rows)

    @torch.inference_mode()
    def decode(
        self,
        latents: Float[Tensor, "*batch d_sae"],
        x: Float[Tensor, "*batch d_in"] | None = None,
    ) -> Float[Tensor, "*batch d_out"]:
        """Rows from latents.

        Args:
            latents: as `encode` gives them.
            x: the rows that were encoded; needed where `needs_rows` says so.

        Raises:
            ValueError: they are needed, and there are none.
        """
        rows = None if x is None else x.to(self.parameters.encoder.dtype)
        decoded = latents @ self.parameters.W_dec + self.parameters.offset(rows)
        if self.row_scaling is None or not self._restores:
            return decoded
        if rows is None:
            raise ValueError("an SAE that normalises each row decodes latents together with rows")
        return self.row_scaling.restored(decoded, rows)

    def __call__(self, x: Float[Tensor, "*batch d_in"]) -> Float[Tensor, "*batch d_out"]:
        """Reconstructions of rows; of a transcoder, what it makes of them."""
        return self.decode(self.encode(x), x)

    def to(self, device: torch.device) -> "SAE":
        """Move the parameters, in place, and return the SAE."""
        self.parameters.to(device)
        return self

    @property
    def _restores(self) -> bool:
        return self.row_scaling is not None and self.kind != "transcoder"


def architecture_of(cfg: Mapping[str, Any], where: str) -> Inference:
    """The architecture that a cfg.json names.

    Raises:
        BadInputError: it names none that saeflow knows, or lacks a setting.
    """
    name = str(cfg.get("architecture"))
    if name not in FORMS:
        raise BadInputError(
            f"{where} holds an SAE of architecture {name}: known are {', '.join(LOADERS)}, "
            "and transcoders and crosscoders of them"
        )
    try:
        return LOADERS[FORMS[name].activation](cfg)
    except (KeyError, TypeError, ValueError) as error:
        raise BadInputError(f"{where} has no usable settings for {name}: {error!r}") from error
