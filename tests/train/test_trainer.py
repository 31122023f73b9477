"""Training on data with a known answer, and what a trainer counts, folds and refuses."""

import copy
import math
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from saeflow.errors import SaeflowError
from saeflow.train.architecture import Architecture
from saeflow.train.jumprelu import JumpReLU
from saeflow.train.normalisation import Normalisation
from saeflow.train.optimizer import UpdateSettings
from saeflow.train.parameters import Parameters
from saeflow.train.relu import ReLU
from saeflow.train.resample import Resampling
from saeflow.train.schedule import Schedule
from saeflow.train.seeds.activation_resampler import ActivationResampler
from saeflow.train.topk import TopK
from saeflow.train.trainer import Trainer

Rows = Callable[..., Tensor]
Normalise = Callable[[Tensor], Normalisation]
N_STEPS, BATCH = 400, 256


def make_trainer(
    architecture: Architecture, normalisation: Normalisation, n_steps: int = N_STEPS, **changed: Any
) -> Trainer:
    start = normalisation.mean * normalisation.scale
    schedule = Schedule(peak=3e-3, n_steps=n_steps, warm_up=n_steps // 20, decay=n_steps // 5)
    options = {"schedule": schedule, "dead_after": 10 * BATCH, **changed}
    extra = architecture.initial(64)
    parameters = Parameters.initial(start, 64, seed=0, extra=extra, rules=architecture.rules)
    return Trainer(architecture, parameters, normalisation, **options)


def fit(trainer: Trainer, batches: Iterator[Tensor]) -> list[dict[str, float]]:
    """Train; the figures of each step."""
    lines = []
    for step, rows in enumerate(batches):
        objective = trainer.step((rows,), step)
        lines.append(trainer.figures((rows,), step, objective))
    return lines


def fvu_of(trainer: Trainer, rows: Tensor) -> float:
    """Of raw rows, through the folded parameters, as an evaluation sees them."""
    inference, p = trainer.architecture.trained(trainer.normalisation.folded(trainer.parameters))
    latents = inference.encode(p, rows)
    error = (latents @ p.W_dec + p.b_dec - rows).square().sum()
    return (error / (rows - rows.mean(0)).square().sum()).item()


def l0_of(trainer: Trainer, rows: Tensor) -> float:
    inference, p = trainer.architecture.trained(trainer.normalisation.folded(trainer.parameters))
    latents = inference.encode(p, rows)
    return (latents > 0).sum(1).float().mean().item()


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize("architecture", [TopK(3), ReLU(1.0)], ids=["topk", "relu"])
def test_training_explains_sparse_data(
    sparse_rows: Rows, normalisation_of: Normalise, architecture: Architecture
) -> None:
    trainer = make_trainer(architecture, normalisation_of(sparse_rows(20_000)))
    unseen = sparse_rows(2000, seed=-1)
    untrained = fvu_of(trainer, unseen)
    fit(trainer, (sparse_rows(BATCH, seed=2 + step) for step in range(N_STEPS)))
    assert fvu_of(trainer, unseen) < 0.2
    assert fvu_of(trainer, unseen) < untrained / 2
    assert l0_of(trainer, unseen) < 20
    torch.testing.assert_close(trainer.parameters.W_dec.norm(dim=1), torch.ones(64))


@pytest.mark.usefixtures("unchecked")
def test_massive_rows_do_not_spoil_training(sparse_rows: Rows, normalisation_of: Normalise) -> None:
    """Two rows of every batch are a thousand times as long as the others."""
    trainer = make_trainer(TopK(3), normalisation_of(sparse_rows(20_000)))

    def batches() -> Iterator[Tensor]:
        for step in range(N_STEPS):
            rows = sparse_rows(BATCH, seed=2 + step)
            rows[:2] *= 1000
            yield rows

    lines = fit(trainer, batches())
    assert fvu_of(trainer, sparse_rows(2000, seed=-1)) < 0.15
    assert all(math.isfinite(line["loss"]) for line in lines)


def test_folded_parameters_do_on_raw_rows_what_trained_ones_do_on_normalised_rows(
    random_parameters: Callable[..., Parameters],
) -> None:
    p = random_parameters(6, 20)
    normalisation = Normalisation(mean=torch.zeros(6), scale=0.037)
    folded = normalisation.folded(p)
    x = torch.randn(50, 6, dtype=torch.float64)
    raw = x / 0.037

    latents = TopK(4).activate((x - p.b_dec) @ p.W_enc + p.b_enc)
    raw_latents = TopK(4).activate((raw - folded.b_dec) @ folded.W_enc + folded.b_enc)
    torch.testing.assert_close(raw_latents, latents / 0.037)
    torch.testing.assert_close(
        raw_latents @ folded.W_dec + folded.b_dec, (latents @ p.W_dec + p.b_dec) / 0.037
    )


def test_folding_copies(random_parameters: Callable[..., Parameters]) -> None:
    """Training on after a fold changes nothing that was written from it."""
    p = random_parameters(3, 4)
    folded = Normalisation(torch.zeros(3), 2.0).folded(p)
    before = [t.clone() for t in folded.parameters()]
    with torch.no_grad():
        for t in p.parameters():
            t.add_(1.0)
    assert all(torch.equal(a, b) for a, b in zip(before, folded.parameters(), strict=True))
    assert not any(t.requires_grad for t in folded.parameters())


def test_normalised_rows_lie_at_the_root_of_d_in(normalisation_of: Normalise) -> None:
    rows = 40 * torch.randn(4000, 16) * torch.linspace(0.1, 3, 16) + 500
    normalisation = normalisation_of(rows)
    squares = ((rows - normalisation.mean) * normalisation.scale).square().sum(1)
    assert squares.mean().item() == pytest.approx(16, rel=1e-4)


def test_rows_that_do_not_vary_are_refused() -> None:
    with pytest.raises(SaeflowError, match="rows are all equal"):
        Normalisation.from_statistics(np.ones(4), np.zeros(4), torch.device("cpu"))


def test_latents_are_dead_when_they_were_silent_long_enough(
    sparse_rows: Rows, normalisation_of: Normalise
) -> None:
    trainer = make_trainer(TopK(3), normalisation_of(sparse_rows(5000)), n_steps=15)
    with torch.no_grad():
        trainer.parameters.b_enc[:7] = -1e6
    lines = fit(trainer, (sparse_rows(BATCH, seed=s) for s in range(15)))
    assert [line["dead"] >= 7 for line in lines] == [False] * 9 + [True] * 6
    assert trainer.since_fired[:7].tolist() == [15 * BATCH] * 7
    assert trainer.since_fired.min() == 0


def test_a_latent_that_wakes_is_not_dead_any_more(
    sparse_rows: Rows, normalisation_of: Normalise
) -> None:
    trainer = make_trainer(TopK(3), normalisation_of(sparse_rows(5000)))
    with torch.no_grad():
        trainer.parameters.b_enc[0] = -1e6
    trainer.step((sparse_rows(BATCH),), 0)
    with torch.no_grad():
        trainer.parameters.b_enc[0] = 1e6
    silent = trainer.since_fired[0].item()
    trainer.step((sparse_rows(BATCH),), 1)
    assert (silent, trainer.since_fired[0].item()) == (BATCH, 0)


def test_the_logged_figures_are_of_the_last_batch(
    sparse_rows: Rows, normalisation_of: Normalise
) -> None:
    """A figure that still held earlier batches would be of an SAE that is no more."""
    trainer = make_trainer(TopK(3), normalisation_of(sparse_rows(5000)), n_steps=2)
    last = sparse_rows(BATCH, seed=9)
    _, line = fit(trainer, iter([sparse_rows(BATCH) * 1.5, last]))
    again = make_trainer(TopK(3), normalisation_of(sparse_rows(5000)), n_steps=2)
    again.step((sparse_rows(BATCH) * 1.5,), 0)
    assert line["fvu"] == pytest.approx(fvu_of(again, last), rel=1e-4)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_after_a_loss_that_is_not_finite_nothing_is_updated(
    sparse_rows: Rows, normalisation_of: Normalise, bad: float
) -> None:
    trainer = make_trainer(TopK(3), normalisation_of(sparse_rows(5000)), n_steps=6)
    trainer.step((sparse_rows(BATCH),), 0)
    before = {name: tensor.clone() for name, tensor in trainer.state_dict().items() if "." in name}
    assert trainer.first_bad_step() is None
    rows = sparse_rows(BATCH)
    rows[5, 3] = bad
    for step, batch in enumerate([rows, sparse_rows(BATCH)], 1):
        trainer.step((batch,), step)
    assert trainer.first_bad_step() == 1
    after = trainer.state_dict()
    assert all(torch.equal(before[name], after[name]) for name in before)


@pytest.mark.parametrize("architecture", [TopK(3), ReLU(1.0)], ids=["topk", "relu"])
def test_a_batch_in_parts_gives_the_same_step(
    sparse_rows: Rows, normalisation_of: Normalise, architecture: Architecture
) -> None:
    normalisation, rows = normalisation_of(sparse_rows(5000)), sparse_rows(BATCH)
    whole, parts = (make_trainer(architecture, normalisation, accumulate=n) for n in (1, 3))
    one, other = (trainer.step((rows,), 0) for trainer in (whole, parts))
    torch.testing.assert_close(other.loss, one.loss)
    torch.testing.assert_close(other.reconstruction, one.reconstruction)
    assert torch.equal(other.fired, one.fired)
    for a, b in zip(parts.parameters.parameters(), whole.parameters.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


@pytest.mark.usefixtures("unchecked")
def test_bfloat16_comes_near_to_float32(sparse_rows: Rows, normalisation_of: Normalise) -> None:
    """Weights stay in float32: an update that bfloat16 would round away must not be lost."""
    unseen, found = sparse_rows(2000, seed=-1), {}
    for precision in ("float32", "bfloat16"):
        trainer = make_trainer(
            TopK(3), normalisation_of(sparse_rows(20_000)), n_steps=200, precision=precision
        )
        fit(trainer, (sparse_rows(BATCH, seed=2 + step) for step in range(200)))
        found[precision] = fvu_of(trainer, unseen)
        assert {p.dtype for p in trainer.parameters.parameters()} == {torch.float32}
    assert found["bfloat16"] == pytest.approx(found["float32"], rel=0.15)


@pytest.mark.usefixtures("unchecked")
def test_decoder_norms_that_are_free_grow_and_are_folded_away(
    sparse_rows: Rows, normalisation_of: Normalise
) -> None:
    settings = UpdateSettings(decoder="free")
    trainer = make_trainer(TopK(3), normalisation_of(sparse_rows(20_000)), settings=settings)
    fit(trainer, (sparse_rows(BATCH, seed=2 + step) for step in range(N_STEPS)))
    norms = trainer.parameters.W_dec.norm(dim=1)
    assert norms.std() > 0.01
    with trainer.finished() as (_, p):
        torch.testing.assert_close(p.W_dec.norm(dim=1), torch.ones(64))
    assert fvu_of(trainer, sparse_rows(2000, seed=-1)) < 0.2


@pytest.mark.parametrize("name", ["plain", "ema", "free", "resample", "muon"])
def test_a_trainer_goes_on_from_its_state(
    sparse_rows: Rows, normalisation_of: Normalise, name: str
) -> None:
    normalisation = normalisation_of(sparse_rows(5000))

    def begun() -> Trainer:
        settings = {
            "ema": UpdateSettings(ema=0.9),
            "free": UpdateSettings(decoder="free"),
            "resample": UpdateSettings(resettable=True),
            "muon": UpdateSettings(optimizer="muon"),
        }.get(name, UpdateSettings())
        resampler = ActivationResampler(64, None, 3 * BATCH, 2, 2 * BATCH, BATCH)
        resampling = Resampling(resampler, {}) if name == "resample" else None
        trainer = make_trainer(
            TopK(3), normalisation, n_steps=8, settings=settings, resampling=resampling
        )
        with torch.no_grad():
            trainer.parameters.b_enc[:9] = -1e3  # so that there is something to resample
        return trainer

    whole, first, second = begun(), begun(), begun()
    for step in range(8):
        whole.step((sparse_rows(BATCH, seed=step),), step)
        if step < 5:
            first.step((sparse_rows(BATCH, seed=step),), step)
    kept = {name: copy.deepcopy(value) for name, value in first.state_dict().items()}
    second.load_state_dict(kept)
    for step in range(5, 8):
        second.step((sparse_rows(BATCH, seed=step),), step)
    for (key, one), other in zip(
        whole.state_dict().items(), second.state_dict().values(), strict=True
    ):
        assert torch.equal(torch.as_tensor(one), torch.as_tensor(other)), key
    if name == "resample":
        assert whole.parameters.b_enc[:9].min() > -1e3


def test_resampled_latents_come_back_to_life(
    sparse_rows: Rows, normalisation_of: Normalise
) -> None:
    resampler = ActivationResampler(64, None, 4 * BATCH, 1, 2 * BATCH, 2 * BATCH)
    trainer = make_trainer(
        JumpReLU(weight=0.1),
        normalisation_of(sparse_rows(5000)),
        settings=UpdateSettings(resettable=True),
        resampling=Resampling(resampler, JumpReLU().initial(64)),
    )
    with torch.no_grad():
        trainer.parameters.b_enc[:9] = -1e3
        trainer.parameters.more("threshold")[:9] = 7.0
    fit(trainer, (sparse_rows(BATCH, seed=step) for step in range(4)))
    assert trainer.parameters.b_enc[:9].tolist() == [0.0] * 9
    assert trainer.parameters.more("threshold")[:9].tolist() == [JumpReLU.start] * 9
    assert trainer.since_fired[:9].tolist() == [0] * 9
    fit(trainer, (sparse_rows(BATCH, seed=step) for step in range(4, 14)))
    assert (trainer.since_fired[:9] < 10 * BATCH).any()


def test_nothing_is_resampled_by_rows_that_are_not_finite(
    sparse_rows: Rows, normalisation_of: Normalise
) -> None:
    """The interval ends with the batch that diverges."""
    resampler = ActivationResampler(64, None, 2 * BATCH, 1, BATCH, BATCH)
    trainer = make_trainer(
        TopK(3),
        normalisation_of(sparse_rows(5000)),
        settings=UpdateSettings(resettable=True),
        resampling=Resampling(resampler, {}),
    )
    with torch.no_grad():
        trainer.parameters.b_enc[:9] = -1e3
    trainer.step((sparse_rows(BATCH),), 0)
    trainer.step((sparse_rows(BATCH) * math.nan,), 1)
    assert trainer.first_bad_step() == 1
    assert trainer.parameters.b_enc[:9].max() < -900
