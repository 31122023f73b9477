"""The shapes of the learning rate and of the sparsity penalty, and what holds for all of them."""

import math
from itertools import pairwise
from typing import get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st

from saeflow.train.schedule import Schedule, Shape, default_rate

FALLING = ("linear", "cosine", "restarts")


@st.composite
def schedules(draw: st.DrawFn, shapes: tuple[Shape, ...] = get_args(Shape)) -> Schedule:
    """Any schedule whose warm-up and decay do not overlap."""
    n_steps = draw(st.integers(1, 120))
    warm_up = draw(st.integers(0, n_steps))
    return Schedule(
        peak=draw(st.floats(1e-6, 10)),
        n_steps=n_steps,
        warm_up=warm_up,
        decay=draw(st.integers(0, n_steps - warm_up)),
        shape=draw(st.sampled_from(shapes)),
        cycles=draw(st.integers(1, 8)),
        sparsity_warm_up=draw(st.none() | st.integers(0, n_steps)),
    )


def rates(schedule: Schedule) -> list[float]:
    return [schedule.rate(step) for step in range(schedule.n_steps)]


def test_the_rate_rises_stays_and_falls() -> None:
    schedule = Schedule(peak=2.0, n_steps=10, warm_up=4, decay=2)
    assert [schedule.rate(step) for step in range(11)] == [0.5, 1.0, 1.5, *[2.0] * 6, 1.0, 0.0]


def test_linear_falls_evenly_from_the_warm_up_on() -> None:
    schedule = Schedule(peak=4.0, n_steps=10, warm_up=2, decay=0, shape="linear")
    expected = [2, 4, 4, 3.5, 3, 2.5, 2, 1.5, 1, 0.5, 0]
    assert [schedule.rate(step) for step in range(11)] == expected


def test_cosine_is_at_half_the_peak_half_way() -> None:
    schedule = Schedule(peak=2.0, n_steps=12, warm_up=4, decay=0, shape="cosine")
    expected = [1 + math.cos(math.pi * done / 8) for done in range(9)]
    assert [schedule.rate(step) for step in range(4, 13)] == pytest.approx(expected, abs=1e-12)
    assert schedule.rate(8) == pytest.approx(1.0)


def test_restarts_are_equal_cosines_one_after_the_other() -> None:
    schedule = Schedule(peak=1.0, n_steps=14, warm_up=2, decay=0, shape="restarts", cycles=3)
    one = [(1 + math.cos(math.pi * done / 4)) / 2 for done in range(4)]
    assert rates(schedule)[2:] == pytest.approx(3 * one)
    assert schedule.rate(14) == 0


@given(n_steps=st.integers(8, 200), cycles=st.integers(1, 8))
def test_each_restart_is_at_the_peak_though_the_cycles_do_not_divide_the_steps(
    n_steps: int, cycles: int
) -> None:
    schedule = Schedule(3.0, n_steps, 0, 0, shape="restarts", cycles=cycles)
    starts = [step for step, rate in enumerate(rates(schedule)) if rate == schedule.peak]
    assert len(starts) == cycles
    lengths = [b - a for a, b in pairwise([*starts, n_steps])]
    assert max(lengths) - min(lengths) <= 1


def test_one_cycle_of_restarts_is_a_cosine() -> None:
    once, cosine = (Schedule(1.0, 50, 5, 0, shape=shape) for shape in ("restarts", "cosine"))
    assert rates(once) == rates(cosine)


def test_a_decay_lies_over_any_shape() -> None:
    plain = Schedule(1.0, 20, 0, 0, shape="cosine")
    with_decay = Schedule(1.0, 20, 0, 4, shape="cosine")
    factors = [*[1.0] * 16, 1.0, 0.75, 0.5, 0.25]
    expected = [rate * factor for rate, factor in zip(rates(plain), factors, strict=True)]
    assert rates(with_decay) == pytest.approx(expected)


@given(schedules())
def test_every_rate_is_above_zero_and_at_most_the_peak(schedule: Schedule) -> None:
    assert all(0 < rate <= schedule.peak for rate in rates(schedule))


@given(schedules())
def test_the_warm_up_rises_by_even_steps_to_the_peak(schedule: Schedule) -> None:
    rising = rates(schedule)[: schedule.warm_up]
    steps = range(1, schedule.warm_up + 1)
    assert rising == pytest.approx([schedule.peak * step / schedule.warm_up for step in steps])


@given(schedules())
def test_the_rate_never_jumps_but_at_a_restart(schedule: Schedule) -> None:
    """Two steps differ by no more than the steepest slope; a restart jumps upwards."""
    length = max(1, schedule.n_steps - schedule.warm_up)
    cycles = min(length, schedule.cycles if schedule.shape == "restarts" else 1)
    slope = 0.0 if schedule.shape == "constant" else math.pi / 2 / (length // cycles)
    most = slope + sum(1 / part for part in (schedule.warm_up, schedule.decay) if part)
    for before, after in pairwise(rates(schedule)):
        assert before - after <= schedule.peak * (most + 1e-9)
        if schedule.shape != "restarts":
            assert after - before <= schedule.peak * (most + 1e-9)


@given(schedules())
def test_what_falls_ends_at_zero_one_step_after_the_last(schedule: Schedule) -> None:
    falls = schedule.decay or (schedule.shape in FALLING and schedule.warm_up < schedule.n_steps)
    assert schedule.rate(schedule.n_steps) == (0 if falls else schedule.peak)


@given(schedules(shapes=("constant",)))
def test_a_constant_rate_is_the_lower_one_of_its_two_ramps(schedule: Schedule) -> None:
    """To the last bit: runs of earlier versions keep their numbers."""
    for step in range(schedule.n_steps):
        rise = min(1.0, (step + 1) / schedule.warm_up) if schedule.warm_up else 1.0
        fall = (schedule.n_steps - step) / schedule.decay if schedule.decay else 1.0
        assert schedule.rate(step) == schedule.peak * min(rise, fall)


def test_without_warm_up_and_decay_the_rate_is_constant() -> None:
    schedule = Schedule(peak=0.3, n_steps=5, warm_up=0, decay=0)
    assert set(rates(schedule)) == {0.3}
    assert schedule.progress(0) == schedule.pressure(0) == 1.0


def test_progress_reaches_one_and_stays() -> None:
    schedule = Schedule(peak=1.0, n_steps=100, warm_up=4, decay=0)
    assert [schedule.progress(s) for s in (0, 1, 2, 3, 4, 99)] == [0.25, 0.5, 0.75, 1, 1, 1]


def test_the_penalty_rises_with_the_rate_unless_it_has_a_warm_up_of_its_own() -> None:
    together = Schedule(1.0, 10, warm_up=2, decay=0)
    own = Schedule(1.0, 10, warm_up=2, decay=0, sparsity_warm_up=5)
    at_once = Schedule(1.0, 10, warm_up=2, decay=0, sparsity_warm_up=0)
    assert [together.pressure(step) for step in range(3)] == [0.5, 1, 1]
    assert [own.pressure(step) for step in range(6)] == [0.2, 0.4, 0.6, 0.8, 1, 1]
    assert at_once.pressure(0) == 1
    assert rates(together) == rates(own) == rates(at_once)


@given(schedules())
def test_the_penalty_only_rises(schedule: Schedule) -> None:
    pressures = [schedule.pressure(step) for step in range(schedule.n_steps)]
    assert pressures == sorted(pressures)
    assert 0 < pressures[0] <= pressures[-1] == 1


def test_wider_saes_learn_slower() -> None:
    assert default_rate(1024) > default_rate(4096) > default_rate(65536) > 0
