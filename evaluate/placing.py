"""Put rows in the place of an activation while the source model runs."""

import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from jaxtyping import Bool, Float
from torch import Tensor

from saeflow.evaluate.normalized import Norm, is_normalized, norm_of
from saeflow.evaluate.residual_mid import Stream, is_resid_mid, stream_parts

Change = Callable[[Tensor], Tensor]
"""From an activation to what takes its place."""

Hook = Callable[[Tensor], Tensor | None]
"""The same; None where it only looks."""


def place_rows(
    activation: Float[Tensor, "batch position *widths"],
    replaced: Bool[Tensor, "batch position"],
    rows: Float[Tensor, "rows d_in"],
) -> Float[Tensor, "batch position *widths"]:
    """An activation with rows in some positions, in its own dtype; a head axis stays.

    Args:
        activation: what is there; it is not changed.
        replaced: at which positions.
        rows: what takes their place, in the order of `torch.nonzero(replaced)`.
    """
    flat = activation.flatten(2)
    return flat.masked_scatter(replaced[..., None], rows.to(flat.dtype)).view_as(activation)


def placing_hooks(bridge: Any, changes: Mapping[str, Change]) -> list[tuple[str, Hook]]:
    """Hooks that change activations at hook points, for `attached`."""
    ends: list[tuple[str, Hook]] = []
    at: list[tuple[str, Hook]] = []
    looks: list[tuple[str, Hook]] = []
    for name, change in changes.items():
        if is_resid_mid(name):
            _, mlp_out, resid_post = stream_parts(name)
            stream = Stream(change)
            at.append((name, stream.mid))
            looks.append((mlp_out, stream.mlp_out))
            ends.append((resid_post, stream.resid_post))
        elif is_normalized(name):
            place = norm_of(name)
            norm = Norm(bridge.get_submodule(place.removesuffix(".")), change)
            at.append((name, norm.normalized))
            looks.append((place + "hook_in", norm.input))
            ends.append((place + "hook_out", norm.output))
        else:
            at.append((name, change))
    # What is put in at a part is looked at as part of the end; what is put in there stays.
    return [*ends, *at, *looks]


@contextmanager
def attached(bridge: Any, hooks: Sequence[tuple[str, Hook]]) -> Iterator[None]:
    """While it lasts, hooks sit at hook points; those of one hook point run in this order.

    `bridge.run_with_hooks` would call each twice in compatibility mode, once for each
    of a hook point's names, and an SAE would be given its own reconstruction.
    """

    def as_hook(hook_function: Hook) -> Callable[..., Tensor | None]:
        return lambda activation, hook: hook_function(activation)  # noqa: ARG005  # its signature

    known, added = bridge.hook_dict, []
    try:
        for name, hook_function in hooks:
            added.append((known[name], known[name].add_hook(as_hook(hook_function))))
        with warnings.catch_warnings():
            # Of the rounding that `normalized.py` sees to.
            warnings.filterwarnings("ignore", message="A forward hook edited hook_scale")
            yield
    finally:
        for hook_point, handle in added:
            handle.hook.remove()
            hook_point.fwd_hooks[:] = [kept for kept in hook_point.fwd_hooks if kept is not handle]
