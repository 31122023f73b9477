"""JumpReLU SAEs (Rajamanoharan et al., "Jumping Ahead", 2024).

The `tanh` penalty, gradients through the threshold to the encoder, and the loss on
silent latents are those of "Dictionary Learning Optimization Techniques" (Anthropic,
January 2025).
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from jaxtyping import Float
from torch import Tensor

from saeflow.config import require
from saeflow.train.architecture import Batch, Inference, Objective, pre_activations
from saeflow.train.config import TrainConfig
from saeflow.train.dense import Dense
from saeflow.train.encoded import encoded
from saeflow.train.parameters import Parameters, Rule
from saeflow.train.penalised import decoder_norm, decoder_scale

_L0_PER_WIDTH = {"step": 0.0025, "tanh": 0.0006}
"""A normalised row's squared norm is d_in: what an active latent saves is in proportion."""
_TARGET_WEIGHT = 0.5
_TANH_SCALE = 4.0
_DEAD_WEIGHT = {"unit": 0.1, "free": 3.0}
"""Where norms are free, the rate is twice as high, and more latents fall silent."""


@dataclass(frozen=True)
class JumpReLU:
    """`z = pre * (pre > threshold)`, `pre = (x - b_dec) W_enc + b_enc`, a threshold a latent.

    The loss is `|x - x_hat|^2` and one of these penalties:

    - `step`: `weight |z|_0`;
    - `step` with a target: `weight d_out (mean |z|_0 / target - 1)^2`;
    - `tanh`: `weight sum tanh(4 z)`.

    Neither the jump nor the count has a gradient. With a window K, one where its
    argument is within half of 0, these take their place (the paper's equations 11
    and 12):

        dz / dthreshold   = -(threshold / bandwidth) K((pre - threshold) / bandwidth)
        d|z|_0 / dthreshold =       -(1 / bandwidth) K((pre - threshold) / bandwidth)

    For `tanh` the negative of the first also goes to `pre`, so that it trains the
    encoder. The threshold itself is trained, not its logarithm, of which Adam's
    steps would move a small one hardly at all.

    Attributes:
        weight: of the penalty; it rises from zero over the warm-up.
        penalty: which one.
        target: the number of active latents to arrive at; None for none.
        bandwidth: width of the window, in units of normalised rows.
        start: threshold before training. Where encoder rows begin with
            this length, pre-activations deviate by as much, and one in six is above it.
        dead_weight: of `threshold - pre`, summed over dead latents that are silent in
            all the batch, which revives them.
    """

    weight: float = 0.0
    penalty: Literal["step", "tanh"] = "step"
    target: float | None = None
    bandwidth: float = 1.0
    start: float = 1.0
    dead_weight: float = 0.1
    name: ClassVar = "jumprelu"
    rules: ClassVar[Mapping[str, Rule]] = {"threshold": Rule(rate=10.0, lowest=0.0)}
    renamed: ClassVar[Mapping[str, str]] = {}

    @property
    def revives(self) -> bool:
        """If dead latents have a loss of their own."""
        return self.dead_weight > 0

    def initial(self, d_sae: int) -> Mapping[str, Tensor]:
        """One threshold for each latent."""
        return {"threshold": torch.full((d_sae,), self.start)}

    def encode(
        self, parameters: Parameters, x: Float[Tensor, "*batch d_in"]
    ) -> Float[Tensor, "*batch d_sae"]:
        """Latents of rows."""
        pre = pre_activations(parameters, x)
        return pre.relu() * (pre > parameters.more("threshold"))

    def objective(self, parameters: Parameters, batch: Batch) -> Objective:
        """Mean over rows of the weighted squared error and penalty."""
        centred, bias = parameters.centred(batch.x)
        pre = encoded(centred, parameters.encoder, bias, batch.known)
        threshold = parameters.more("threshold")
        codes = Dense(jump(pre, threshold, self.bandwidth, self.penalty == "tanh"))
        reconstruction = codes.decode(parameters.W_dec) + parameters.offset(batch.x)
        penalty = self.weight * batch.warm_up * self._penalty(pre, codes, threshold, batch)
        loss = batch.error(reconstruction) + penalty
        if batch.dead is not None and len(batch.dead):
            below = (threshold - pre)[:, batch.dead]
            still = (below.detach() >= 0).all(0)
            loss = loss + self.dead_weight * (batch.weights * (below * still).sum(1)).mean()
        return Objective(loss, reconstruction.detach(), codes.fired())

    def _penalty(
        self, pre: Tensor, codes: Dense, threshold: Tensor, batch: Batch
    ) -> Float[Tensor, ""]:
        if self.penalty == "tanh":
            return (batch.weights * (_TANH_SCALE * codes.values).tanh().sum(1)).mean()
        l0 = (batch.weights * step(pre, threshold, self.bandwidth).sum(1)).mean()
        if self.target is None:
            return l0
        return batch.target.shape[1] * (l0 / self.target - 1).square()

    def trained(self, parameters: Parameters) -> tuple[Inference, Parameters]:
        """A JumpReLU SAE."""
        return self, parameters

    def to_cfg(self) -> dict[str, Any]:
        """SAELens's `jumprelu`."""
        return {"architecture": "jumprelu"}


def from_cfg(cfg: Mapping[str, Any]) -> JumpReLU:  # noqa: ARG001  # an inference folder holds no penalty
    """A JumpReLU SAE for inference; penalties are not part of an SAE folder."""
    return JumpReLU()


def from_config(config: TrainConfig, d_in: int, d_sae: int) -> JumpReLU:
    """From `--l0`, `--sparsity`, `--target-l0` and `--bandwidth`."""
    target = config.target_l0
    require(
        target is None or target <= d_sae,
        f"--target-l0 {target} is more than the {d_sae} latents: lower it, or raise --d-sae",
    )
    weight = _L0_PER_WIDTH[config.sparsity] * d_in if target is None else _TARGET_WEIGHT
    return JumpReLU(
        weight=weight if config.l0 is None else config.l0,
        penalty=config.sparsity,
        target=target,
        bandwidth=JumpReLU.bandwidth if config.bandwidth is None else config.bandwidth,
        start=JumpReLU.start if config.target_hook else decoder_scale(config),
        dead_weight=_DEAD_WEIGHT[decoder_norm(config)],
    )


def jump(
    pre: Float[Tensor, "batch d_sae"],
    threshold: Float[Tensor, " d_sae"],
    bandwidth: float,
    to_input: bool,
) -> Float[Tensor, "batch d_sae"]:
    """`pre` where it is above the threshold, which may not be negative; else zero.

    Args:
        pre: pre-activations.
        threshold: of each latent.
        bandwidth: width of the window in which the jump has a gradient.
        to_input: that gradient goes to `pre`, too, not only to the threshold.
    """
    result: Tensor = _Jump.apply(pre, threshold, bandwidth, to_input)  # type: ignore[no-untyped-call]  # torch's own
    return result


def step(
    pre: Float[Tensor, "batch d_sae"], threshold: Float[Tensor, " d_sae"], bandwidth: float
) -> Float[Tensor, "batch d_sae"]:
    """1 where `pre` is above the threshold, else 0; its gradient goes to the threshold only."""
    result: Tensor = _Step.apply(pre, threshold, bandwidth)  # type: ignore[no-untyped-call]  # torch's own
    return result


def _window(pre: Tensor, threshold: Tensor, bandwidth: float) -> Tensor:
    return ((pre - threshold).abs() < bandwidth / 2).to(pre.dtype) / bandwidth


class _Jump(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, pre: Tensor, threshold: Tensor, bandwidth: float, to_input: bool
    ) -> Tensor:
        ctx.save_for_backward(pre, threshold)
        ctx.bandwidth, ctx.to_input = bandwidth, to_input
        return pre * (pre > threshold)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        pre, threshold = ctx.saved_tensors
        at_jump = grad * threshold * _window(pre, threshold, ctx.bandwidth)
        to_pre = grad * (pre > threshold)
        return to_pre + at_jump if ctx.to_input else to_pre, -at_jump.sum(0), None, None


class _Step(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, pre: Tensor, threshold: Tensor, bandwidth: float) -> Tensor:
        ctx.save_for_backward(pre, threshold)
        ctx.bandwidth = bandwidth
        return (pre > threshold).to(pre.dtype)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        pre, threshold = ctx.saved_tensors
        return None, -(grad * _window(pre, threshold, ctx.bandwidth)).sum(0), None
