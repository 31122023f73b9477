"""Many SAEs from one read: each is what it would be alone, and the store is read once."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from saeflow.errors import SaeflowError
from saeflow.harvest.config import HarvestConfig
from saeflow.harvest.run import harvest_activations
from saeflow.train.config import TrainConfig
from saeflow.train.fill import StripFiller
from saeflow.train.run import TrainResult, train_sae

Make = Callable[..., TrainConfig]
HOOK, OTHER = "blocks.0.hook_resid_post", "blocks.1.attn.hook_z"

TABLES: tuple[dict[str, Any], ...] = (
    {"k": 2},
    {"k": 4, "lr": 1e-3},
    {"k": 4, "seed": 5},
    {"k": 4, "d_sae": 40},
    {"arch": "batchtopk", "k": 4},
    {"arch": "relu", "l1": 2.0},
    {"arch": "jumprelu", "hook": [OTHER]},
    {"arch": "gated", "ema": 0.9},
)


def weights(result: TrainResult) -> list[torch.Tensor]:
    return [tensor for sae in result.saes.values() for tensor in sae.parameters.parameters()]


@pytest.fixture
def read_rows(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many bytes of the store are asked for, batch by batch."""
    asked: list[int] = []
    real = StripFiller.begin

    def begin(filler: StripFiller, step: int, views: Any) -> Any:
        asked.append(sum(map(len, views)))
        return real(filler, step, views)

    monkeypatch.setattr(StripFiller, "begin", begin)
    return asked


def test_eight_saes_in_one_run_are_the_same_eight_alone(
    train_config: Make, tmp_path: Path, read_rows: list[int]
) -> None:
    own = {"d_sae": None, "k": None, "reader": "thread"}
    tables = tuple({"d_sae": 48, "hook": [HOOK], **table} for table in TABLES)
    together = train_sae(train_config(out=tmp_path / "all", sae=tables, **own))
    bytes_together, read_rows[:] = sum(read_rows), []
    for number, (table, sae) in enumerate(zip(tables, together.saes.values(), strict=True)):
        options = {**table, "hook": tuple(table["hook"])}
        alone = train_sae(train_config(out=tmp_path / str(number), **{**own, **options}))
        mine = dict(sae.parameters.named_parameters())
        for name, tensor in alone.sae.parameters.named_parameters():
            assert torch.equal(mine[name], tensor), (table, name)
    rows, width = 2560, 32 * 2
    assert bytes_together == rows * width * len({HOOK, OTHER})
    assert sum(read_rows) == rows * width * len(TABLES)


@pytest.mark.parametrize(
    "options", [{}, {"arch": "relu", "k": None}, {"arch": "jumprelu", "k": None}]
)
def test_three_hook_points_together_are_the_three_alone(
    train_config: Make,
    tiny_options: Callable[..., HarvestConfig],
    lines_of: Callable[[Path], list[dict[str, Any]]],
    tmp_path: Path,
    options: dict[str, Any],
) -> None:
    """Weights to the bit, and what metrics.jsonl says of each; the mean is theirs."""
    hooks = (HOOK, OTHER, "blocks.1.hook_resid_post")
    harvest_activations(tiny_options(hook=hooks, out=tmp_path / "store"))
    own = {"store": tmp_path / "store", **options}
    together = train_sae(train_config(hook=hooks, **own))
    assert [sae.hook_point for sae in together.saes.values()] == list(hooks)
    lines = lines_of(together.run / "metrics.jsonl")
    alone = [train_sae(train_config(hook=(h,), out=tmp_path / h, **own)) for h in hooks]
    for one, (name, sae) in zip(alone, together.saes.items(), strict=True):
        mine = dict(sae.parameters.named_parameters())
        for key, tensor in one.sae.parameters.named_parameters():
            assert torch.equal(mine[key], tensor), (name, key)
        assert [line for line in lines if line["sae"] == name] == lines_of(
            one.run / "metrics.jsonl"
        )
    *each, mean = lines[-4:]
    assert mean["sae"] == "mean"
    assert mean["l0"] == pytest.approx(sum(line["l0"] for line in each) / 3)


def test_each_sae_has_its_lines_and_there_is_a_mean(
    train_config: Make, lines_of: Callable[[Path], list[dict[str, Any]]]
) -> None:
    result = train_sae(train_config(sweep=("k=2,4",)))
    lines = lines_of(result.run / "metrics.jsonl")
    names = [*result.saes, "mean"]
    assert [line["sae"] for line in lines] == names * 4
    assert [line["step"] for line in lines[::3]] == [3, 6, 9, 10]
    two, four, mean = lines[-3:]
    assert (two["l0"], four["l0"], mean["l0"]) == (2, 4, 3)
    assert mean["held_out_fvu"] == (two["held_out_fvu"] + four["held_out_fvu"]) / 2


def test_every_folder_says_how_its_sae_was_trained(train_config: Make) -> None:
    result = train_sae(train_config(sweep=("k=2,4",)))
    for k, folder in zip((2, 4), result.folders, strict=True):
        cfg = json.loads((folder / "cfg.json").read_text())
        assert cfg["k"] == cfg["metadata"]["saeflow"]["train"]["k"] == k


def test_of_several_that_diverge_the_first_is_named(train_config: Make) -> None:
    with pytest.raises(SaeflowError, match=r"the loss of .*lr=1e\+30 is not finite at step"):
        train_sae(train_config(sweep=("lr=1e-3,1e30",)))


def test_a_transcoder_and_a_crosscoder_train_beside_an_sae(
    train_config: Make, lines_of: Callable[[Path], list[dict[str, Any]]]
) -> None:
    tables = (
        {"hook": [HOOK]},
        {"hook": [HOOK], "target_hook": OTHER},
        {"hook": [HOOK], "target_hook": OTHER, "skip": True},
        {"hook": [HOOK, OTHER], "crosscoder": True},
    )
    result = train_sae(train_config(sae=tables, tokens=10_240))
    assert [sae.cfg["architecture"] for sae in result.saes.values()] == [
        "topk",
        "topk_transcoder",
        "topk_skip_transcoder",
        "topk_crosscoder",
    ]
    first, last = (
        {line["sae"]: line["row_fvu"] for line in lines_of(result.run / "metrics.jsonl")[part]}
        for part in (slice(0, 4), slice(-5, -1))
    )
    assert all(last[name] < first[name] for name in result.saes)
