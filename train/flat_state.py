"""An optimizer's state as one flat record, which names its tensors as the SAE does.

torch's own `state_dict` is nested and numbers the parameters, so it would have to be
pickled, and would mean something else once an SAE had one tensor more.
"""

from collections.abc import Iterator, Mapping
from typing import Any

from torch import Tensor
from torch.optim import Optimizer

_COUNTED = ("corrected_steps_left", "k", "weight_sum", "lr_max")
"""What optimizers count up for a group of parameters: AdamWithReset, and schedule-free."""


def flat_state(
    optimizer: Optimizer, names: Mapping[Tensor, str]
) -> dict[str, Tensor | int | float]:
    """`NAME.MOMENT` for each tensor, and `groupI.COUNT`; the tensors are not copies.

    Args:
        optimizer: whose state; nothing is kept of what only `UpdateSettings` and the
            step decide, such as rates.
        names: of its parameters.
    """
    return dict(_of_tensors(optimizer, names)) | dict(_of_groups(optimizer))


def load_flat_state(
    optimizer: Optimizer, names: Mapping[Tensor, str], state: Mapping[str, Tensor | int | float]
) -> None:
    """Go on from what `flat_state` gave, on any device; the tensors are copied.

    Raises:
        KeyError: an entry is of something that this optimizer doesn't have.
    """
    number_of = {names[tensor]: number for number, tensor in enumerate(_parameters(optimizer))}
    tensors: dict[int, dict[str, Any]] = {}
    groups = optimizer.state_dict()["param_groups"]
    for key, value in state.items():
        name, _, what = key.rpartition(".")
        if isinstance(value, Tensor):
            tensors.setdefault(number_of[name], {})[what] = value.clone()
        else:
            groups[_group_names(optimizer)[name]][what] = value
    optimizer.load_state_dict({"state": tensors, "param_groups": groups})


def _parameters(optimizer: Optimizer) -> Iterator[Tensor]:
    """In the order in which torch numbers them."""
    for group in optimizer.param_groups:
        yield from group["params"]


def _of_tensors(optimizer: Optimizer, names: Mapping[Tensor, str]) -> Iterator[tuple[str, Tensor]]:
    for parameter in _parameters(optimizer):
        for what, value in optimizer.state.get(parameter, {}).items():
            yield f"{names[parameter]}.{what}", value


def _of_groups(optimizer: Optimizer) -> Iterator[tuple[str, int | float]]:
    for name, number in _group_names(optimizer).items():
        group = optimizer.param_groups[number]
        yield from ((f"{name}.{what}", group[what]) for what in _COUNTED if what in group)


def _group_names(optimizer: Optimizer) -> dict[str, int]:
    return {f"group{number}": number for number in range(len(optimizer.param_groups))}
