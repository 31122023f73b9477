"""A run that was stopped goes on, and ends as if it had never been."""

import json
import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from torch import Tensor

from saeflow.errors import BadInputError
from saeflow.train.config import TrainConfig
from saeflow.train.loader import Loader
from saeflow.train.run import train_sae

Make = Callable[..., TrainConfig]
Contents = Callable[[Path], dict[str, bytes]]

VARIANTS: dict[str, dict[str, Any]] = {
    "topk": {},
    "batchtopk, ema": {"arch": "batchtopk", "ema": 0.9},
    "jumprelu, warm-ups": {
        "arch": "jumprelu",
        "k": None,
        "target_l0": 6.0,
        "warm_up": 0.3,
        "sparsity_warm_up": 0.6,
        "schedule": "cosine",
    },
    "relu, resampler": {
        "arch": "relu",
        "k": None,
        "resample": True,
        "resample_every": 1024,
        "resample_window": 512,
        "resample_rows": 512,
        "resample_threshold": 0.4,
    },
    "relu, silent ones": {
        "arch": "relu",
        "k": None,
        "l1": 9.0,
        "dead_after": 600,
        "tokens": 24 * 256,
    },
    "gated, muon": {"arch": "gated", "k": None, "optimizer": "muon", "clip": 1.0},
    "matryoshka, free norms": {
        "arch": "matryoshka",
        "drawn_prefixes": 3,
        "decoder_norm": "free",
        "dead_after": 600,
    },
    "p-anneal": {"arch": "p-anneal", "k": None},
    "a sweep": {"sweep": ("k=2,4",), "accumulate": 2},
}


@pytest.fixture
def stop_after(monkeypatch: pytest.MonkeyPatch) -> Callable[[int, signal.Signals], None]:
    """Send this process a signal when a run asks for the batch after so many."""
    real = Loader.all_batches

    def stop(n_steps: int, number: signal.Signals) -> None:
        def batches(loader: Loader, first: int, last: int) -> Iterator[tuple[Tensor, ...]]:
            for step, batch in enumerate(real(loader, first, last), first):
                if step + 1 == n_steps:
                    os.kill(os.getpid(), number)
                yield batch

        monkeypatch.setattr(Loader, "all_batches", batches)

    return stop


@pytest.mark.parametrize("options", VARIANTS.values(), ids=list(VARIANTS))
def test_a_stopped_run_ends_with_the_same_bytes(
    train_config: Make,
    tmp_path: Path,
    contents: Contents,
    stop_after: Callable[[int, signal.Signals], None],
    monkeypatch: pytest.MonkeyPatch,
    options: dict[str, Any],
) -> None:
    train_sae(train_config(out=tmp_path / "whole", evaluate_every=4, **options))
    for n_steps, number in ((5, signal.SIGTERM), (7, signal.SIGINT)):
        stop_after(n_steps, number)
        with pytest.raises((SystemExit, KeyboardInterrupt)):
            train_sae(train_config(evaluate_every=4, **options))
        assert [p.name for p in (train_config().out / "checkpoints").glob("*")][-1:]
        assert not list(train_config().out.glob("sae/*"))
    monkeypatch.undo()
    result = train_sae(train_config(evaluate_every=4, **options))
    assert not result.already_complete
    assert contents(train_config().out) == contents(tmp_path / "whole")


def test_a_signal_saves_what_was_done(
    train_config: Make, stop_after: Callable[[int, signal.Signals], None]
) -> None:
    stop_after(5, signal.SIGTERM)
    with pytest.raises(SystemExit) as stopped:
        train_sae(train_config())
    assert stopped.value.code == 143
    (checkpoint,) = (train_config().out / "checkpoints").iterdir()
    assert checkpoint.name == "5"
    state = json.loads((checkpoint / "state.json").read_text())
    assert (state["step"], list(state["saes"])) == (5, ["blocks.0.hook_resid_post-topk-48"])


def test_checkpoints_come_every_so_many_steps_and_go_at_the_end(
    train_config: Make, stop_after: Callable[[int, signal.Signals], None]
) -> None:
    stop_after(8, signal.SIGTERM)
    with pytest.raises(SystemExit):
        train_sae(train_config(checkpoint_every="3"))
    checkpoints = train_config().out / "checkpoints"
    assert sorted(p.name for p in checkpoints.iterdir()) == ["6", "8"]
    train_sae(train_config(checkpoint_every="3"))
    assert not checkpoints.exists()


def test_other_options_than_the_checkpoint_s_are_named(
    train_config: Make, stop_after: Callable[[int, signal.Signals], None]
) -> None:
    stop_after(5, signal.SIGTERM)
    with pytest.raises(SystemExit):
        train_sae(train_config())
    with pytest.raises(BadInputError, match=r"k: 4 there, 5 now; lr: None there, 0.1 now"):
        train_sae(train_config(k=5, lr=0.1))


def test_a_run_that_another_version_chose_otherwise_for_does_not_go_on(
    train_config: Make, stop_after: Callable[[int, signal.Signals], None]
) -> None:
    stop_after(5, signal.SIGTERM)
    with pytest.raises(SystemExit):
        train_sae(train_config())
    file = train_config().out / "config.toml"
    written = file.read_text()
    file.write_text(written.replace('"bias_rate": 1.0', '"bias_rate": 2.0'))
    with pytest.raises(BadInputError, match=r'"bias_rate": 2.0.* there, .*"bias_rate": 1.0.* now'):
        train_sae(train_config())
    file.write_text(written.partition("#")[0])  # of a version that says nothing
    with pytest.raises(BadInputError, match=r"\(nothing said there, chosen for .* now\)"):
        train_sae(train_config())


def test_how_often_it_saves_may_change(
    train_config: Make, stop_after: Callable[[int, signal.Signals], None]
) -> None:
    stop_after(5, signal.SIGTERM)
    with pytest.raises(SystemExit):
        train_sae(train_config())
    assert train_sae(train_config(checkpoint_every="1min")).steps == 10


def test_a_store_that_changed_since_the_checkpoint_is_refused(
    train_config: Make, stop_after: Callable[[int, signal.Signals], None]
) -> None:
    stop_after(5, signal.SIGTERM)
    with pytest.raises(SystemExit):
        train_sae(train_config())
    described = train_config().out / "checkpoints" / "5" / "state.json"
    described.write_text(described.read_text().replace('"store": "', '"store": "other'))
    with pytest.raises(BadInputError, match="has changed since the checkpoint of step 5"):
        train_sae(train_config())


def test_without_a_checkpoint_it_starts_again(
    train_config: Make, contents: Contents, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    train_sae(train_config(out=tmp_path / "whole"))
    real = Loader.all_batches

    def power_cut(loader: Loader, first: int, last: int) -> Iterator[tuple[Tensor, ...]]:
        yield from real(loader, first, last - 3)
        raise RuntimeError

    with monkeypatch.context() as patched:
        patched.setattr(Loader, "all_batches", power_cut)
        with pytest.raises(RuntimeError):
            train_sae(train_config())
    train_sae(train_config())
    assert contents(train_config().out) == contents(tmp_path / "whole")


def test_lines_that_are_gone_since_the_checkpoint_are_missed(
    train_config: Make, stop_after: Callable[[int, signal.Signals], None]
) -> None:
    stop_after(5, signal.SIGTERM)
    with pytest.raises(SystemExit):
        train_sae(train_config())
    (train_config().out / "metrics.jsonl").unlink()
    with pytest.raises(BadInputError, match=r"metrics.jsonl is shorter than when the checkpoint"):
        train_sae(train_config())


def test_checkpoints_that_a_complete_run_left_are_removed(train_config: Make) -> None:
    """It was killed while it removed them."""
    train_sae(train_config())
    left = train_config().out / "checkpoints" / "8"
    left.mkdir(parents=True)
    (left / "state.safetensors").write_bytes(b"")
    assert train_sae(train_config()).already_complete
    assert not left.parent.exists()


def test_what_is_left_of_a_run_that_was_thrown_away_does_not_count(train_config: Make) -> None:
    """It was killed while it was thrown away, so that other options may follow it."""
    train_sae(train_config())
    run = train_config().out
    (run / "config.toml").rename(run / "config.toml.partial")
    assert not train_sae(train_config(k=3)).already_complete
    assert {entry.name for entry in run.iterdir()} == {
        *("config.toml", "metrics.jsonl", "speed.jsonl", "sae")
    }
