"""A splice between a norm's division and its weights moves only the rows that it changes.

Once a hook changes `hook_normalized`, TransformerLens 4 multiplies by the weights
itself, rounded differently from the model's own norm, at every position. Here the
model's own norm decides wherever the row is what it was.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

_NAME = "hook_normalized"


def is_normalized(hook_point: str) -> bool:
    """Whether a hook point is in a norm, before its weights."""
    return hook_point.endswith(f".{_NAME}")


def norm_of(hook_point: str) -> str:
    """The name of the norm that a `hook_normalized` is in, with a dot after it."""
    return hook_point.removesuffix(_NAME)


class Norm:
    """What a norm's output is made of, where its normalized rows are changed."""

    def __init__(self, module: Any, change: Callable[[Tensor], Tensor]) -> None:
        folded = getattr(module.config, "layer_norm_folding", False)
        self._runs_own = module.use_native_layernorm_autograd or folded
        self._own, self._change = module.original_component, change
        self._input: Tensor | None = None
        self._same: Tensor | None = None

    def input(self, activation: Tensor) -> None:
        """Keep what the norm is given."""
        self._input = activation

    def normalized(self, activation: Tensor) -> Tensor:
        """Change the normalized rows, and keep which of them are the same."""
        changed = self._change(activation)
        self._same = (changed == activation).all(-1, keepdim=True)
        return changed

    def output(self, activation: Tensor) -> Tensor | None:
        """The model's own output where rows are the same."""
        given, same = self._input, self._same
        self._input = self._same = None
        if not self._runs_own:  # a change is computed as all else is
            return None
        if given is None or same is None:
            raise RuntimeError(f"a norm came to its end without {_NAME}")
        return torch.where(same, self._own(given).to(activation.dtype), activation)
