"""What an SAE folder says of itself: how it activates, and what it reads and reconstructs.

SAELens 6 knows a TopK, ReLU, JumpReLU or gated SAE, and transcoders, with a skip or
without, that activate by ReLU or JumpReLU. The others have names after the same
pattern, and `"loads_in_sae_lens": false` in their cfg.json.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from saeflow.config import require
from saeflow.harvest.layout import HookPoint
from saeflow.train.architecture import Inference
from saeflow.train.architectures import LOADERS
from saeflow.train.normalisation import Kind

_NO_CROSSCODERS = {
    "gated": "its gate is penalised as if a decoder row had one norm",
    "p-anneal": "its penalty's power is of activations, not of decoder norms",
}
"""Architectures of which no crosscoders are known, and why."""

_OF_SAELENS = {
    *("topk", "standard", "jumprelu", "gated"),
    *("transcoder", "skip_transcoder", "jumprelu_transcoder", "jumprelu_skip_transcoder"),
}


@dataclass(frozen=True)
class Form:
    """What cfg.json calls `architecture`, in its parts.

    Attributes:
        activation: how it activates, one of `LOADERS`.
        kind: what it reads and reconstructs.
        skip: it has a linear path from rows to targets.
    """

    activation: str
    kind: Kind = "sae"
    skip: bool = False

    @property
    def name(self) -> str:
        """As SAELens 6 would call it."""
        if self.kind == "sae":
            return self.activation
        what = "skip_transcoder" if self.skip else self.kind
        return what if self.activation == "standard" else f"{self.activation}_{what}"

    @property
    def in_saelens(self) -> bool:
        """SAELens 6 has it."""
        return self.name in _OF_SAELENS


def _every_form() -> Mapping[str, Form]:
    kinds: tuple[tuple[Kind, bool], ...] = (
        ("sae", False),
        ("transcoder", False),
        ("transcoder", True),
        ("crosscoder", False),
    )
    forms = [Form(activation, kind, skip) for kind, skip in kinds for activation in LOADERS]
    return {form.name: form for form in forms}


FORMS = _every_form()
"""All of them, by name."""


def check_kind(arch: str, kind: Kind) -> None:
    """Refuse what no one has defined.

    Args:
        arch: the architecture's name on the command line.
        kind: what is to be made of it.

    Raises:
        BadInputError: there are no crosscoders of it.
    """
    require(
        kind != "crosscoder" or arch not in _NO_CROSSCODERS,
        f"--arch {arch} is not for crosscoders, {_NO_CROSSCODERS.get(arch)}: take --arch relu",
    )


def cfg_of(
    inference: Inference,
    inputs: Sequence[HookPoint],
    target: HookPoint | None,
    d_sae: int,
    *,
    skip: bool = False,
) -> dict[str, Any]:
    """What cfg.json holds beside `metadata`.

    Args:
        inference: how it activates.
        inputs: the hook points that it reads; several for a crosscoder.
        target: the hook point that it reconstructs; None if those that it reads.
        d_sae: its latents.
        skip: it has a linear path from rows to targets.
    """
    activation = inference.to_cfg()
    kind: Kind = "transcoder" if target else "crosscoder" if len(inputs) > 1 else "sae"
    form = Form(activation["architecture"], kind, skip)
    hook_z = kind == "sae" and len(inputs[0].shape) > 1
    cfg = {
        **activation,
        "architecture": form.name,
        "d_in": sum(hook_point.d_in for hook_point in inputs),
        "d_sae": d_sae,
        "dtype": "float32",
        "device": "cpu",
        "apply_b_dec_to_input": kind != "transcoder",
        "normalize_activations": "none",
        "reshape_activations": "hook_z" if hook_z else "none",
    }
    if target is not None:
        cfg["d_out"] = target.d_in
    if kind == "crosscoder":
        cfg["hook_names"] = [hook_point.name for hook_point in inputs]
        cfg["d_ins"] = [hook_point.d_in for hook_point in inputs]
    if not form.in_saelens:
        cfg["loads_in_sae_lens"] = False
    return cfg


def hook_metadata(inputs: Sequence[HookPoint], target: HookPoint | None) -> dict[str, Any]:
    """What `metadata` in cfg.json says of the hook points, as SAELens 6 names them."""
    names = [hook_point.name for hook_point in inputs]
    if len(names) > 1:
        return {"hook_names": names}
    return {"hook_name": names[0], **({} if target is None else {"hook_name_out": target.name})}
