"""Adam whose memory of chosen latents can be taken away, after they were given new weights."""

from collections.abc import Iterable
from typing import Any

import torch
from jaxtyping import Float, Integer
from torch import Tensor, nn
from torch.optim import Adam

from saeflow.errors import BadInputError
from saeflow.train.seeds.late_start import Young, part, steps_until_negligible, young_latents

_MOMENTS = ("exp_avg", "exp_avg_sq", "max_exp_avg_sq")
_BORN = "born_at"
_LEFT = "corrected_steps_left"


class AdamWithReset(Adam):
    """torch's Adam, with any of its kernels, and two methods that reset its state.

    Adam divides by `1 - beta ** step`, since its moments begin at zero. Latents whose
    moments become zero again later would get updates of three times the learning rate,
    soon of 6.5 times, and after a hundred steps still of three times; so each of them
    has its steps counted from its reset, and moves as under a new Adam from its next
    step on. `reset_steps=False` counts them from the beginning of the run, as the
    original does. The counts are in the `state_dict`, next to the moments.

    Args:
        params: what Adam takes.
        lr: learning rate.
        betas: decay rates of the two moments.
        eps: added to the root of the second moment.
        weight_decay: L2 penalty.
        amsgrad: divide by the largest second moment so far.
        foreach: the kernel over lists of tensors; None lets torch choose.
        maximize: go uphill.
        capturable: for CUDA graphs.
        differentiable: let autograd through the step.
        fused: the fused kernel; None lets torch choose.
        named_parameters: `model.named_parameters()`, of which the names are kept in
            `parameter_names`; None for none.
        has_components_dim: the parameters' first axis is the component axis.
        reset_steps: count a latent's steps from its reset.

    Raises:
        BadInputError: there are not as many names as parameters.

    >>> import torch
    >>> weight = torch.nn.Parameter(torch.ones(3, 2))  # three latents
    >>> optimizer = AdamWithReset([weight], lr=0.1)
    >>> weight.sum().backward()
    >>> optimizer.step()
    >>> optimizer.reset_neurons_state(weight, torch.tensor([1]), axis=0)
    >>> optimizer.state[weight]["exp_avg"][:, 0]
    tensor([0.1000, 0.0000, 0.1000])
    """

    def __init__(
        self,
        params: Any,
        lr: float | Float[Tensor, ""] = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0,
        *,
        amsgrad: bool = False,
        foreach: bool | None = None,
        maximize: bool = False,
        capturable: bool = False,
        differentiable: bool = False,
        fused: bool | None = None,
        named_parameters: Iterable[tuple[str, nn.Parameter]] | None = None,
        has_components_dim: bool = False,
        reset_steps: bool = True,
    ) -> None:
        super().__init__(
            params,
            lr=lr,
            betas=betas,
            eps=eps,
            weight_decay=weight_decay,
            amsgrad=amsgrad,
            foreach=foreach,
            maximize=maximize,
            capturable=capturable,
            differentiable=differentiable,
            fused=fused,
        )
        self.has_components_dim = has_components_dim
        self.reset_steps = reset_steps
        self.parameter_names = [name for name, _ in named_parameters or ()]
        self._young: dict[Tensor, list[Young]] = {}
        self._corrections: list[tuple[dict[str, Any], Tensor, Young, Tensor]] = []
        # Not by a `step` of ours: torch would call other people's hooks for it and for Adam's.
        self.register_step_pre_hook(_before_step)
        self.register_step_post_hook(_after_step)
        n_parameters = sum(len(group["params"]) for group in self.param_groups)
        if named_parameters is not None and len(self.parameter_names) != n_parameters:
            raise BadInputError(
                f"there are {len(self.parameter_names)} parameter names and {n_parameters} "
                "parameters: give model.named_parameters() with its default settings"
            )

    def reset_state_all_parameters(self) -> None:
        """Forget everything: the moments of every parameter, and with `reset_steps` the steps."""
        for group in self.param_groups:
            for parameter in group["params"]:
                state = self.state.get(parameter, {})
                for name in _MOMENTS:
                    if name in state:
                        state[name].zero_()
                if self.reset_steps and "step" in state:
                    state["step"].zero_()
                    state.pop(_BORN, None)
                    self._young.pop(parameter, None)

    def reset_neurons_state(
        self,
        parameter: Tensor,
        neuron_indices: Integer[Tensor, "*latents"],
        axis: int,
        component_idx: int | None = 0,
    ) -> None:
        """Forget the moments of some latents of one parameter.

        Before the first step, and without latents, there is nothing to forget.

        Args:
            parameter: one of the optimizer's.
            neuron_indices: the latents, of any integer type.
            axis: the axis of latents, counted in one component.
            component_idx: the component; 0 or None where there is no such axis.

        Raises:
            BadInputError: the parameter is not the optimizer's; there is no such
                component; the parameter was reset along another axis before.
        """
        group = self._group_of(parameter)
        self._check_component(parameter, component_idx)
        state = self.state.get(parameter, {})
        if not state or not neuron_indices.numel():
            return
        indices = neuron_indices.reshape(-1).to(parameter.device, torch.int64)
        component = self._index(component_idx)
        for name in _MOMENTS:
            if name in state:
                part(state[name], component).index_fill_(axis, indices, 0)
        if self.reset_steps:
            born = self._born(parameter, axis)
            step = state["step"].item()
            part(born, component).index_fill_(axis, indices, step)
            group[_LEFT] = steps_until_negligible(group["betas"])
            self._young.pop(parameter, None)

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)  # type: ignore[no-untyped-call]  # torch's own
        self._young = {}

    def _group_of(self, parameter: Tensor) -> dict[str, Any]:
        for group in self.param_groups:
            if any(parameter is each for each in group["params"]):
                return group
        raise BadInputError(
            f"a parameter of shape {tuple(parameter.shape)} is not one of this optimizer's: "
            "give one that it was made with"
        )

    def _check_component(self, parameter: Tensor, component_idx: int | None) -> None:
        n_components = len(parameter) if self.has_components_dim else 1
        if not 0 <= (component_idx or 0) < n_components:
            raise BadInputError(
                f"component_idx is {component_idx} and the parameter has {n_components} "
                "component(s): give a smaller one, or has_components_dim=True"
            )

    def _born(self, parameter: Tensor, axis: int) -> Float[Tensor, "*shape"]:
        """After which step each latent was last reset; other axes have length 1."""
        shape = [1] * parameter.ndim
        if self.has_components_dim:
            shape[0] = len(parameter)
        latents = part(parameter, self._index(0)).shape[axis]
        shape[axis if axis < 0 else axis + self.has_components_dim] = latents
        born: Tensor = self.state[parameter].setdefault(
            _BORN, torch.zeros(shape, device=parameter.device)
        )
        if list(born.shape) != shape:
            raise BadInputError(
                f"axis is {axis} and the parameter was reset along another before: "
                "a parameter's latents have one axis"
            )
        return born

    def _remember(self) -> None:
        """Keep the weights of latents that begin later than the others, before an update."""
        self._corrections = []
        for group in self.param_groups:
            if not group.get(_LEFT, 0):
                continue
            group[_LEFT] -= 1
            for parameter in group["params"]:
                if parameter.grad is not None:
                    self._corrections.extend(
                        (group, parameter, young, young.of(parameter.detach()))
                        for young in self._young_latents(parameter)
                    )

    @torch.no_grad()
    def _correct(self) -> None:
        """Give those latents the update that they should have had."""
        for group, parameter, young, before in self._corrections:
            young.correct(parameter, before, self.state[parameter], group)
        self._corrections = []

    def _young_latents(self, parameter: Tensor) -> list[Young]:
        if _BORN not in self.state.get(parameter, {}):
            return []
        if parameter not in self._young:  # until the next reset: looking waits for the device
            n_components = len(parameter) if self.has_components_dim else None
            born = self.state[parameter][_BORN]
            self._young[parameter] = young_latents(parameter, born, n_components)
        return self._young[parameter]

    def _index(self, component_idx: int | None) -> int | None:
        return (component_idx or 0) if self.has_components_dim else None


def _before_step(
    optimizer: AdamWithReset, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
    """What torch calls before a step; gives back other arguments for it."""
    if not any(group.get(_LEFT, 0) for group in optimizer.param_groups):
        return None
    closure = args[1] if len(args) > 1 else kwargs.get("closure")
    if closure is None:
        optimizer._remember()
        return None
    with torch.enable_grad():
        result = closure()  # here, since it may change weights before the update
    optimizer._remember()
    return (args[0], lambda: result), {}


def _after_step(optimizer: AdamWithReset, _args: tuple[Any, ...], _kwargs: dict[str, Any]) -> None:
    """What torch calls after a step."""
    optimizer._correct()
