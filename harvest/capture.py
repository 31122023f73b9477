"""Activations out of the source model: at several hook points, in one forward pass."""

import contextlib
import difflib
from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from saeflow.errors import BadInputError
from saeflow.harvest.layout import HookPoint
from saeflow.harvest.models import SourceModel

_PROBE_BATCH, _PROBE_POSITIONS = 2, 13
"""The probing batch: sizes that no count of heads is likely to equal."""


class _AllCapturedError(Exception):
    """Raised from a hook to end the forward pass: nothing later is needed."""


def probe_hook_points(model: SourceModel, names: Sequence[str]) -> tuple[HookPoint, ...]:
    """Find out what lives at hook points, by a small forward pass.

    Raises:
        BadInputError: a hook point does not exist, holds nothing unless switched
            on, or does not hold one vector a token.
    """
    known = list(model.bridge.hook_dict)
    for name in names:
        if name not in known:
            near = difflib.get_close_matches(name, known, n=3, cutoff=0.5)
            raise BadInputError(
                f"hook point {name} does not exist in {model.spec.name}: "
                f"near ones are {', '.join(near) if near else 'none'}"
            )
    tokens = torch.zeros(_PROBE_BATCH, _PROBE_POSITIONS, dtype=torch.long)
    found = []
    for name in names:
        try:
            shape = tuple(_run(model, tokens, [name])[name].shape)
        except (KeyError, ValueError, NotImplementedError) as error:
            raise BadInputError(f"hook point {name} holds no activation: {error}") from error
        if len(shape) < 3 or shape[:2] != (_PROBE_BATCH, _PROBE_POSITIONS):
            raise BadInputError(
                f"hook point {name} does not hold one vector a token (its shape for "
                f"{_PROBE_BATCH} x {_PROBE_POSITIONS} tokens is {shape}): choose another"
            )
        found.append(HookPoint(name, shape[2:]))
    return tuple(found)


def capture(
    model: SourceModel, tokens: Int[Tensor, "batch position"], hook_points: Sequence[HookPoint]
) -> dict[str, Float[Tensor, "batch position d_in"]]:
    """Run the model once, up to the deepest of the hook points.

    Args:
        model: the source model.
        tokens: int64 token ids without padding.
        hook_points: where to capture.

    Returns:
        Each hook point's activations in the model's dtype, on its device, a head
        axis flattened.
    """
    captured = _run(model, tokens, [hook_point.name for hook_point in hook_points])
    return {name: activation.flatten(2) for name, activation in captured.items()}


@torch.inference_mode()
def _run(model: SourceModel, tokens: Tensor, names: list[str]) -> dict[str, Tensor]:
    captured: dict[str, Tensor] = {}

    def keep(name: str) -> Any:
        def hook_function(activation: Tensor, hook: Any) -> None:  # noqa: ARG001  # its signature
            captured[name] = activation
            if len(captured) == len(names):
                raise _AllCapturedError

        return hook_function

    with contextlib.suppress(_AllCapturedError):
        model.bridge.run_with_hooks(
            tokens.to(model.device),
            fwd_hooks=[(name, keep(name)) for name in names],
            return_type=None,
            use_cache=False,
        )
    for name in names:
        if name not in captured:
            raise KeyError(f"the forward pass of {model.spec.name} never reaches {name}")
    return captured
