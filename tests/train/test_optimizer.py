"""Gradients into weights: the sphere, the three optimizers, averages, bad steps, and resuming."""

import json
import operator
import sys
from collections.abc import Callable, Iterable
from typing import Any

import pytest
import torch
from safetensors.torch import load, save
from torch import Tensor
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from saeflow.errors import BadInputError, SaeflowError
from saeflow.train.optimizer import Updater, UpdateSettings
from saeflow.train.parameters import Parameters, Rule
from saeflow.train.seeds.parameter_updates import ParameterUpdateResults, apply_updates

KINDS = ("adam", "muon", "schedule-free")
RULES = {
    "threshold": Rule(rate=10.0, lowest=0.0),
    "gain": Rule(),
    "level": Rule(axes=(), trained=False),
}


@pytest.fixture
def make_parameters(
    random_parameters: Callable[..., Parameters],
) -> Callable[..., Parameters]:
    """20 latents on rows 6 wide, with a bounded tensor, an unbounded one and a number of state."""

    def parameters(seed: int = 0) -> Parameters:
        four = random_parameters(6, 20, seed).float()
        weights = four.encoder.detach(), four.b_enc.detach()
        decoder = four.W_dec.detach(), four.b_dec.detach()
        extra = {
            "threshold": torch.full((20,), 0.01),
            "gain": torch.linspace(-1, 1, 20),
            "level": torch.tensor(2.0),
        }
        return Parameters(*weights, *decoder, extra, RULES)

    return parameters


@pytest.fixture(params=KINDS)
def kind(request: pytest.FixtureRequest) -> str:
    """Each optimizer in turn."""
    if request.param == "schedule-free":
        pytest.importorskip("schedulefree", reason="needs the extra [schedule-free]")
    if request.param == "muon" and not hasattr(torch.optim, "Muon"):
        pytest.skip("needs torch 2.9")
    return str(request.param)


def backward(terms: Iterable[Tensor]) -> None:
    torch.stack(list(terms)).sum().backward()


def train(updater: Updater, steps: range, bad: Tensor | None = None, rate: float = 0.02) -> None:
    """Updates by gradients that depend on the step and on the weights; the state changes too."""
    p = updater.parameters
    for step in steps:
        generator = torch.Generator().manual_seed(step)
        loss = torch.zeros(())
        for tensor in p.parameters():
            target = torch.randn(tensor.shape, generator=generator)
            loss = loss + (tensor - target).square().sum() + (tensor * target).sum()
        loss.backward()
        p.renew({"level": torch.tensor(float(step))})
        updater.step(rate, bad)


def snapshot(p: Parameters) -> dict[str, Tensor]:
    return {name: tensor.detach().clone() for name, tensor in p.state_dict().items()}


def all_of(updater: Updater) -> dict[str, Any]:
    """Weights, state, moments and averages; what is no tensor, too."""
    kept = {name: getattr(v, "clone", lambda v=v: v)() for name, v in updater.state_dict().items()}
    return snapshot(updater.parameters) | kept


def assert_same(one: dict[str, Any], other: dict[str, Any]) -> None:
    """To the bit."""
    assert one.keys() == other.keys()
    for name, value in one.items():
        equal = torch.equal if isinstance(value, Tensor) else operator.eq
        assert equal(value, other[name]), name


def test_adam_on_the_sphere_is_this_loop(make_parameters: Callable[..., Parameters]) -> None:
    """Written out with torch's Adam, and equal to the last bit."""
    p, q = make_parameters(), make_parameters()
    updater = Updater(p, UpdateSettings())
    slow = [q.encoder, q.b_enc, q.W_dec, q.b_dec, q.extra["gain"]]
    fast = [q.extra["threshold"]]
    adam = torch.optim.Adam([{"params": slow}, {"params": fast}], fused=True)
    for step in range(12):
        rate = 0.01 * (step + 1)
        for parameters in (p, q):
            torch.manual_seed(step)
            backward((t * torch.randn_like(t)).sum() for t in parameters.parameters())
        updater.step(rate)

        assert q.W_dec.grad is not None
        along = (q.W_dec.grad * q.W_dec.detach()).sum(1, keepdim=True)
        q.W_dec.grad.addcmul_(along, q.W_dec.detach(), value=-1.0)
        adam.param_groups[0]["lr"], adam.param_groups[1]["lr"] = rate, 10 * rate
        adam.step()
        adam.zero_grad()
        with torch.no_grad():
            q.extra["threshold"].clamp_(min=0)
            q.W_dec.copy_(F.normalize(q.W_dec, dim=1))
        assert_same(snapshot(p), snapshot(q))


@pytest.mark.parametrize("kind", KINDS, indirect=True)
def test_decoder_rows_in_training_keep_unit_norm(
    kind: Any, make_parameters: Callable[..., Parameters]
) -> None:
    p = make_parameters()
    updater, before = Updater(p, UpdateSettings(optimizer=kind)), p.W_dec.detach().clone()
    for step in range(20):
        train(updater, range(step, step + 1), rate=0.1)
        torch.testing.assert_close(p.W_dec.norm(dim=1), torch.ones(20))
    assert not torch.allclose(before, p.W_dec, atol=0.1)


def test_free_decoder_rows_may_grow(kind: Any, make_parameters: Callable[..., Parameters]) -> None:
    p = make_parameters()
    updater = Updater(p, UpdateSettings(optimizer=kind, decoder="free"))
    for _ in range(10):
        (-(p.W_dec.norm(dim=1)).sum() + p.encoder.sum()).backward()
        updater.step(0.1)
    assert p.W_dec.norm(dim=1).min() > 1.1


def test_the_gradient_along_a_row_is_taken_out(make_parameters: Callable[..., Parameters]) -> None:
    """Adam's moments hold only directions in which a row can move."""
    p = make_parameters()
    updater, rows = Updater(p, UpdateSettings()), p.W_dec.detach().clone()
    (p.W_dec * torch.randn(20, 6)).sum().backward()
    updater.step(1e-3)
    moment = updater.state_dict()["adam.W_dec.exp_avg"]
    assert isinstance(moment, Tensor)
    assert moment.norm(dim=1).min() > 1e-3
    torch.testing.assert_close((moment * rows).sum(1), torch.zeros(20))


def test_a_gradient_only_along_the_rows_moves_nothing() -> None:
    """Adam would make a full step of rounding noise: parallel gradients are exact here."""
    p = Parameters(torch.zeros(4, 4), torch.zeros(4), torch.eye(4), torch.zeros(4))
    p.W_dec.square().sum().backward()
    Updater(p, UpdateSettings()).step(0.1)
    assert torch.equal(p.W_dec, torch.eye(4))


def test_the_rate_of_the_step_is_used_and_gradients_are_gone(
    make_parameters: Callable[..., Parameters],
) -> None:
    p = make_parameters()
    before = snapshot(p)
    backward(tensor.sum() for tensor in p.parameters())
    Updater(p, UpdateSettings(bias_rate=4.0)).step(0.0005)
    moved = {name: (before[name] - tensor).detach() for name, tensor in p.named_parameters()}
    torch.testing.assert_close(moved["b_dec"], torch.full((6,), 0.0005))
    torch.testing.assert_close(moved["b_enc"], torch.full((20,), 0.002))
    torch.testing.assert_close(moved["extra.threshold"], torch.full((20,), 0.005))
    assert all(tensor.grad is None for tensor in p.parameters())


def test_no_update_leaves_a_tensor_below_its_bound(
    kind: Any, make_parameters: Callable[..., Parameters]
) -> None:
    p = make_parameters()
    updater = Updater(p, UpdateSettings(optimizer=kind))
    for _ in range(5):
        (p.more("threshold").sum() + p.W_dec.sum() + p.encoder.sum()).backward()
        updater.step(0.1)
    with updater.final():
        assert torch.equal(p.more("threshold"), torch.zeros(20))
    (-p.more("threshold").sum() + p.W_dec.sum() + p.encoder.sum()).backward()
    updater.step(0.1)
    assert p.more("threshold").min() >= 0


def test_a_long_gradient_is_shortened_and_a_short_one_is_not(
    make_parameters: Callable[..., Parameters],
) -> None:
    for clip, expected in ((0.5, 0.5), (1e6, None)):
        p = make_parameters()
        backward(tensor.square().sum() for tensor in p.parameters())
        gradients = [t.grad for n, t in p.named_parameters() if n != "W_dec" and t.grad is not None]
        norm = torch.cat([g.flatten() for g in gradients]).norm().item()
        updater = Updater(p, UpdateSettings(clip=clip))
        updater.step(1e-3)
        moments = [v for k, v in updater.state_dict().items() if k.endswith("exp_avg")]
        length = torch.cat([m.flatten() for m in moments if isinstance(m, Tensor)]).norm().item()
        assert length == pytest.approx(0.1 * (expected or norm), rel=1e-4)


def settings_of(kind: Any, **changed: Any) -> UpdateSettings:
    average = {} if kind == "schedule-free" else {"ema": 0.9}
    return UpdateSettings(optimizer=kind, clip=1.0, **{**average, **changed})


def test_a_bad_step_leaves_everything_as_it_was(
    kind: Any, make_parameters: Callable[..., Parameters]
) -> None:
    """Gradients that are not numbers come nearest to the weights: they get nowhere."""
    p = make_parameters()
    updater = Updater(p, settings_of(kind))
    train(updater, range(5))
    before = all_of(updater)
    for tensor in p.parameters():
        tensor.grad = torch.full_like(tensor, torch.nan)
    updater.step(0.02, torch.tensor(1.0))
    assert_same(all_of(updater), before)
    assert all(tensor.grad is None for tensor in p.parameters())


def test_training_goes_on_after_a_bad_step_as_if_it_had_not_been(
    kind: Any, make_parameters: Callable[..., Parameters]
) -> None:
    """Also if the first step is bad; and a step that is said to be good is as any other."""
    p, q = (Updater(make_parameters(), settings_of(kind)) for _ in range(2))
    for start in (0, 3):
        for tensor in p.parameters.parameters():
            tensor.grad = torch.full_like(tensor, torch.inf)
        p.step(0.02, torch.tensor(1.0))
        train(p, range(start, start + 3), bad=torch.tensor(0.0))
        train(q, range(start, start + 3))
    assert_same(all_of(p), all_of(q))


def resample(updater: Updater, latents: list[int]) -> None:
    """New weights for latents, as the resampler puts them in place."""
    p, n = updater.parameters, len(latents)
    rows = F.normalize(torch.randn(n, 6, generator=torch.Generator().manual_seed(9)), dim=1)
    new = ParameterUpdateResults(torch.tensor(latents), rows / 5, torch.zeros(n), rows.T)
    names: dict[str, Any] = {
        "encoder_weight": p.encoder,
        "encoder_bias": p.b_enc,
        "decoder_weight": p.W_dec,
    }
    apply_updates([new], **names, decoder_axis=-2, optimizer=updater.adam)  # type: ignore[arg-type]  # it is resettable
    updater.reset(torch.tensor(latents))


def test_a_bad_step_right_after_a_reset_leaves_everything_as_it_was(
    make_parameters: Callable[..., Parameters],
) -> None:
    updater = Updater(make_parameters(), settings_of("adam", resettable=True))
    train(updater, range(5))
    resample(updater, [3, 7])
    before = all_of(updater)
    for tensor in updater.parameters.parameters():
        tensor.grad = torch.full_like(tensor, torch.nan)
    updater.step(0.02, torch.tensor(1.0))
    after = all_of(updater)
    left = "adam.group0.corrected_steps_left"  # for how long to look at resets: it may run out
    assert after.pop(left) <= before.pop(left)
    assert_same(after, before)


class Reads(TorchDispatchMode):
    """Counts how often the host looks at a number on the device, for which it has to wait."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # torch's own
        self.n = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        waits = (torch.ops.aten._local_scalar_dense, torch.ops.aten.nonzero)
        self.n += func.overloadpacket in waits
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("settings", [UpdateSettings(), settings_of("adam", resettable=True)])
def test_a_step_of_adam_never_waits_for_the_device(
    settings: UpdateSettings, make_parameters: Callable[..., Parameters]
) -> None:
    """Nor while latents are young, but for one look at them after each resampling."""
    updater = Updater(make_parameters(), settings)
    train(updater, range(2))
    if settings.resettable:
        resample(updater, [3, 7])
        train(updater, range(2, 3))
    for bad in (None, torch.tensor(0.0), torch.tensor(1.0)):
        for tensor in updater.parameters.parameters():
            tensor.grad = torch.ones_like(tensor)
        with Reads() as reads:
            updater.step(0.01, bad)
        assert reads.n == 0
    with Reads() as reads:
        assert torch.tensor(1.0).item() == 1
    assert reads.n == 1


def test_muon_makes_equally_long_steps_in_all_directions(
    make_parameters: Callable[..., Parameters],
) -> None:
    """And as long as Adam's typical ones: 0.2 times the rate, as a root mean square."""
    if not hasattr(torch.optim, "Muon"):
        pytest.skip("needs torch 2.9")
    p = make_parameters()
    before = p.encoder.detach().clone()
    (p.encoder * torch.randn(20, 6)).sum().backward()
    p.W_dec.grad = torch.zeros_like(p.W_dec)
    updater = Updater(p, UpdateSettings(optimizer="muon"))
    updater.step(0.1)
    moved = p.encoder.detach() - before
    strengths = torch.linalg.svdvals(moved)
    assert strengths.max() / strengths.min() < 2
    assert moved.square().mean().sqrt().item() == pytest.approx(0.02, rel=0.25)
    held = {key.split(".")[1] for key in updater.state_dict() if key.startswith("muon.")}
    assert held == {"encoder", "W_dec"}


def test_schedule_frees_result_is_the_librarys(make_parameters: Callable[..., Parameters]) -> None:
    schedulefree = pytest.importorskip("schedulefree", reason="needs the extra [schedule-free]")
    p, q = make_parameters(), make_parameters()
    updater = Updater(p, UpdateSettings(optimizer="schedule-free", decoder="free"))
    theirs = schedulefree.AdamWScheduleFree(q.parameters(), lr=0.02, betas=(0.9, 0.999))
    theirs.train()
    for step in range(10):
        for parameters, update in ((p, lambda: updater.step(0.02)), (q, theirs.step)):
            torch.manual_seed(step)
            backward((t - torch.randn_like(t)).square().sum() for t in _with_rate_one(parameters))
            update()
        theirs.zero_grad()
    theirs.eval()
    with updater.final():
        for ours, other in zip(_with_rate_one(p), _with_rate_one(q), strict=True):
            torch.testing.assert_close(ours, other)


def _with_rate_one(p: Parameters) -> list[Tensor]:
    return [p.encoder, p.b_enc, p.W_dec, p.b_dec, p.more("gain")]


@pytest.mark.usefixtures("unchecked")
def test_schedule_free_rows_are_handed_out_with_unit_norm_and_were_nearly_so(
    make_parameters: Callable[..., Parameters],
) -> None:
    pytest.importorskip("schedulefree", reason="needs the extra [schedule-free]")
    unit, same = (
        Updater(make_parameters(), UpdateSettings(optimizer="schedule-free")) for _ in range(2)
    )
    train(unit, range(200), rate=0.01)
    train(same, range(200), rate=0.01)
    object.__setattr__(same.settings, "decoder", "free")  # as they are, before the sphere
    with unit.final(), same.final():
        norms = same.parameters.W_dec.norm(dim=1)
        torch.testing.assert_close(unit.parameters.W_dec.norm(dim=1), torch.ones(20))
        torch.testing.assert_close(norms, torch.ones(20), rtol=0.01, atol=0)
        assert not torch.allclose(norms, torch.ones(20), rtol=1e-6)


def test_the_average_weighs_the_steps_and_not_the_initial_weights(
    make_parameters: Callable[..., Parameters],
) -> None:
    p = make_parameters()
    updater = Updater(p, UpdateSettings(ema=0.75, decoder="free"))
    seen: list[dict[str, Tensor]] = []
    for step in range(6):
        train(updater, range(step, step + 1), rate=0.3)
        seen.append(snapshot(p))
        weights = [0.75**age for age in reversed(range(len(seen)))]
        with updater.final():
            for name, tensor in p.state_dict().items():
                terms = [w * then[name] for w, then in zip(weights, seen, strict=True)]
                torch.testing.assert_close(tensor, sum(terms) / sum(weights))


def test_averaged_decoder_rows_have_unit_norm(make_parameters: Callable[..., Parameters]) -> None:
    updater = Updater(make_parameters(), UpdateSettings(ema=0.9))
    train(updater, range(20), rate=0.3)
    mean = updater.state_dict()["ema.W_dec"]
    assert isinstance(mean, Tensor)
    with updater.final():
        rows = updater.parameters.W_dec.detach().clone()
    assert mean.norm(dim=1).max() < 0.99
    torch.testing.assert_close(rows, F.normalize(mean, dim=1))


def fail_inside_final(updater: Updater) -> None:
    before = snapshot(updater.parameters)
    with updater.final():
        assert not torch.equal(updater.parameters.encoder, before["encoder"])
        raise LookupError("inside")


def test_after_final_the_weights_in_training_are_back(
    kind: Any, make_parameters: Callable[..., Parameters]
) -> None:
    """To the bit, also after an error inside, and training goes on as if nobody had looked."""
    updater, other = (Updater(make_parameters(), settings_of(kind)) for _ in range(2))
    train(updater, range(3))
    train(other, range(3))
    for step in range(3, 6):
        train(updater, range(step, step + 1))
        train(other, range(step, step + 1))
        before = all_of(updater)
        with pytest.raises(LookupError, match="inside"):
            fail_inside_final(updater)
        assert_same(all_of(updater), before)
    assert_same(all_of(updater), all_of(other))


def test_final_is_the_weights_in_training_where_nothing_is_averaged(
    make_parameters: Callable[..., Parameters],
) -> None:
    updater = Updater(make_parameters(), UpdateSettings())
    train(updater, range(3))
    before = snapshot(updater.parameters)
    with updater.final():
        assert_same(snapshot(updater.parameters), before)


def test_before_the_first_step_final_is_the_initial_weights(
    kind: Any, make_parameters: Callable[..., Parameters]
) -> None:
    p = make_parameters()
    before = snapshot(p)
    with Updater(p, settings_of(kind)).final():
        torch.testing.assert_close(snapshot(p), before)


def test_after_a_reset_the_average_of_a_latent_is_its_new_weights(
    make_parameters: Callable[..., Parameters],
) -> None:
    updater = Updater(make_parameters(), settings_of("adam", resettable=True))
    train(updater, range(5))
    before = all_of(updater)
    resample(updater, [3, 7])
    after, p = all_of(updater), updater.parameters
    others = [latent for latent in range(20) if latent not in (3, 7)]
    for name in ("encoder", "b_enc", "W_dec"):
        assert torch.equal(after[f"ema.{name}"][[3, 7]], p.state_dict()[name][[3, 7]])
        assert torch.equal(after[f"ema.{name}"][others], before[f"ema.{name}"][others])
    assert torch.equal(after["ema.threshold"][[3, 7]], p.more("threshold")[[3, 7]])
    for name in ("ema.b_dec", "ema.level", "adam.b_dec.exp_avg"):
        assert torch.equal(after[name], before[name])
    assert not after["adam.W_dec.exp_avg"][[3, 7]].any()


def through_a_file(state: dict[str, Any]) -> dict[str, Any]:
    """A state as a checkpoint would keep it: safetensors, and JSON."""
    tensors = {name: value for name, value in state.items() if isinstance(value, Tensor)}
    numbers = {name: value for name, value in state.items() if not isinstance(value, Tensor)}
    return {**load(save(tensors)), **json.loads(json.dumps(numbers))}


def resumed(updater: Updater, make_parameters: Callable[..., Parameters]) -> Updater:
    """A new updater with what the other one has, by way of a file."""
    p = make_parameters(seed=1)
    p.load_state_dict(load(save(snapshot(updater.parameters))))
    new = Updater(p, updater.settings)
    new.load_state_dict(through_a_file(updater.state_dict()))
    return new


ALL_SETTINGS = [
    *(settings_of(kind, decoder=decoder) for kind in KINDS for decoder in ("unit", "free")),
    UpdateSettings(),
    UpdateSettings(beta1=0.0, beta2=0.9, resettable=True),
]


@pytest.mark.parametrize("settings", ALL_SETTINGS, ids=str)
def test_training_resumes_at_every_step(
    settings: UpdateSettings, make_parameters: Callable[..., Parameters]
) -> None:
    """Bit for bit: weights, moments, averages, and what comes out at the end."""
    if settings.optimizer == "schedule-free":
        pytest.importorskip("schedulefree", reason="needs the extra [schedule-free]")
    straight = Updater(make_parameters(), settings)
    again = resumed(straight, make_parameters)
    for step in range(8):
        train(straight, range(step, step + 1), rate=0.05 / (step + 1))
        train(again, range(step, step + 1), rate=0.05 / (step + 1))
        assert_same(all_of(again), all_of(straight))
        again = resumed(again, make_parameters)
    with straight.final(), again.final():
        assert_same(snapshot(again.parameters), snapshot(straight.parameters))


def test_training_resumes_after_latents_were_reset(
    make_parameters: Callable[..., Parameters],
) -> None:
    straight = Updater(make_parameters(), settings_of("adam", resettable=True))
    train(straight, range(4))
    resample(straight, [3, 7])
    at_once = resumed(straight, make_parameters)
    train(straight, range(4, 6))
    later = resumed(straight, make_parameters)
    state = later.state_dict()
    assert {"adam.encoder.born_at", "adam.group0.corrected_steps_left"} <= state.keys()
    train(straight, range(6, 12))
    train(at_once, range(4, 12))
    train(later, range(6, 12))
    assert_same(all_of(at_once), all_of(straight))
    assert_same(all_of(later), all_of(straight))


def test_a_loaded_state_is_a_copy(make_parameters: Callable[..., Parameters]) -> None:
    updater = Updater(make_parameters(), settings_of("adam"))
    train(updater, range(3))
    state = {name: v.clone() if isinstance(v, Tensor) else v for name, v in all_of(updater).items()}
    saved = {name: state[name] for name in updater.state_dict()}
    other = Updater(make_parameters(), updater.settings)
    other.load_state_dict(saved)
    train(other, range(3, 6))
    assert_same(saved, {name: state[name] for name in saved})
    assert_same(updater.state_dict(), saved)


@pytest.mark.parametrize(
    ("key", "value"),
    [("adam.b_mag.exp_avg", torch.zeros(3)), ("muon.encoder.momentum_buffer", torch.zeros(3)),
     ("ema.b_mag", torch.zeros(3)), ("adam.group7.k", 3)],
)  # fmt: skip
def test_a_state_of_something_else_is_refused(
    key: str, value: Any, make_parameters: Callable[..., Parameters]
) -> None:
    updater = Updater(make_parameters(), settings_of("adam"))
    train(updater, range(2))
    with pytest.raises(SaeflowError, match=f"does not fit at '({key}|{key.split('.')[1]})'"):
        updater.load_state_dict({**updater.state_dict(), key: value})


def test_a_state_without_the_average_is_refused(
    make_parameters: Callable[..., Parameters],
) -> None:
    plain = Updater(make_parameters(), UpdateSettings())
    with pytest.raises(SaeflowError, match="does not fit at 'ema_mass'"):
        Updater(make_parameters(), settings_of("adam")).load_state_dict(plain.state_dict())


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (UpdateSettings(optimizer="muon", resettable=True), "can't forget latents"),
        (UpdateSettings(optimizer="schedule-free", resettable=True), "can't forget latents"),
        (UpdateSettings(optimizer="schedule-free", ema=0.9), "--ema is not for"),
    ],
)
def test_settings_that_contradict_each_other_are_refused(
    settings: UpdateSettings, message: str, make_parameters: Callable[..., Parameters]
) -> None:
    with pytest.raises(BadInputError, match=message):
        Updater(make_parameters(), settings)


def test_what_is_not_installed_is_named(
    make_parameters: Callable[..., Parameters], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "schedulefree", None)
    with pytest.raises(BadInputError, match=r"pip install 'saeflow\[schedule-free\]'$"):
        Updater(make_parameters(), UpdateSettings(optimizer="schedule-free"))
    monkeypatch.delattr(torch.optim, "Muon", raising=False)
    with pytest.raises(BadInputError, match=r"--optimizer muon needs torch 2\.9 or newer"):
        Updater(make_parameters(), UpdateSettings(optimizer="muon"))
