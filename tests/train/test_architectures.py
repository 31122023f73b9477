"""Every architecture through a whole run: options, training, folder, and back."""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from saeflow.errors import BadInputError
from saeflow.train.architecture import Architecture, Inference
from saeflow.train.architectures import LOADERS, MAKERS
from saeflow.train.config import TrainConfig
from saeflow.train.folder import load_sae
from saeflow.train.normalisation import Normalisation
from saeflow.train.run import plan_training, train_sae
from saeflow.train.trainer import Trainer

Make = Callable[..., TrainConfig]

FOUR = {"W_enc": (32, 48), "b_enc": (48,), "W_dec": (48, 32), "b_dec": (32,)}
JUMPRELU = {**FOUR, "threshold": (48,)}
GATED = {
    "W_enc": (32, 48),
    "W_dec": (48, 32),
    "b_dec": (32,),
    "b_gate": (48,),
    "b_mag": (48,),
    "r_mag": (48,),
}

CASES: dict[str, tuple[dict[str, Any], str, dict[str, tuple[int, ...]]]] = {
    "topk": ({}, "topk", FOUR),
    "batchtopk": ({}, "jumprelu", JUMPRELU),
    "relu": ({"k": None, "l1": 1.0}, "standard", FOUR),
    "jumprelu": ({"k": None}, "jumprelu", JUMPRELU),
    "jumprelu, tanh": ({"k": None, "sparsity": "tanh", "l0": 0.2}, "jumprelu", JUMPRELU),
    "jumprelu, target": ({"k": None, "target_l0": 5.0}, "jumprelu", JUMPRELU),
    "gated": ({"k": None}, "gated", GATED),
    "matryoshka": ({}, "jumprelu", JUMPRELU),
    "matryoshka, drawn": ({"base": "topk", "drawn_prefixes": 3}, "topk", FOUR),
    "matryoshka, fixed": (
        {"base": "relu", "k": None, "l1": 0.5, "prefixes": "8, 20"},
        "standard",
        FOUR,
    ),
    "p-anneal": ({"k": None, "l1": 1.0}, "standard", FOUR),
}


@pytest.mark.parametrize("case", CASES)
def test_a_run_ends_in_a_folder_that_saelens_has_a_name_for(train_config: Make, case: str) -> None:
    options, on_disk, shapes = CASES[case]
    arch = case.split(",")[0]
    result = train_sae(train_config(arch=arch, **options))

    cfg = json.loads((result.folder / "cfg.json").read_text())
    assert cfg["architecture"] == on_disk
    assert cfg["metadata"]["training_architecture"] == arch
    weights = load_file(result.folder / "sae_weights.safetensors")
    assert {name: tuple(tensor.shape) for name, tensor in weights.items()} == shapes
    x = load_file(result.folder / "self_test.safetensors")["x"]
    assert torch.equal(load_sae(result.folder).encode(x), result.sae.encode(x))
    assert all(torch.isfinite(tensor).all() for tensor in weights.values())


@pytest.mark.parametrize("case", CASES)
def test_the_same_options_give_the_same_bytes(
    train_config: Make, tmp_path: Path, case: str
) -> None:
    options, _, _ = CASES[case]
    folders = [
        train_sae(
            train_config(arch=case.split(",")[0], out=tmp_path / name, dead_after=512, **options)
        ).folder
        for name in ("one", "two")
    ]
    for file in ("sae_weights.safetensors", "self_test.safetensors"):
        assert (folders[0] / file).read_bytes() == (folders[1] / file).read_bytes()


def plan_of(train_config: Make, case: str) -> Architecture:
    options = {"arch": case.split(",")[0], "d_sae": 64, **CASES[case][0]}
    (sae,) = plan_training(train_config(**options)).saes
    return sae.architecture


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize("case", CASES)
def test_training_explains_sparse_data(
    train_config: Make,
    sparse_rows: Callable[..., Tensor],
    normalisation_of: Callable[[Tensor], Normalisation],
    make_trainer: Callable[..., Trainer],
    case: str,
) -> None:
    architecture = plan_of(train_config, case)
    trainer = make_trainer(architecture, normalisation_of(sparse_rows(20_000)))
    for step in range(400):
        trainer.step((sparse_rows(256, seed=2 + step),), step)
    inference, p = architecture.trained(trainer.normalisation.folded(trainer.parameters))
    rows = sparse_rows(2000, seed=-1)
    latents = inference.encode(p, rows)
    error = (latents @ p.W_dec + p.b_dec - rows).square().sum()
    assert error / (rows - rows.mean(0)).square().sum() < 0.25
    assert (latents > 0).sum(1).float().mean() < 20


@pytest.mark.parametrize("case", CASES)
def test_an_architecture_is_what_the_trainer_asks_for(train_config: Make, case: str) -> None:
    architecture = plan_of(train_config, case)
    assert isinstance(architecture, Architecture)
    assert architecture.initial(64).keys() == architecture.rules.keys()
    assert architecture.name == case.split(",")[0]


@pytest.mark.parametrize("name", LOADERS)
def test_a_loaded_architecture_is_one_for_inference(name: str) -> None:
    inference = LOADERS[name]({"architecture": name, "k": 3})
    assert isinstance(inference, Inference)
    assert inference.to_cfg()["architecture"] == name


def test_every_architecture_of_the_command_line_is_registered() -> None:
    assert set(MAKERS) == {case.split(",")[0] for case in CASES}


def test_the_example_of_the_docs_trains(
    sparse_rows: Callable[..., Tensor],
    normalisation_of: Callable[[Tensor], Normalisation],
    make_trainer: Callable[..., Trainer],
) -> None:
    page = (Path(__file__).parents[2] / "docs" / "architectures.md").read_text()
    (code,) = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    example: dict[str, Any] = {"__name__": "example"}
    exec(compile(code, "docs/architectures.md", "exec", dont_inherit=True), example)
    architecture = example["Above"](0.5)
    assert isinstance(architecture, Architecture)
    trainer = make_trainer(architecture, normalisation_of(sparse_rows(5000)))
    losses = [trainer.step((sparse_rows(256, seed=s),), s).loss.item() for s in range(30)]
    assert losses[-1] < losses[0] / 2
    inference, p = architecture.trained(trainer.normalisation.folded(trainer.parameters))
    expected = torch.tensor(0.5) / trainer.normalisation.scale
    assert torch.equal(p.more("threshold"), expected.expand(64))
    assert inference.encode(p, sparse_rows(5)).shape == (5, 64)


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "k of jumprelu": ({"arch": "jumprelu"}, "--k is for --arch topk, batchtopk, matryoshka: "),
    "l0 of topk": ({"l0": 1.0}, "--l0 is for --arch jumprelu: --arch topk has no"),
    "sparsity of topk": ({"sparsity": "tanh"}, "--sparsity is for --arch jumprelu"),
    "target_l0 of relu": ({"arch": "relu", "k": None, "target_l0": 3.0}, "--target-l0 is for"),
    "target_l0 of the tanh penalty": (
        {"arch": "jumprelu", "k": None, "target_l0": 3.0, "sparsity": "tanh"},
        "--target-l0 is for --sparsity step",
    ),
    "aux_k of relu": ({"arch": "relu", "k": None, "aux_k": 3}, "--aux-k is for --arch topk"),
    "a base without matryoshka": ({"base": "relu"}, "--base is for --arch matryoshka"),
    "k of a relu matryoshka": (
        {"arch": "matryoshka", "base": "relu"},
        "--k is not for --base relu",
    ),
    "l1 of a topk matryoshka": (
        {"arch": "matryoshka", "base": "topk", "l1": 2.0},
        "--l1 is not for --base topk",
    ),
    "fixed and drawn prefixes": (
        {"arch": "matryoshka", "prefixes": "4,8", "drawn_prefixes": 2},
        "give --prefixes or --drawn-prefixes, not both",
    ),
    "prefixes that are no numbers": ({"arch": "matryoshka", "prefixes": "4,x"}, "--prefixes is"),
    "a prefix of none": ({"arch": "matryoshka", "prefixes": "0,8"}, "--prefixes is '0,8'"),
    "p_end over one": ({"arch": "p-anneal", "k": None, "p_end": 2.0}, "--p-end is 2.0"),
    "a negative aux_k": ({"aux_k": -1}, "--aux-k is -1"),
    "a prefix wider than all": (
        {"arch": "matryoshka", "prefixes": "4,64"},
        "--prefixes 4,64 has a width over the 48 latents",
    ),
    "one drawn prefix": ({"arch": "matryoshka", "drawn_prefixes": 1}, "--drawn-prefixes 1 of 48"),
    "too many drawn": ({"arch": "matryoshka", "drawn_prefixes": 48}, "--drawn-prefixes 48 of 48"),
    "a target over all": (
        {"arch": "jumprelu", "k": None, "target_l0": 49.0},
        "--target-l0 49.0 is more than the 48 latents",
    ),
    "k over all": ({"arch": "batchtopk", "k": 49}, "--k 49 is more than the 48 latents"),
}


@pytest.mark.parametrize("why", REFUSED)
def test_options_that_contradict_each_other_are_refused(train_config: Make, why: str) -> None:
    options, message = REFUSED[why]
    with pytest.raises(BadInputError) as refused:
        plan_training(train_config(**options))
    assert message in str(refused.value)
    assert "\n" not in str(refused.value)
