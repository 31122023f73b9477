"""From gradients to new weights: Adam, Muon or schedule-free, on the sphere, and averaged."""

from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import torch
from jaxtyping import Float, Int64
from torch import Tensor
from torch.nn.utils import clip_grad_norm_
from torch.optim import Adam, Optimizer

from saeflow.config import require
from saeflow.errors import BadInputError, SaeflowError
from saeflow.train.average import Average
from saeflow.train.flat_state import flat_state, load_flat_state
from saeflow.train.parameters import Parameters
from saeflow.train.schedule_free import averages, fast_weights, make_schedule_free
from saeflow.train.seeds.adam_with_reset import AdamWithReset

_SMALLEST_NORM = 1e-12
"""A shorter decoder row is divided by this; as in `torch.nn.functional.normalize`."""


@dataclass(frozen=True)
class UpdateSettings:
    """How gradients become new weights.

    Attributes:
        optimizer: "adam" (Kingma & Ba 2015); "muon" (Jordan et al. 2024) for the two
            weights, with Adam for all else, at the rate that Adam would have (Liu et al.
            2025, "Muon is Scalable for LLM Training"); "schedule-free" (Defazio et al.
            2024, "The Road Less Scheduled"), for rates that stay constant after a warm-up.
        beta1, beta2: decay of Adam's moments. Schedule-free's beta1 is how near to the
            average the weights are that gradients are taken at.
        clip: the gradient is shortened to this norm, over all tensors; None for never.
        ema: decay of the moving average that `Updater.final` hands out; None for none.
        decoder: "unit" keeps every decoder row at norm 1, "free" lets them grow.
        bias_rate: the learning rate of `b_enc`, as a multiple of the others'.
        resettable: the optimizer can forget single latents, as resampling needs.
    """

    optimizer: Literal["adam", "muon", "schedule-free"] = "adam"
    beta1: float = 0.9
    beta2: float = 0.999
    clip: float | None = None
    ema: float | None = None
    decoder: Literal["unit", "free"] = "unit"
    bias_rate: float = 1.0
    resettable: bool = False


class Updater:
    """All that turns the gradients of one SAE into its new weights.

    Decoder rows of unit norm are kept so in two steps: a gradient's component along its
    row is taken out, so that moments hold only directions in which a row can move; after
    the update the rows are put back onto the sphere (Bricken et al. 2023, "Towards
    Monosemanticity").

    Schedule-free trains with weights between a fast sequence and its average, of which
    the latter is the result. An average of unit rows is shorter than one, so both the
    fast rows and those that are trained with are put onto the sphere after each update,
    and the average, which is what these two imply, only where it is handed out: its
    rows' norms differ from one by the square of an angle that shrinks as it settles.

    Args:
        parameters: the SAE's, on their device; trained in place.
        settings: how.

    Attributes:
        adam: what has Adam's moments; None for schedule-free.

    Raises:
        BadInputError: the optimizer isn't installed, or can't do what is asked for.
    """

    def __init__(self, parameters: Parameters, settings: UpdateSettings) -> None:
        self.parameters, self.settings = parameters, settings
        self._names: dict[Tensor, str] = {
            tensor: _own_name(name) for name, tensor in parameters.named_parameters()
        }
        self._optimizers = _make_optimizers(parameters, settings)
        adam = self._optimizers.get("adam")
        self.adam = adam if isinstance(adam, Adam) else None
        self._average = None if settings.ema is None else Average(self._averaged(), settings.ema)

    def step(self, rate: float, bad: Float[Tensor, ""] | None = None) -> None:
        """One update by the gradients, which are gone afterwards.

        Args:
            rate: the step's learning rate.
            bad: float32 on the device, 1 if nothing is to be updated, since the loss or a
                gradient is not finite, and 0 otherwise; None for 0. With Adam alone,
                nothing waits for the device to see it.
        """
        if bad is None or self._skips_unseen or not bad.item():
            self._update(rate, bad if self._skips_unseen else None)
        for optimizer in self._optimizers.values():
            optimizer.zero_grad()

    @contextmanager
    def final(self) -> Iterator[None]:
        """Inside, the parameters and their state are those to evaluate and to keep.

        They are the moving average, or schedule-free's, if there is one. Afterwards those
        in training are back, to the bit.
        """
        weights = self._to_keep()
        held = {name: self._tensors[name].detach().clone() for name in weights}
        try:
            self._put(weights)
            if weights:
                self._constrain()
            yield
        finally:
            self._put(held)

    def reset(self, latents: Int64[Tensor, " latents"]) -> None:
        """Let the moving average begin again for latents that were given new weights.

        Adam's moments of them are reset by `seeds.parameter_updates.apply_updates`, given
        `adam`.
        """
        if self._average is not None:
            self._average.forget(self._latent_axes(), latents)

    def state_dict(self) -> dict[str, Tensor | int | float]:
        """What a new `Updater` needs to go on from here; the tensors are not copies.

        The parameters and their state, as they are outside of `final`, are not part of it.
        """
        state: dict[str, Tensor | int | float] = dict(self._state_of_average())
        for kind, optimizer in self._optimizers.items():
            flat = flat_state(optimizer, self._names)
            state |= {f"{kind}.{name}": value for name, value in flat.items()}
        return state

    def load_state_dict(self, state: Mapping[str, Tensor | int | float]) -> None:
        """Go on from what `state_dict` gave, on any device; the tensors are copied.

        Raises:
            SaeflowError: it is of another kind of SAE, or of other settings.
        """
        own = self._state_of_average()
        kinds = {key: key.partition(".")[0] for key in state if key not in own}
        unknown = sorted({key for key, kind in kinds.items() if kind not in self._optimizers})
        try:
            if unknown:
                raise KeyError(unknown[0])
            for kind, optimizer in self._optimizers.items():
                keys = [key for key in kinds if kinds[key] == kind]
                flat = {key.removeprefix(f"{kind}."): state[key] for key in keys}
                load_flat_state(optimizer, self._names, flat)
            for key, tensor in own.items():
                tensor.copy_(torch.as_tensor(state[key]))
        except KeyError as error:
            raise SaeflowError(
                f"the saved state of the optimizer does not fit at {error}: "
                "it is of another kind of SAE, or of other settings"
            ) from error

    @property
    def _skips_unseen(self) -> bool:
        """A bad step is skipped without the host's knowledge, as the fused kernels can."""
        return list(self._optimizers) == ["adam"]

    @property
    def _tensors(self) -> dict[str, Tensor]:
        """All that an SAE is, by name."""
        return {name: tensor for tensor, name in self._names.items()} | dict(self.parameters.state)

    def _averaged(self) -> dict[str, Tensor]:
        return {name: value for name, value in self._tensors.items() if value.is_floating_point()}

    def _latent_axes(self) -> dict[str, int]:
        """The axis of latents of each tensor that has one."""
        of_rules = {name: rule.axes for name, rule in self.parameters.rules.items()}
        axes = {"encoder": 0, "b_enc": 0, "W_dec": 0}
        return axes | {name: a.index("d_sae") for name, a in of_rules.items() if "d_sae" in a}

    def _state_of_average(self) -> dict[str, Tensor]:
        return {} if self._average is None else self._average.state()

    def _update(self, rate: float, bad: Float[Tensor, ""] | None) -> None:
        if self.settings.decoder == "unit":
            _take_out_along(self.parameters.W_dec)
        if self.settings.clip is not None:
            clip_grad_norm_(list(self._names), self.settings.clip)
        for optimizer in self._optimizers.values():
            for group in optimizer.param_groups:
                group["lr"] = rate * group["factor"]
            # How torch's own loss scaling tells the fused kernels to leave everything as it is.
            optimizer.found_inf = bad  # type: ignore[attr-defined]  # read with getattr
            optimizer.step()
        self._constrain(bad)
        self._constrain_fast()
        if self._average is not None:
            self._average.update(bad)

    def _constrain(self, bad: Float[Tensor, ""] | None = None) -> None:
        self.parameters.keep_bounds()
        if self.settings.decoder == "unit":
            _put_on_sphere(self.parameters.W_dec, bad)

    @torch.no_grad()
    def _constrain_fast(self) -> None:
        """Hold schedule-free's fast sequence to the same bounds."""
        if self.settings.optimizer != "schedule-free":
            return
        for tensor, fast in fast_weights(self._optimizers["schedule-free"]):
            rule = self.parameters.rules.get(self._names[tensor])
            if rule is not None and rule.lowest is not None:
                fast.clamp_(min=rule.lowest)
            if tensor is self.parameters.W_dec and self.settings.decoder == "unit":
                _put_on_sphere(fast)

    def _to_keep(self) -> dict[str, Tensor]:
        """What is kept in place of what is in training, by name."""
        if self._average is not None:
            return self._average.means
        if self.settings.optimizer == "schedule-free":
            found = averages(self._optimizers["schedule-free"])
            return {self._names[tensor]: average for tensor, average in found}
        return {}

    @torch.no_grad()
    def _put(self, values: Mapping[str, Tensor]) -> None:
        tensors = self._tensors
        for name, value in values.items():
            tensors[name].copy_(value)


def _make_optimizers(parameters: Parameters, settings: UpdateSettings) -> dict[str, Optimizer]:
    """The optimizers, by kind; each trains some of the parameters.

    Raises:
        BadInputError: one is not installed, or can't do what is asked for.
    """
    kind, betas = settings.optimizer, (settings.beta1, settings.beta2)
    require(
        kind == "adam" or not settings.resettable,
        f"--optimizer {kind} can't forget latents that are resampled: use adam, or don't resample",
    )
    require(
        kind != "schedule-free" or settings.ema is None,
        "--ema is not for --optimizer schedule-free, whose result is an average: leave it out",
    )
    if kind == "schedule-free":
        return {kind: make_schedule_free(_groups(parameters, settings.bias_rate), betas)}
    weights = [parameters.encoder, parameters.W_dec] if kind == "muon" else []
    maker = AdamWithReset if settings.resettable else Adam
    rest = maker(_groups(parameters, settings.bias_rate, weights), lr=0.0, betas=betas, fused=True)
    return {"adam": rest, **({"muon": _make_muon(weights)} if weights else {})}


def _make_muon(weights: Collection[Tensor]) -> Optimizer:
    if not hasattr(torch.optim, "Muon"):
        raise BadInputError(
            f"--optimizer muon needs torch 2.9 or newer, and this is {torch.__version__}: "
            "use another optimizer, or upgrade torch"
        )
    return torch.optim.Muon(
        [{"params": list(weights), "factor": 1.0}],
        lr=0.0,
        weight_decay=0.0,  # 0.1 if not given
        adjust_lr_fn="match_rms_adamw",  # so that a rate for Adam is one for Muon
    )


def _groups(
    parameters: Parameters, bias_rate: float, without: Collection[Tensor] = ()
) -> list[dict[str, Any]]:
    """Groups of equal learning rate, with their factor; some tensors have one of their own."""
    by_factor: dict[float, list[Tensor]] = {1.0: []}
    factors = {"b_enc": bias_rate, **{name: rule.rate for name, rule in parameters.rules.items()}}
    for name, tensor in parameters.named_parameters():
        factor = factors.get(_own_name(name), 1.0)
        if all(tensor is not other for other in without):
            by_factor.setdefault(factor, []).append(tensor)
    return [{"params": tensors, "factor": factor} for factor, tensors in by_factor.items()]


def _own_name(name: str) -> str:
    """A tensor's name without that of the dictionary it is in."""
    return name.removeprefix("extra.")


def _take_out_along(W_dec: Tensor) -> None:
    """Leave of the gradient what is at right angles to each row."""
    assert W_dec.grad is not None
    along = (W_dec.grad * W_dec.detach()).sum(1, keepdim=True)
    W_dec.grad.addcmul_(along, W_dec.detach(), value=-1.0)


@torch.no_grad()
def _put_on_sphere(rows: Tensor, bad: Float[Tensor, ""] | None = None) -> None:
    """Divide each row by its norm; after a bad step by one, which keeps every bit of it."""
    norms = torch.linalg.vector_norm(rows, dim=1, keepdim=True).clamp_min_(_SMALLEST_NORM)
    if bad is not None:
        norms.masked_fill_(bad > 0, 1.0)
    rows.div_(norms)
