"""Adam with reset: the seeds' numbers, and how a latent goes on after its reset."""

import io
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from saeflow import AdamWithReset, BadInputError
from saeflow.train.seeds.itemwise import sparse_autoencoder_loss

KERNELS: dict[str, dict[str, Any]] = {
    "plain": {"foreach": False},
    "foreach": {"foreach": True},
    "fused": {"fused": True},
}
PARAMETERS = ("tied_bias", "encoder/weight", "encoder/bias", "decoder/weight")
AXES = {"encoder/weight": -2, "encoder/bias": -1, "decoder/weight": -1}


def seeds_step(optimizer: AdamWithReset, p: dict[str, nn.Parameter], x: Tensor) -> None:
    """A step of the stored run: the seeds' loss; no gradient along the decoder's columns."""
    weight, decoder = p["encoder/weight"], p["decoder/weight"]
    learned = (x - p["tied_bias"]).unsqueeze(-2) @ weight.mT
    learned = (learned.squeeze(-2) + p["encoder/bias"]).relu()
    decoded = (learned.unsqueeze(-2) @ decoder.mT).squeeze(-2) + p["tied_bias"]
    optimizer.zero_grad()
    sparse_autoencoder_loss(x, learned, decoded, 0.01).mean().backward()
    assert decoder.grad is not None
    unit = nn.functional.normalize(decoder.detach(), dim=-2)
    decoder.grad -= (decoder.grad * unit).sum(-2, keepdim=True) * unit
    optimizer.step()


def assert_stage(case: dict[str, Tensor], stage: str, optimizer: Any, p: dict[str, Any]) -> None:
    """Weights and moments are the stored ones, to a millionth of the largest in a tensor."""
    for name, parameter in p.items():
        found = {"p": parameter.detach(), **optimizer.state[parameter]}
        for key in ("p", "exp_avg", "exp_avg_sq", "max_exp_avg_sq", "step"):
            expected = case.get(f"{stage}_{key}_{name}")
            assert (expected is None) == (key not in found)
            if expected is not None:
                scale = expected.abs().max().item()
                torch.testing.assert_close(found[key], expected, rtol=1e-6, atol=1e-6 * scale)


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("case_name", ["CNone", "C3_comp1", "C3_comp2_amsgrad"])
def test_a_run_with_resets_gives_the_seeds_numbers(
    oracle: Any, case_name: str, kernel: str
) -> None:
    case = oracle("adam", case_name)
    p = {name: nn.Parameter(case[f"init_{name}"]) for name in PARAMETERS}
    component = case["component_idx"].item()
    optimizer = AdamWithReset(
        p.values(),
        lr=1e-2,
        betas=(0.9, 0.99),
        amsgrad="amsgrad" in case_name,
        named_parameters=p.items(),
        has_components_dim=component >= 0,
        reset_steps=False,
        **KERNELS[kernel],
    )
    for x in case["X"][:3]:
        seeds_step(optimizer, p, x)
    assert_stage(case, "before", optimizer, p)
    for name, axis in AXES.items():
        optimizer.reset_neurons_state(p[name], case["idx"], axis, max(component, 0))
    assert_stage(case, "after_reset", optimizer, p)
    for x in case["X"][3:]:
        seeds_step(optimizer, p, x)
    assert_stage(case, "end", optimizer, p)
    optimizer.reset_state_all_parameters()
    assert_stage(case, "after_reset_all", optimizer, p)


def random_steps(optimizer: Any, parameter: nn.Parameter, gradients: Tensor) -> None:
    for gradient in gradients:
        parameter.grad = gradient.clone()
        optimizer.step()


@pytest.mark.parametrize("amsgrad", [False, True])
@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("axis", [0, 1])
def test_a_latent_goes_on_from_its_reset_as_under_a_new_adam(
    axis: int, kernel: str, amsgrad: bool
) -> None:
    """Resets at two steps, in one of two components; eps is large enough to matter."""
    options: dict[str, Any] = {"lr": 0.01, "eps": 0.1, "weight_decay": 0.1, "amsgrad": amsgrad}
    options |= KERNELS[kernel]
    torch.manual_seed(0)
    parameter = nn.Parameter(torch.randn(2, 4, 4))
    gradients = torch.randn(90, 2, 4, 4)
    optimizer = AdamWithReset([parameter], has_components_dim=True, **options)
    expected = {}
    begun = 0
    for start, latent in ((30, 2), (50, 3)):
        random_steps(optimizer, parameter, gradients[begun:start])
        begun = start
        optimizer.reset_neurons_state(parameter, torch.tensor([latent]), axis, component_idx=1)
        fresh = nn.Parameter(parameter[1].select(axis, latent).detach().clone())
        new = torch.optim.Adam([fresh], **options)
        random_steps(new, fresh, gradients[start:, 1].select(axis + 1, latent))
        expected[latent] = fresh.detach()
    random_steps(optimizer, parameter, gradients[begun:])
    never = nn.Parameter(torch.zeros_like(parameter))
    torch.manual_seed(0)
    never.data.copy_(torch.randn(2, 4, 4))
    random_steps(torch.optim.Adam([never], **options), never, gradients)
    for component in range(2):
        for latent in range(4):
            found = parameter[component].select(axis, latent).detach()
            was_reset = component == 1 and latent in expected
            untouched = never[component].select(axis, latent).detach()
            right = expected[latent] if was_reset else untouched
            torch.testing.assert_close(found, right, rtol=1e-5, atol=1e-6)
            assert torch.equal(found, untouched) == (not was_reset)


def first_update_after_reset(*, reset_steps: bool) -> float:
    parameter = nn.Parameter(torch.zeros(2, 1))
    optimizer = AdamWithReset([parameter], lr=0.01, reset_steps=reset_steps)
    random_steps(optimizer, parameter, torch.ones(1, 2, 1))
    optimizer.state[parameter]["step"].fill_(20_000)  # as late in a long run
    optimizer.reset_neurons_state(parameter, torch.tensor([1]), axis=0)
    before = parameter[1].item()
    random_steps(optimizer, parameter, torch.ones(1, 2, 1))
    return (before - parameter[1].item()) / 0.01


def test_the_first_update_after_a_reset_is_the_learning_rate_and_was_three_times_that() -> None:
    assert first_update_after_reset(reset_steps=True) == pytest.approx(1, rel=0.01)
    assert first_update_after_reset(reset_steps=False) == pytest.approx(3.16, rel=0.01)


@pytest.mark.parametrize("kernel", KERNELS)
def test_resetting_everything_makes_a_new_adam(kernel: str) -> None:
    gradients = torch.randn(20, 3, 2)
    parameter = nn.Parameter(torch.ones(3, 2))
    optimizer = AdamWithReset([parameter], **KERNELS[kernel])
    random_steps(optimizer, parameter, gradients[:5])
    optimizer.reset_neurons_state(parameter, torch.tensor([1]), axis=0)
    random_steps(optimizer, parameter, gradients[5:10])
    optimizer.reset_state_all_parameters()
    fresh = nn.Parameter(parameter.detach().clone())
    random_steps(optimizer, parameter, gradients[10:])
    random_steps(torch.optim.Adam([fresh], **KERNELS[kernel]), fresh, gradients[10:])
    assert torch.equal(parameter, fresh)


@pytest.mark.parametrize("components", [None, 2])
def test_before_the_first_step_there_is_nothing_to_reset(components: int | None) -> None:
    shape = (3, 2) if components is None else (components, 3, 2)
    parameter = nn.Parameter(torch.ones(shape))
    optimizer = AdamWithReset([parameter], has_components_dim=components is not None)
    optimizer.reset_neurons_state(parameter, torch.tensor([1]), axis=-2)
    optimizer.reset_state_all_parameters()
    assert not optimizer.state


@pytest.mark.parametrize("indices", [torch.tensor(1, dtype=torch.int32), torch.tensor([1])])
def test_any_integer_indices_are_taken_and_one_needs_no_list(indices: Tensor) -> None:
    parameter = nn.Parameter(torch.ones(3, 2))
    optimizer = AdamWithReset([parameter])
    random_steps(optimizer, parameter, torch.ones(2, 3, 2))
    optimizer.reset_neurons_state(parameter, indices, axis=0)
    assert (optimizer.state[parameter]["exp_avg"] == 0).all(1).tolist() == [False, True, False]


def test_no_latents_change_nothing() -> None:
    parameter = nn.Parameter(torch.ones(3, 2))
    optimizer = AdamWithReset([parameter])
    random_steps(optimizer, parameter, torch.ones(2, 3, 2))
    optimizer.reset_neurons_state(parameter, torch.tensor([], dtype=torch.int64), axis=0)
    assert sorted(optimizer.state[parameter]) == ["exp_avg", "exp_avg_sq", "step"]
    assert (optimizer.state[parameter]["exp_avg"] > 0).all()


@pytest.mark.parametrize("kernel", KERNELS)
def test_a_saved_optimizer_goes_on_as_if_it_had_not_stopped(kernel: str) -> None:
    def make(weights: Tensor) -> tuple[nn.Parameter, AdamWithReset]:
        parameter = nn.Parameter(weights.clone())
        return parameter, AdamWithReset([parameter], lr=0.1, **KERNELS[kernel])

    gradients = torch.randn(40, 3, 2)
    parameter, optimizer = make(torch.ones(3, 2))
    random_steps(optimizer, parameter, gradients[:10])
    optimizer.reset_neurons_state(parameter, torch.tensor([0, 2]), axis=0)
    random_steps(optimizer, parameter, gradients[10:15])
    file = io.BytesIO()
    torch.save(optimizer.state_dict(), file)
    again, other = make(parameter.detach())
    other.load_state_dict(torch.load(io.BytesIO(file.getvalue()), weights_only=True))
    random_steps(optimizer, parameter, gradients[15:])
    random_steps(other, again, gradients[15:])
    assert torch.equal(parameter, again)


def test_every_option_reaches_adam() -> None:
    options: dict[str, Any] = {"lr": 0.3, "betas": (0.5, 0.6), "eps": 0.7, "weight_decay": 0.8}
    options |= {"amsgrad": True, "maximize": True}
    found, expected = nn.Parameter(torch.ones(2, 2)), nn.Parameter(torch.ones(2, 2))
    gradients = torch.randn(5, 2, 2)
    random_steps(AdamWithReset([found], **options), found, gradients)
    random_steps(torch.optim.Adam([expected], **options), expected, gradients)
    assert torch.equal(found, expected)


def test_a_closure_may_change_the_weights() -> None:
    parameter = nn.Parameter(torch.ones(2, 1))
    optimizer = AdamWithReset([parameter], lr=0.1)
    random_steps(optimizer, parameter, torch.ones(3, 2, 1))
    optimizer.reset_neurons_state(parameter, torch.tensor([1]), axis=0)

    def closure() -> float:
        parameter.data.fill_(5.0)
        parameter.grad = torch.ones(2, 1)
        return 7.0

    assert optimizer.step(closure) == 7.0
    torch.testing.assert_close(parameter.detach(), torch.full((2, 1), 4.9))


def test_other_peoples_hooks_run_once_a_step() -> None:
    parameter = nn.Parameter(torch.ones(2, 1))
    torch.optim.Adam([parameter])
    optimizer = AdamWithReset([parameter])
    calls: list[str] = []
    optimizer.register_step_pre_hook(lambda *_: calls.append("before"))
    optimizer.register_step_post_hook(lambda *_: calls.append("after"))
    random_steps(optimizer, parameter, torch.ones(1, 2, 1))
    assert calls == ["before", "after"]


def test_what_cannot_be_reset_is_refused() -> None:
    parameter = nn.Parameter(torch.ones(3, 2))
    optimizer = AdamWithReset([parameter])
    random_steps(optimizer, parameter, torch.ones(1, 3, 2))
    with pytest.raises(BadInputError, match="component_idx is 1 and the parameter has 1"):
        optimizer.reset_neurons_state(parameter, torch.tensor([0]), axis=0, component_idx=1)
    with pytest.raises(BadInputError, match="not one of this optimizer's"):
        optimizer.reset_neurons_state(nn.Parameter(torch.ones(3, 2)), torch.tensor([0]), axis=0)
    optimizer.reset_neurons_state(parameter, torch.tensor([0]), axis=0)
    with pytest.raises(BadInputError, match="reset along another"):
        optimizer.reset_neurons_state(parameter, torch.tensor([0]), axis=1)
    with pytest.raises(BadInputError, match="2 parameter names and 1 parameters"):
        AdamWithReset([parameter], named_parameters=[("a", parameter), ("b", parameter)])
