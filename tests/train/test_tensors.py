"""Tensors in a file: whose mode is as that of other files, and whose errors are the system's."""

import errno
import stat
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from saeflow.train import tensors
from saeflow.train.tensors import write_tensors


def test_what_is_written_comes_back(tmp_path: Path) -> None:
    weights = torch.arange(6.0).reshape(2, 3)
    write_tensors({"W_dec": weights.t(), "step": torch.tensor(7)}, tmp_path / "weights.safetensors")
    found = load_file(tmp_path / "weights.safetensors")
    assert torch.equal(found["W_dec"], weights.t())
    assert found["step"] == 7


def test_whoever_may_read_other_files_may_read_it(tmp_path: Path) -> None:
    """safetensors alone lets only its owner read it, whatever the umask says."""
    (tmp_path / "other").touch()
    write_tensors({"x": torch.zeros(1)}, tmp_path / "weights.safetensors")
    modes = {stat.S_IMODE(path.stat().st_mode) for path in tmp_path.iterdir()}
    assert len(modes) == 1


def test_a_failure_is_the_system_s_and_names_the_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """safetensors's own has no number, and the command line would not know a full disk by it."""
    path = tmp_path / "folder" / "weights.safetensors"
    path.parent.mkdir()

    def into_nowhere(values: dict[str, Tensor], to: Path, metadata: None) -> None:
        to.unlink()
        to.parent.rmdir()
        save_file(values, to, metadata)

    monkeypatch.setattr(tensors, "save_file", into_nowhere)
    with pytest.raises(FileNotFoundError) as raised:
        write_tensors({"x": torch.zeros(1)}, path)
    assert (raised.value.errno, raised.value.filename) == (errno.ENOENT, str(path))
