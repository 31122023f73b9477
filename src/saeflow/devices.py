"""Where a stage computes."""

import torch

from saeflow.errors import BadInputError


def choose_device(name: str) -> str:
    """`auto` means the GPU where there is one.

    Raises:
        BadInputError: a GPU is asked for and there is none, or the name means nothing.
    """
    if name == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    try:
        kind = torch.device(name).type
    except RuntimeError as error:
        raise BadInputError(f"--device {name} is no device: give auto, cpu or cuda") from error
    if kind == "cuda" and not torch.cuda.is_available():
        raise BadInputError(f"--device {name}: this machine has no usable GPU: give cpu or auto")
    return name


def share_gpus(number: int) -> str:
    """The GPU of one of several processes on this machine: one process a GPU while they last."""
    return f"cuda:{number % torch.cuda.device_count()}"
