"""Schedule-free AdamW (Defazio et al., "The Road Less Scheduled", 2024), an optional extra.

There are three sequences: z takes the steps, x is the average of z and the result, and
gradients are taken at `y = beta1 x + (1 - beta1) z`, which are the parameters while
training. The optimizer keeps y and z; x is what they imply.
"""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from saeflow.errors import BadInputError


def make_schedule_free(groups: list[dict[str, Any]], betas: tuple[float, float]) -> Optimizer:
    """Ready to train; without weight decay, and with a warm-up only if the rates have one.

    Raises:
        BadInputError: it is not installed, or beta1 is 0.
    """
    try:
        from schedulefree import AdamWScheduleFree
    except ImportError:
        raise BadInputError(
            "--optimizer schedule-free needs the extra: pip install 'saeflow[schedule-free]'"
        ) from None
    if betas[0] <= 0:
        raise BadInputError("--optimizer schedule-free divides by beta1, which is 0: raise it")
    optimizer: Optimizer = AdamWScheduleFree(groups, lr=0.0, betas=betas)
    optimizer.train()  # type: ignore[attr-defined]  # its own, not of torch's optimizers
    return optimizer


def fast_weights(optimizer: Optimizer) -> Iterator[tuple[Tensor, Tensor]]:
    """Each parameter with its z, once there is one, which is from the first step on."""
    for parameter, state in optimizer.state.items():
        if "z" in state:
            yield parameter, state["z"]


@torch.no_grad()
def averages(optimizer: Optimizer) -> Iterator[tuple[Tensor, Tensor]]:
    """Each parameter with its x: `y + (1 - 1 / beta1) (z - y)`."""
    beta1 = optimizer.param_groups[0]["betas"][0]
    for parameter, z in fast_weights(optimizer):
        yield parameter, parameter.lerp(z, 1 - 1 / beta1)
