"""What makes an evaluation another one: content, not how it is spelt or how it is run."""

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file, save_file
from transformer_lens.model_bridge import TransformerBridge

from saeflow.errors import BadInputError
from saeflow.evaluate.config import EvaluateConfig
from saeflow.evaluate.run import evaluate_sae
from saeflow.harvest import models

Make = Callable[..., EvaluateConfig]


@pytest.fixture
def quick(config: Make) -> Make:
    return lambda **changed: config(**{"tokens": 80, "latents": "none", "report": False, **changed})


@pytest.fixture
def model(taught_model: Path, tmp_path: Path) -> Path:
    """A copy of the source model, to change."""
    return Path(shutil.copytree(taught_model, tmp_path / "model"))


@pytest.fixture
def text(tiny_text: Path, tmp_path: Path) -> Path:
    """Text that is not the SAE's own, to change."""
    file = tmp_path / "text-of-mine.jsonl"
    file.write_text(tiny_text.read_text().replace("shard", "shards"))
    return file


@pytest.fixture
def no_passes(monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    """From now on no model can be loaded."""
    return lambda: monkeypatch.setattr(TransformerBridge, "boot_transformers", None)


def scale_weights(model: Path) -> None:
    (file,) = model.glob("*.safetensors")
    tensors = {name: 1.3 * tensor for name, tensor in load_file(file).items()}
    save_file(tensors, file, {"format": "pt"})


# Content.


def test_changed_weights_are_another_model(quick: Make, model: Path, taught_model: Path) -> None:
    scale_weights(model)
    options: dict[str, Any] = {"model": str(model), "allow_mismatch": ("model",)}
    wrong = evaluate_sae(quick(**options)).losses["clean"].value
    shutil.copytree(taught_model, model, dirs_exist_ok=True)
    with pytest.raises(BadInputError, match=r"other options \(model_weights_sha256: '"):
        evaluate_sae(quick(**options))
    right = evaluate_sae(quick(**options), overwrite=True)
    assert right.losses["clean"].value != wrong
    assert right.mismatches == ()


@pytest.mark.parametrize(
    ("file", "name"),
    [("config.json", "model_config_sha256"), ("tokenizer.json", "tokenizer_sha256")],
)
def test_other_files_of_a_model_count_too(quick: Make, model: Path, file: str, name: str) -> None:
    evaluate_sae(quick(model=str(model)))
    content = json.loads((model / file).read_text())
    (model / file).write_text(json.dumps({**content, "note": 1}))
    with pytest.raises(BadInputError, match=rf"other options \({name}: '"):
        evaluate_sae(quick(model=str(model)))


def test_changed_text_is_other_text(quick: Make, text: Path) -> None:
    evaluate_sae(quick(dataset=str(text)))
    text.write_text(text.read_text().replace("shards", "s"))
    with pytest.raises(BadInputError, match=r"other options \(dataset_sha256: '"):
        evaluate_sae(quick(dataset=str(text)))
    text.unlink()
    with pytest.raises(BadInputError, match=r"other options \(dataset_sha256: '.* there, None"):
        evaluate_sae(quick(dataset=str(text)))


def test_another_store_at_the_place_is_other_text(
    quick: Make, sae: Path, change_cfg: Callable[..., None], taught_store: Path, tmp_path: Path
) -> None:
    place = shutil.copytree(taught_store, tmp_path / "store")
    change_cfg(sae, "metadata", "saeflow", "store", "path", str(place))
    evaluate_sae(quick(allow_mismatch=("dataset",)))
    root = json.loads((place / "zarr.json").read_text())
    root["attributes"]["saeflow"]["manifest_sha256"] = "77b0" * 16
    (place / "zarr.json").write_text(json.dumps(root))
    with pytest.raises(BadInputError, match=r"dataset differs: SAE .* here is store 77b077b077b0"):
        evaluate_sae(quick())
    with pytest.raises(BadInputError, match=r"other options \(store_identity: '.* now\)"):
        evaluate_sae(quick(allow_mismatch=("dataset",)))


def test_what_was_allowed_once_is_not_allowed_for_ever(quick: Make, model: Path) -> None:
    scale_weights(model)
    found = evaluate_sae(quick(model=str(model), allow_mismatch=("model", "dtype")))
    with pytest.raises(BadInputError, match=r"^model differs: SAE sae was made from weights"):
        evaluate_sae(quick(model=str(model)))
    assert evaluate_sae(quick(model=str(model), allow_mismatch=("model",))) == found


def test_a_model_is_read_once(quick: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    hashed: list[str] = []
    whole = models.hash_files

    def count(files: Any, **options: Any) -> str:
        found = list(files)
        hashed.extend(file.name for file in found)
        return whole(found, **options)

    monkeypatch.setattr(models, "hash_files", count)
    for _ in range(2):
        evaluate_sae(quick())
        assert hashed.count("model.safetensors") == 1
        hashed.clear()


# What changes no figure.


@pytest.mark.parametrize(
    "changed",
    [
        {"batch_size": 3},
        {"device": "auto"},
        {"trust_remote_code": True},
        {"dtype": "float32"},
        {"allow_mismatch": ("tokenizer",)},
    ],
)
def test_how_it_is_run_is_no_other_evaluation(
    quick: Make, changed: dict[str, Any], no_passes: Callable[[], None], monkeypatch: Any
) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    found = evaluate_sae(quick())
    no_passes()
    assert evaluate_sae(quick(**changed)) == found


def test_how_a_model_and_a_text_are_spelt_is_no_other_evaluation(
    quick: Make,
    model: Path,
    text: Path,
    no_passes: Callable[[], None],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    found = evaluate_sae(quick(model=str(model), dataset=str(text)))
    no_passes()
    monkeypatch.chdir(model.parent)
    assert evaluate_sae(quick(model=os.path.relpath(model), dataset=text.name)) == found
    moved = model.rename(model.with_name("elsewhere"))
    assert evaluate_sae(quick(model=str(moved), dataset=str(text))) == found


def test_a_store_that_is_gone_leaves_its_scores(
    quick: Make,
    sae: Path,
    change_cfg: Callable[..., None],
    taught_store: Path,
    tmp_path: Path,
    no_passes: Callable[[], None],
) -> None:
    place = shutil.copytree(taught_store, tmp_path / "store")
    change_cfg(sae, "metadata", "saeflow", "store", "path", str(place))
    found = evaluate_sae(quick())
    shutil.rmtree(place)
    no_passes()
    assert evaluate_sae(quick()) == found
