"""The resampler: the seeds' numbers, its windows, its state, and what it refuses."""

import io
import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from saeflow import ActivationResampler, BadInputError
from saeflow.train.seeds.choosing import choose_rows, dead_of_components
from saeflow.train.seeds.parameter_updates import ParameterUpdateResults
from saeflow.train.seeds.resampling import new_weights
from saeflow.train.seeds.window import Window

Updates = list[ParameterUpdateResults] | None


def resampler_of(case: dict[str, Tensor], **changed: Any) -> ActivationResampler:
    """With the settings of a stored run, and its random numbers."""
    options: dict[str, Any] = {
        "n_learned_features": case["n_learned"].item(),
        "n_components": case["n_components"].item(),
        "resample_interval": case["resample_interval"].item(),
        "max_n_resamples": case["max_n_resamples"].item(),
        "n_activations_activity_collate": case["n_activations_activity_collate"].item(),
        "resample_dataset_size": case["resample_dataset_size"].item(),
        "threshold_is_dead_portion_fires": case["threshold"].item(),
    }
    generator = torch.Generator().manual_seed(int(case["rng_seed"]))
    return ActivationResampler(**(options | changed), generator=generator)


def run(case: dict[str, Tensor], resampler: ActivationResampler) -> list[Updates]:
    return [
        resampler(case[f"x_{i}"], case[f"learned_{i}"], case[f"loss_{i}"], case["encoder_weight"])
        for i in range(int(case["n_batches"]))
    ]


def assert_updates(case: dict[str, Tensor], batch: int, updates: Updates) -> None:
    """They are those that the stored run had after a batch."""
    if updates is None:
        assert f"out{batch}_c0_idx" not in case
        return
    assert len(updates) == case["n_components"].item()
    for component, update in enumerate(updates):
        expected = {
            name: case[f"out{batch}_c{component}_{name}"] for name in ("idx", "enc", "bias", "dec")
        }
        assert update.dead_neuron_indices.dtype == torch.int64
        assert update.dead_neuron_indices.tolist() == expected["idx"].reshape(-1).tolist()
        assert torch.equal(update.dead_encoder_bias_updates, expected["bias"].reshape(-1))
        for found, right in (
            (update.dead_encoder_weight_updates, expected["enc"]),
            (update.dead_decoder_weight_updates, expected["dec"]),
        ):
            torch.testing.assert_close(found, right, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize(
    "case_name",
    [
        "c2",
        "noaxis_c1",
        "one_dead",
        "none_dead",
        "threshold",
        "max1",
        "max0",
        "zero_loss_none_dead",
    ],
)
def test_a_run_gives_the_seeds_numbers(oracle: Any, case_name: str) -> None:
    case = oracle("resampler", f"full_{case_name}")
    for batch, updates in enumerate(run(case, resampler_of(case))):
        assert_updates(case, batch, updates)


def test_a_dataset_longer_than_the_interval_is_refused_and_was_the_interval(oracle: Any) -> None:
    case = oracle("resampler", "full_loss_gt_interval")
    with pytest.raises(BadInputError, match=r"resample_dataset_size is 60: give .* at most 30"):
        resampler_of(case)
    for batch, updates in enumerate(run(case, resampler_of(case, resample_dataset_size=30))):
        assert_updates(case, batch, updates)


def test_windows_of_whole_batches_give_the_seeds_numbers(oracle: Any) -> None:
    """The seed's windows begin with a batch; ours do not, but the rest is the same."""
    case = oracle("resampler", "full_uneven")
    interval, collate, dataset = (
        case[name].item()
        for name in ("resample_interval", "n_activations_activity_collate", "resample_dataset_size")
    )
    generator = torch.Generator().manual_seed(int(case["rng_seed"]))
    window = Window.empty(2, 8)
    n_resampled = 0
    for batch in range(int(case["n_batches"])):
        x, learned, loss = (case[f"{name}_{batch}"] for name in ("x", "learned", "loss"))
        if window.n_seen >= interval - collate:
            window.count((learned > 0).sum(0), len(x))
        if window.n_seen >= interval - dataset:
            window.keep(x, loss)
        window.n_seen += len(x)
        if window.n_seen >= interval:
            dead = dead_of_components(window.fired, interval, 0.0)
            chosen = choose_rows([len(each) for each in dead], torch.cat(window.losses), generator)
            encoder = case["encoder_weight"]
            updates = []
            for c, places in enumerate(chosen):
                assert places.tolist() == case[f"sampled{batch}_c{c}"].tolist()
                rows = window.rows_at(c, places, like=encoder)
                updates.append(new_weights(dead[c], rows, window.fired[c], encoder[c]))
            assert_updates(case, batch, updates)
            window = Window.empty(2, 8)
            n_resampled += 1
    assert n_resampled == 2


def run_failed(case: dict[str, Tensor]) -> list[ParameterUpdateResults]:
    """Go on where the seed raised: its last batch was not stored, so the one before comes again."""
    resampler = resampler_of(case)
    for i in (0, 1, 1):
        resampler.update(case[f"x_{i}"], case[f"learned_{i}"], case[f"loss_{i}"])
    assert resampler.due
    return resampler.compute(case["encoder_weight"])


@pytest.mark.parametrize(
    ("case_name", "components"), [("comp_all_dead", [1]), ("all_dead", [0, 1])]
)
def test_a_component_without_any_living_latent_is_left_alone_with_a_line(
    oracle: Any, case_name: str, components: list[int], caplog: pytest.LogCaptureFixture
) -> None:
    updates = run_failed(oracle("resampler", f"full_{case_name}"))
    assert [update.dead_encoder_weight_updates.shape for update in updates] == [(0, 5), (0, 5)]
    assert [record.getMessage() for record in caplog.records] == [
        f"component {c}: no latent fired in the last 30 rows; none was resampled"
        for c in components
    ]


def test_without_any_loss_rows_are_drawn_all_the_same(oracle: Any) -> None:
    updates = run_failed(oracle("resampler", "full_zero_loss"))
    assert [update.dead_neuron_indices.tolist() for update in updates] == [[1, 5], [2, 3, 6]]
    for update in updates:
        norms = update.dead_decoder_weight_updates.norm(dim=0)
        torch.testing.assert_close(norms, torch.ones_like(norms))


def small(**changed: Any) -> ActivationResampler:
    options: dict[str, Any] = {
        "n_learned_features": 4,
        "n_components": None,
        "resample_interval": 30,
        "n_activations_activity_collate": 20,
        "resample_dataset_size": 12,
    }
    return ActivationResampler(**(options | changed))


def numbered(first: int, n: int) -> dict[str, Tensor]:
    """Rows that say their number; latent 0 always fires, latent 1 in odd rows, 2 and 3 never."""
    numbers = torch.arange(first, first + n, dtype=torch.float32)
    zero, one = torch.zeros(n), torch.ones(n)
    return {
        "input_activations": torch.stack([numbers, one], 1),
        "learned_activations": torch.stack([one, numbers % 2, zero, -one], 1),
        "loss": one + numbers,
    }


@given(batches=st.lists(st.integers(1, 30), min_size=1, max_size=30))
@settings(max_examples=60, deadline=None)
def test_windows_hold_exactly_the_rows_that_they_are_said_to(batches: list[int]) -> None:
    """However the rows come in batches: the last 20 of each 30 count, the last 12 are kept."""
    resampler, seen = small(max_n_resamples=math.inf), 0
    for n in batches:
        resampler.update(**numbered(seen, n))
        seen += n
        if resampler.due:
            state = resampler.state_dict()
            begin = seen // 30 * 30 - 30
            assert state["current.n_seen"] == 30
            assert state["current.n_counted"] == 20
            assert state["current.fired"].tolist() == [[20, 10, 0, 0]]
            kept = list(range(begin + 18, begin + 30))
            assert state["current.rows"][:, 0, 0].tolist() == kept
            assert state["current.losses"][:, 0].tolist() == [1 + row for row in kept]
            assert state["surplus.n_seen"] == seen % 30
            [update] = resampler.compute(torch.ones(4, 2))
            assert update.dead_neuron_indices.tolist() == [2, 3]
    assert resampler.n_times_resampled == seen // 30
    assert resampler.state_dict()["current.n_seen"] == seen % 30


def test_the_threshold_is_of_the_rows_that_were_counted_and_not_of_the_interval() -> None:
    """Latent 1 fired in 10 of 20 rows: more than 0.4 of them, fewer than 0.4 of 30."""
    for portion, dead in ((0.4, [2, 3]), (0.5, [1, 2, 3])):
        resampler = small(threshold_is_dead_portion_fires=portion)
        resampler.update(**numbered(0, 30))
        [update] = resampler.compute(torch.ones(4, 2))
        assert update.dead_neuron_indices.tolist() == dead


def test_counts_of_whole_batches_are_enough() -> None:
    by_rows, by_counts = small(), small()
    for first in range(0, 30, 10):
        batch = numbered(first, 10)
        by_rows.update(**batch)
        fired = (batch["learned_activations"] > 0).sum(0)
        by_counts.update_counts(batch["input_activations"], fired, batch["loss"])
    assert_same(by_rows.state_dict(), by_counts.state_dict())


def test_a_batch_of_counts_across_the_windows_edges_is_counted_whole() -> None:
    resampler = small(max_n_resamples=2)
    for first in range(0, 32, 8):
        batch = numbered(first, 8)
        fired = (batch["learned_activations"] > 0).sum(0)
        resampler.update_counts(batch["input_activations"], fired, batch["loss"])
    state = resampler.state_dict()
    assert state["current.n_counted"] == 24  # rows 8 to 31, where 10 to 29 are in the window
    assert state["current.fired"].tolist() == [[24, 12, 0, 0]]
    assert state["current.rows"][:, 0, 0].tolist() == list(range(18, 30))
    assert state["surplus.n_seen"] == 2


def test_losses_may_be_computed_when_they_are_needed() -> None:
    """Only row 20 is reconstructed badly by the weights as they are when it matters."""
    resampler = small(n_learned_features=4)
    batch = numbered(0, 30)
    resampler.update(batch["input_activations"], batch["learned_activations"], None)

    def loss_of(rows: Tensor) -> Tensor:
        assert rows.shape[1:] == (2,)
        return (rows[:, 0] == 20).float() + 1e-20

    with pytest.raises(BadInputError, match="12 rows were kept to resample from and 0 losses"):
        resampler.compute(torch.ones(4, 2))
    [update] = resampler.compute(torch.ones(4, 2), loss_of=loss_of)
    expected = torch.tensor([20.0, 1.0]) / math.sqrt(401)
    torch.testing.assert_close(update.dead_decoder_weight_updates[:, 0], expected)


def test_a_bias_is_subtracted_from_rows_where_it_is_given() -> None:
    resampler = small()
    resampler.update(**numbered(0, 30))
    [update] = resampler.compute(torch.ones(4, 2), bias=torch.tensor([0.0, 1.0]))
    expected = torch.tensor([[1.0, 1.0], [0.0, 0.0]])  # without it, the second were not zero
    torch.testing.assert_close(update.dead_decoder_weight_updates, expected)


def test_what_is_kept_is_a_copy_without_a_graph() -> None:
    resampler = small()
    batch = numbered(0, 30)
    for values in batch.values():
        values.requires_grad_()
    resampler.update(**batch)
    with torch.no_grad():
        batch["input_activations"].zero_()
    state = resampler.state_dict()
    assert state["current.rows"][0, 0, 0] == 18
    assert not state["current.rows"].requires_grad
    assert not state["current.losses"].requires_grad
    [update] = resampler.compute(torch.ones(4, 2, requires_grad=True))
    assert not update.dead_encoder_weight_updates.requires_grad


def test_after_the_last_resampling_nothing_is_collected() -> None:
    resampler = small(max_n_resamples=1)
    resampler.update(**numbered(0, 20))
    resampler.update(**numbered(20, 20))
    resampler.compute(torch.ones(4, 2))
    assert resampler.finished
    for _ in range(4):
        resampler.update(**numbered(0, 30))
        assert not resampler.due
    assert resampler.state_dict()["current.n_seen"] == 0
    assert "current.rows" not in resampler.state_dict()


def assert_same(found: dict[str, Any], expected: dict[str, Any]) -> None:
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        same = torch.equal(found[name], value) if torch.is_tensor(value) else found[name] == value
        assert same, name


@pytest.mark.parametrize("stop", range(0, 70, 7))
def test_a_saved_resampler_goes_on_as_if_it_had_not_stopped(stop: int) -> None:
    """Saved after any batch, where a resampling is due too."""

    def go(resampler: ActivationResampler, seen: int, until: int) -> list[Tensor]:
        found = []
        while True:
            if resampler.due and seen < until:
                [update] = resampler.compute(torch.ones(4, 2))
                found.append(update.dead_decoder_weight_updates)
            if seen >= until:
                return found
            resampler.update(**numbered(seen, 7))
            seen += 7

    whole = small()
    expected = go(whole, 0, 140)
    first, second = small(), small(generator=torch.Generator().manual_seed(99))
    found = go(first, 0, stop)
    file = io.BytesIO()
    torch.save(first.state_dict(), file)
    second.load_state_dict(torch.load(io.BytesIO(file.getvalue()), weights_only=True))
    found += go(second, stop, 140)
    assert len(found) == len(expected) == 4
    assert all(map(torch.equal, found, expected))
    assert_same(second.state_dict(), whole.state_dict())


def test_more_dead_latents_than_rows_are_refused_and_nothing_is_lost() -> None:
    resampler = small(resample_dataset_size=1)
    resampler.update(**numbered(0, 30))
    before = resampler.state_dict()
    with pytest.raises(BadInputError) as refusal:
        resampler.compute(torch.ones(4, 2))
    assert str(refusal.value) == (
        "component 0 has 2 dead latents and 1 sampled rows to resample them from: "
        "nothing was changed; give a larger resample_dataset_size"
    )
    assert_same(resampler.state_dict(), before)
    assert resampler.due


def test_the_defaults_are_the_papers() -> None:
    resampler = ActivationResampler(n_learned_features=8)
    assert resampler.resample_interval == 200_000_000
    assert resampler.max_n_resamples == 4
    assert resampler.n_activations_activity_collate == 100_000_000
    assert resampler.resample_dataset_size == 819_200
    assert resampler.threshold_is_dead_portion_fires == 0.0


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        (
            {"n_activations_activity_collate": 31},
            (
                "n_activations_activity_collate is 31: "
                "give at least 1 and at most 30, the resample_interval"
            ),
        ),
        ({"resample_interval": 0}, "resample_interval is 0: give at least 1"),
        ({"max_n_resamples": -1}, "max_n_resamples is -1: give at least 0"),
        (
            {"threshold_is_dead_portion_fires": 1.5},
            "threshold_is_dead_portion_fires is 1.5: give at least 0 and at most 1",
        ),
    ],
)
def test_settings_that_make_no_sense_are_refused(changed: dict[str, Any], message: str) -> None:
    with pytest.raises(BadInputError) as refusal:
        small(**changed)
    assert str(refusal.value) == message


def test_a_batch_longer_than_the_interval_and_a_state_of_another_width_are_refused() -> None:
    with pytest.raises(BadInputError, match="a batch has 31 rows and the resample_interval is 30"):
        small().update(**numbered(0, 31))
    with pytest.raises(BadInputError, match=r"state is of \(1, 4\) .* its settings of \(1, 5\)"):
        small(n_learned_features=5).load_state_dict(small().state_dict())
