"""Run the source model's last blocks only, from what an earlier block once gave.

TransformerLens's own `start_at_layer` runs the blocks before it all the same.
Here they are stubs for one forward pass, each of which gives what the last of
them gave in the clean pass. All else is the model's own: token ids go in, and
its embeddings, masks, rotary angles, final norm and unembedding are computed as
ever, so that what comes out has the same bits.
"""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

from torch import Tensor


@contextmanager
def restarted_after(bridge: Any, block: int, output: Any) -> Iterator[None]:
    """While it lasts, blocks up to and including one give a stored output instead of running.

    Args:
        bridge: the TransformerBridge.
        block: the last block that doesn't run; -1 for a whole forward pass.
        output: what it gave to its caller, a tensor or a tuple that begins with one.
    """

    def stub(*args: Any, **kwargs: Any) -> Any:  # noqa: ARG001  # those of any block
        return output

    with ExitStack() as stack:
        for module in list(bridge.blocks)[: block + 1] if block >= 0 else ():
            # Plain assignment would change the wrapped transformers module instead.
            before = vars(module).get("forward")
            object.__setattr__(module, "forward", stub)
            if before is None:
                stack.callback(object.__delattr__, module, "forward")
            else:
                stack.callback(object.__setattr__, module, "forward", before)
        yield


def residual_of(output: Any) -> Tensor:
    """The residual stream in what a block gave, (batch, position, d_model).

    Raises:
        TypeError: there is none.
    """
    residual = output[0] if isinstance(output, tuple) else output
    if not isinstance(residual, Tensor):
        raise TypeError(f"a block gave {type(residual).__name__}, not a residual stream")
    return residual


def with_residual(output: Any, residual: Tensor) -> Any:
    """What a block gave, with another residual stream in it."""
    return (residual, *output[1:]) if isinstance(output, tuple) else residual
