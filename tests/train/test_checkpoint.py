"""Checkpoints: what is saved comes back, the newest whole one counts, two are kept."""

from pathlib import Path

import pytest
import torch

from saeflow.train.checkpoint import Checkpoint, newest, open_checkpoints


def checkpoint(step: int) -> Checkpoint:
    """Two SAEs' worth of state, which depends on the step."""
    states = {
        name: {"W_dec": torch.full((2, 3), float(step)), "updater.adam.step": step, "lr": 0.1}
        for name in ("a/b", "c")
    }
    return Checkpoint(step, "a store", 10 * step, states)


def saved(folder: Path, *steps: int) -> Path:
    for step in steps:
        with open_checkpoints(folder) as checkpoints:
            checkpoints.save(checkpoint(step))
    return folder


def test_what_is_saved_comes_back(tmp_path: Path) -> None:
    found = newest(saved(tmp_path, 7))
    assert found is not None
    assert (found.step, found.store, found.metrics_bytes) == (7, "a store", 70)
    assert list(found.states) == ["a/b", "c"]
    state = found.states["a/b"]
    assert torch.equal(state["W_dec"], torch.full((2, 3), 7.0))
    assert (state["updater.adam.step"], state["lr"]) == (7, 0.1)


def test_the_state_is_that_of_the_moment_when_it_was_saved(tmp_path: Path) -> None:
    """Training goes on while it is being written."""
    weights = torch.zeros(1000, 1000)
    with open_checkpoints(tmp_path) as checkpoints:
        checkpoints.save(Checkpoint(1, "", 0, {"sae": {"weights": weights}}))
        weights += 1
    found = newest(tmp_path)
    assert found is not None
    assert not found.states["sae"]["weights"].any()


def test_the_newest_two_are_kept(tmp_path: Path) -> None:
    saved(tmp_path, 8, 9, 10, 11)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["10", "11"]


def test_without_one_there_is_none(tmp_path: Path) -> None:
    assert newest(tmp_path / "checkpoints") is None


@pytest.mark.parametrize("file", ["state.safetensors", "state.json"])
@pytest.mark.parametrize("damage", ["flipped", "cut short", "gone"])
def test_of_a_damaged_one_the_one_before_is_taken(
    tmp_path: Path, file: str, damage: str, capsys: pytest.CaptureFixture[str]
) -> None:
    path = saved(tmp_path, 8, 9) / "9" / file
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 0x80
    if damage == "gone":
        path.unlink()
    else:
        path.write_bytes(content if damage == "flipped" else content[: len(content) // 2])
    found = newest(tmp_path)
    assert found is not None
    assert found.step == 8
    assert f"checkpoint {tmp_path / '9'} can't be used" in capsys.readouterr().err


def test_one_that_was_being_written_does_not_count(tmp_path: Path) -> None:
    (saved(tmp_path, 8, 9) / "9").rename(tmp_path / "9.partial")
    found = newest(tmp_path)
    assert found is not None
    assert found.step == 8


def test_writing_goes_on_over_what_a_kill_has_left(tmp_path: Path) -> None:
    (tmp_path / "9.partial").mkdir()
    (tmp_path / "9.partial" / "state.json").write_text("{")
    assert newest(saved(tmp_path, 9)) is not None
    assert [path.name for path in tmp_path.iterdir()] == ["9"]


def test_what_could_not_be_written_is_told_with_the_next_one(tmp_path: Path) -> None:
    folder = tmp_path / "checkpoints"
    folder.write_text("a file")
    with open_checkpoints(folder) as checkpoints:
        checkpoints.save(checkpoint(1))
        with pytest.raises(OSError, match="checkpoints"):
            checkpoints.save(checkpoint(2))
