"""Source models: found, loaded, checked, described."""

import shutil
from pathlib import Path

import pytest
import torch

from saeflow.errors import BadInputError
from saeflow.harvest import models
from saeflow.harvest.models import ModelSpec, SourceModel, describe_model, find_model, load_model


def test_a_folder_is_found_by_its_absolute_path(
    tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tiny_model.parent)
    assert find_model(tiny_model.name) == tiny_model.resolve()


def test_the_builtin_model_is_an_ordinary_folder() -> None:
    folder = find_model("builtin")
    assert (folder / "config.json").is_file()
    assert (folder / "model.safetensors").stat().st_size < 3_000_000


@pytest.mark.parametrize("name", ["/no/such/model", "./model", "~/no-such-model", "a/b/c"])
def test_a_missing_folder_is_not_looked_for_on_the_hub(name: str) -> None:
    with pytest.raises(BadInputError, match="does not exist: check the path"):
        find_model(name)


def test_a_hub_name_that_cannot_be_had_is_bad_input() -> None:
    with pytest.raises(BadInputError, match="nobody/nothing is neither a folder here nor"):
        find_model("nobody/nothing")


def test_a_folder_without_config_or_weights_is_refused(tiny_model: Path, tmp_path: Path) -> None:
    with pytest.raises(BadInputError, match=r"has no config\.json"):
        find_model(str(tmp_path))
    shutil.copy(tiny_model / "config.json", tmp_path)
    (tmp_path / "pytorch_model.bin").write_bytes(b"")
    with pytest.raises(BadInputError, match=r"no weights \(\*\.safetensors\)"):
        find_model(str(tmp_path))


def test_damaged_weights_are_refused(tiny_model: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(tiny_model, tmp_path / "model")
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    with pytest.raises(BadInputError, match=r"model .* can't be loaded: "):
        load_model(ModelSpec(name=str(folder)))


def test_the_model_runs_raw_weights_without_gradients(source_model: SourceModel) -> None:
    assert source_model.longest_context == 64
    assert not any(p.requires_grad for p in source_model.bridge.parameters())
    assert not source_model.bridge.compatibility_mode


def test_a_difference_from_transformers_is_told(
    tiny_model: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    given = models._logits
    seen: list[object] = []

    def differing(model: object, device: str) -> torch.Tensor:
        seen.append(model)
        return given(model, device) + 0.01 * len(seen)

    load_model(ModelSpec(name=str(tiny_model)))
    assert "warning" not in capsys.readouterr().err
    monkeypatch.setattr(models, "_logits", differing)
    load_model(ModelSpec(name=str(tiny_model)))
    assert "warning: TransformerLens's logits for" in capsys.readouterr().err


def test_any_changed_file_changes_the_description(tiny_model: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(tiny_model, tmp_path / "model")
    spec = ModelSpec(name=str(folder))
    for name, key in [
        ("model.safetensors", "weights_sha256"),
        ("config.json", "config_sha256"),
        ("tokenizer.json", "tokenizer_sha256"),
    ]:
        before = describe_model(spec)
        (folder / name).write_bytes((folder / name).read_bytes() + b" ")
        after = describe_model(spec)
        assert {k for k in after if after[k] != before[k]} == {key}


def test_the_description_of_the_builtin_model_names_no_path() -> None:
    described = describe_model(ModelSpec(name="builtin"))
    assert described["name"] == "builtin"
    assert described["dtype"] == "float32"
