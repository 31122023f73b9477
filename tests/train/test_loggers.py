"""Curves in TensorBoard, wandb and Trackio: named, resumed without doubles, optional."""

import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from saeflow.errors import BadInputError
from saeflow.train.loggers import open_loggers

Curves = dict[str, list[tuple[int, float]]]


def read_tensorboard(run: Path) -> Curves:
    """All curves, as TensorBoard itself reads them."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(run / "tensorboard"))
    events.Reload()
    return {
        tag: [(point.step, point.value) for point in events.Scalars(tag)]
        for tag in events.Tags()["scalars"]
    }


@pytest.fixture
def tensorboard_curves() -> Callable[[Path], Curves]:
    """What is in RUN/tensorboard."""
    pytest.importorskip("tensorboard", reason="needs the extra [tensorboard]")
    return read_tensorboard


@dataclass
class FakeRun:
    """A run of wandb or Trackio that remembers what it gets, by step."""

    given: dict[str, Any]
    starting_step: int = 0
    points: list[tuple[int, dict[str, float]]] = field(default_factory=list)
    finished: bool = False

    @property
    def _next_step(self) -> int:  # what Trackio calls it
        return self.starting_step

    def log(self, values: dict[str, float], step: int) -> None:
        self.points.append((step, values))

    def finish(self) -> None:
        print("finish, as Trackio says")
        self.finished = True


@pytest.fixture(params=["wandb", "trackio"])
def service(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """Either one without its server: `.name`, `.runs` as they were opened, `.has` steps."""
    fake = SimpleNamespace(name=request.param, runs=[], has=0, refuses=None)

    class Error(Exception):
        pass

    def init(**given: Any) -> FakeRun:
        print("init, as Trackio says")
        if fake.refuses:
            raise Error(fake.refuses)
        fake.runs.append(FakeRun(given, starting_step=fake.has))
        return fake.runs[-1]  # type: ignore[no-any-return]

    module: Any = ModuleType(request.param)
    module.init, module.Error, module.Settings = init, Error, dict
    module.log = lambda values, step: fake.runs[-1].log(values, step=step)
    module.finish = lambda: fake.runs[-1].finish()
    monkeypatch.setitem(sys.modules, request.param, module)
    monkeypatch.delenv("WANDB_PROJECT", raising=False)
    return fake


def log_steps(run: Path, names: tuple[Any, ...], steps: range, first_step: int = 0) -> None:
    loggers = open_loggers(names, run, {"k": 32, "lr": [1e-4]}, first_step)
    for step in steps:
        loggers.log("topk-64", step, {"loss": 10.0 - step, "l0": 4.0})
        loggers.log("mean", step, {"loss": 0.5})
    loggers.close()


def test_tensorboard_has_a_curve_for_each_metric_of_each_sae(
    tmp_path: Path, tensorboard_curves: Callable[[Path], Curves]
) -> None:
    log_steps(tmp_path, ("tensorboard",), range(1, 4))
    assert tensorboard_curves(tmp_path) == {
        "topk-64/loss": [(1, 9.0), (2, 8.0), (3, 7.0)],
        "topk-64/l0": [(1, 4.0), (2, 4.0), (3, 4.0)],
        "mean/loss": [(1, 0.5), (2, 0.5), (3, 0.5)],
    }


def test_a_resumed_run_has_each_step_once_in_tensorboard(
    tmp_path: Path, tensorboard_curves: Callable[[Path], Curves]
) -> None:
    """Killed after step 5, resumed from the checkpoint after step 3."""
    log_steps(tmp_path, ("tensorboard",), range(1, 6))
    log_steps(tmp_path, ("tensorboard",), range(4, 8), first_step=3)
    losses = tensorboard_curves(tmp_path)["topk-64/loss"]
    assert losses == [(step, 10.0 - step) for step in range(1, 8)]


def test_a_run_that_begins_again_has_only_its_new_steps_in_tensorboard(
    tmp_path: Path, tensorboard_curves: Callable[[Path], Curves]
) -> None:
    """Killed before its first checkpoint."""
    log_steps(tmp_path, ("tensorboard",), range(5))
    log_steps(tmp_path, ("tensorboard",), range(3))
    assert [step for step, _ in tensorboard_curves(tmp_path)["mean/loss"]] == [0, 1, 2]


def test_what_was_logged_is_on_the_disk_before_the_end(
    tmp_path: Path, tensorboard_curves: Callable[[Path], Curves]
) -> None:
    loggers = open_loggers(["tensorboard"], tmp_path, {}, 0)
    loggers.log("a", 7, {"loss": 1.0})
    assert tensorboard_curves(tmp_path) == {"a/loss": [(7, 1.0)]}
    loggers.close()


def test_a_service_gets_every_metric_under_the_sae_and_its_step(
    tmp_path: Path, service: SimpleNamespace
) -> None:
    log_steps(tmp_path, (service.name,), range(1, 3))
    (run,) = service.runs
    assert run.finished
    assert run.points == [
        (1, {"topk-64/loss": 9.0, "topk-64/l0": 4.0}),
        (1, {"mean/loss": 0.5}),
        (2, {"topk-64/loss": 8.0, "topk-64/l0": 4.0}),
        (2, {"mean/loss": 0.5}),
    ]
    assert run.given["project"] == "saeflow"


def test_a_resumed_run_goes_on_as_the_same_run_of_a_service(
    tmp_path: Path, service: SimpleNamespace
) -> None:
    """And is not sent again what the service has, which is up to step 5."""
    log_steps(tmp_path, (service.name,), range(1, 6))
    service.has = 6
    log_steps(tmp_path, (service.name,), range(4, 8), first_step=3)
    first, second = service.runs
    assert second.given == first.given
    assert second.given["resume"] == "allow"
    assert {step for step, _ in second.points} == {6, 7}


def test_two_runs_are_two_runs_of_a_service(tmp_path: Path, service: SimpleNamespace) -> None:
    for parent in ("a", "b"):
        (tmp_path / parent / "run").mkdir(parents=True)
        log_steps(tmp_path / parent / "run", (service.name,), range(1))
    first, second = ({**run.given, "dir": None} for run in service.runs)
    assert first != second


@pytest.mark.parametrize("service", ["trackio"], indirect=True)
def test_stdout_stays_for_json(
    tmp_path: Path, service: SimpleNamespace, capsys: pytest.CaptureFixture[str]
) -> None:
    log_steps(tmp_path, ("trackio",), range(2))
    written = capsys.readouterr()
    assert written.out == ""
    assert written.err.splitlines() == ["init, as Trackio says", "finish, as Trackio says"]


@pytest.mark.parametrize("service", ["wandb"], indirect=True)
def test_wandb_that_does_not_let_us_in_is_a_refusal(
    tmp_path: Path, service: SimpleNamespace
) -> None:
    service.refuses = "api_key not configured\n(no-tty). call wandb.login()"
    with pytest.raises(BadInputError, match=r"wandb does not start.*WANDB_MODE=offline") as refusal:
        open_loggers(["wandb"], tmp_path, {}, 0)
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize("service", ["wandb"], indirect=True)
def test_wandb_keeps_its_files_with_the_run_and_its_project_may_be_chosen(
    tmp_path: Path, service: SimpleNamespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WANDB_PROJECT", "mine")
    log_steps(tmp_path, ("wandb",), range(1))
    given: Mapping[str, Any] = service.runs[0].given
    assert given["dir"] == tmp_path
    assert given["id"] == (tmp_path / "wandb-id").read_text().strip()
    assert (given["project"], given["name"]) == ("mine", tmp_path.name)
    assert given["config"] == {"k": 32, "lr": [1e-4]}


@pytest.mark.parametrize("name", ["tensorboard", "wandb", "trackio"])
def test_what_is_not_installed_is_named(
    name: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in ("torch.utils.tensorboard", "wandb", "trackio"):
        monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(BadInputError, match=rf"^--log-to {name} .*'saeflow\[{name}\]'$"):
        open_loggers([name], tmp_path, {}, 0)


def test_those_that_were_opened_are_closed_if_another_one_is_refused(
    tmp_path: Path, service: SimpleNamespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    with pytest.raises(BadInputError, match="tensorboard"):
        open_loggers([service.name, "tensorboard"], tmp_path, {}, 0)
    assert service.runs[0].finished


def test_without_loggers_nothing_is_written(tmp_path: Path) -> None:
    log_steps(tmp_path, (), range(3))
    assert not any(tmp_path.iterdir())
