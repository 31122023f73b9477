"""Adam, with decoder rows kept on the unit sphere, and the learning rate over time."""

import math
from dataclasses import dataclass

import torch
from torch.nn import functional as F

from saeflow.train.parameters import Parameters

_REFERENCE_WIDTH = 16_384
_REFERENCE_RATE = 4e-4


@dataclass(frozen=True)
class Schedule:
    """Linear warm-up, constant, linear decay to zero.

    Attributes:
        peak: learning rate of the constant part.
        n_steps: steps of the run.
        warm_up, decay: steps of the rising and of the falling part.
    """

    peak: float
    n_steps: int
    warm_up: int
    decay: int

    def rate(self, step: int) -> float:
        """Learning rate of a step, counted from 0."""
        falling = (self.n_steps - step) / self.decay if self.decay else 1.0
        return self.peak * min(self.progress(step), falling)

    def progress(self, step: int) -> float:
        """How far the warm-up is, 0 to 1; the sparsity penalty rises with it."""
        return min(1.0, (step + 1) / self.warm_up) if self.warm_up else 1.0


def default_rate(d_sae: int) -> float:
    """The rate for a width: falling with its root (Gao et al. 2024, appendix A.3)."""
    return _REFERENCE_RATE * math.sqrt(_REFERENCE_WIDTH / d_sae)


def make_optimizer(parameters: Parameters, rate: float) -> torch.optim.Adam:
    """Adam with the fused kernel, on CPU and GPU; some tensors have a rate of their own."""
    by_factor: dict[float, list[torch.nn.Parameter]] = {1.0: []}
    for name, tensor in parameters.named_parameters():
        own = name.removeprefix("extra.")
        factor = parameters.rules[own].rate if own != name else 1.0
        by_factor.setdefault(factor, []).append(tensor)
    groups = [{"params": tensors, "factor": factor} for factor, tensors in by_factor.items()]
    return torch.optim.Adam(groups, lr=rate, betas=(0.9, 0.999), fused=True)


def step_on_sphere(optimizer: torch.optim.Adam, parameters: Parameters, rate: float) -> None:
    """One update that leaves every decoder row with unit norm.

    The gradient's component along each row is taken out first, so that Adam's
    moments hold only directions in which a row can move; after the step the rows
    are put back onto the sphere (Bricken et al. 2023, "Towards Monosemanticity").
    """
    W_dec = parameters.W_dec
    assert W_dec.grad is not None
    along = (W_dec.grad * W_dec.detach()).sum(1, keepdim=True)
    W_dec.grad.addcmul_(along, W_dec.detach(), value=-1.0)
    for group in optimizer.param_groups:
        group["lr"] = rate * group["factor"]
    optimizer.step()
    optimizer.zero_grad()
    parameters.keep_bounds()
    with torch.no_grad():
        F.normalize(W_dec, dim=1, out=W_dec)
