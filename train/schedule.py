"""The learning rate and the sparsity penalty over the steps of a run."""

import math
from dataclasses import dataclass
from typing import Literal

Shape = Literal["constant", "linear", "cosine", "restarts"]

_REFERENCE_WIDTH = 16_384
_REFERENCE_RATE = 1.2e-3


@dataclass(frozen=True)
class Schedule:
    """A linear warm-up, a shape, and a linear decay to zero.

    The last step of a run still moves: a rate that falls to zero is zero at step
    `n_steps`, which would be the next one.

    Attributes:
        peak: learning rate after the warm-up.
        n_steps: steps of the run.
        warm_up, decay: steps of the rising and of the falling part; the decay lies over
            any shape.
        shape: what the rate does after the warm-up: "constant"; "linear" and "cosine"
            fall to zero at the end; "restarts" does so, as a cosine, once a cycle.
        cycles: how often "restarts" begins at the peak, at even distances.
        sparsity_warm_up: steps over which the sparsity penalty rises; None for as many
            as the rate's.
    """

    peak: float
    n_steps: int
    warm_up: int
    decay: int
    shape: Shape = "constant"
    cycles: int = 1
    sparsity_warm_up: int | None = None

    def rate(self, step: int) -> float:
        """Learning rate of a step, counted from 0."""
        falling = (self.n_steps - step) / self.decay if self.decay else 1.0
        return self.peak * min(self.progress(step), falling) * self._shaped(step)

    def progress(self, step: int) -> float:
        """How far the rate's warm-up is, 0 to 1."""
        return _risen(step, self.warm_up)

    def pressure(self, step: int) -> float:
        """How much of the sparsity penalty counts, 0 to 1."""
        own = self.sparsity_warm_up
        return _risen(step, self.warm_up if own is None else own)

    def _shaped(self, step: int) -> float:
        length = self.n_steps - self.warm_up
        done = step - self.warm_up
        if self.shape == "constant" or done <= 0:
            return 1.0
        if done >= length:
            return 0.0
        if self.shape == "linear":
            return 1.0 - done / length
        cycles = self.cycles if self.shape == "restarts" else 1
        return (1.0 + math.cos(math.pi * _within_cycle(done, length, cycles))) / 2


def default_rate(d_sae: int) -> float:
    """The rate for a width: falling with its root (Gao et al. 2024, appendix A.3).

    The factor is ours: between 50 and 1,600 steps of 2,048 rows, on a language model's
    rows and on synthetic ones, twice as much reconstructs a little better and leaves
    more latents dead; a third reconstructs worse by up to a quarter.
    """
    return _REFERENCE_RATE * math.sqrt(_REFERENCE_WIDTH / d_sae)


def _risen(step: int, warm_up: int) -> float:
    return min(1.0, (step + 1) / warm_up) if warm_up else 1.0


def _within_cycle(done: int, length: int, cycles: int) -> float:
    """How far a cycle is, from 0 to less than 1; each begins at a step, so exactly with 0."""
    cycle = done * cycles // length
    start, end = (-(-number * length // cycles) for number in (cycle, cycle + 1))
    return (done - start) / (end - start)
