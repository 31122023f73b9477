"""A splice in the middle of a block reaches the residual stream.

TransformerLens 4 hands a changed `hook_resid_mid` to the MLP only. Here the
block's output follows it: it becomes the changed stream plus what the MLP makes
of it, which is what the block itself computes. Where that sum is not the block's
output to the bit (some blocks scale or gate it), `check_stream_sum` refuses.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from saeflow.errors import BadInputError

_MID, _MLP, _POST = "hook_resid_mid", "hook_mlp_out", "hook_resid_post"


def is_resid_mid(hook_point: str) -> bool:
    """Whether a hook point is the residual stream between attention and MLP."""
    return hook_point.endswith(f".{_MID}")


def stream_parts(hook_point: str) -> tuple[str, str, str]:
    """The stream in the middle of a block, what the MLP adds to it, and their sum."""
    block = hook_point.removesuffix(_MID)
    return hook_point, block + _MLP, block + _POST


def check_stream_sum(hook_point: str, mid: Tensor, mlp_out: Tensor, resid_post: Tensor) -> None:
    """Refuse a block whose output is not the stream in its middle plus what the MLP gave.

    Raises:
        BadInputError: to the bit, it is not.
    """
    if not torch.equal(mid + mlp_out, resid_post):
        raise BadInputError(
            f"{hook_point} can't be replaced: this model's {_POST} is not {_MID} + {_MLP} to the "
            "bit, so a changed stream can't be passed on; use an SAE of hook_resid_post or "
            "hook_resid_pre instead"
        )


class Stream:
    """What a block's output is made of, where the stream in its middle is changed."""

    def __init__(self, change: Callable[[Tensor], Tensor]) -> None:
        self._change = change
        self._mid: Tensor | None = None
        self._mlp_out: Tensor | None = None

    def mid(self, activation: Tensor) -> Tensor:
        """Change the stream."""
        self._mid = self._change(activation)
        return self._mid

    def mlp_out(self, activation: Tensor) -> None:
        """Keep what the MLP makes of it."""
        self._mlp_out = activation

    def resid_post(self, activation: Tensor) -> Tensor:  # noqa: ARG002  # what would have been
        """Their sum in the place of the block's output."""
        if self._mid is None or self._mlp_out is None:
            raise RuntimeError(f"a block came to its end without {_MID} and {_MLP}")
        total = self._mid + self._mlp_out
        self._mid = self._mlp_out = None
        return total
