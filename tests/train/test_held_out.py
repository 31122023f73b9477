"""What a run says of held-out rows is what its SAE does on them."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from saeflow.harvest.store import Store
from saeflow.train.config import TrainConfig
from saeflow.train.held_out import open_held_out
from saeflow.train.metrics import FiringShares, reconstruction_metrics
from saeflow.train.run import train_sae

Make = Callable[..., TrainConfig]
Lines = Callable[[Path], list[dict[str, Any]]]
HOOK, OTHER = "blocks.0.hook_resid_post", "blocks.1.attn.hook_z"


@pytest.mark.parametrize(
    "options",
    [{}, {"arch": "batchtopk"}, {"ema": 0.9}, {"decoder_norm": "free"}, {"optimizer": "muon"}],
    ids=str,
)
def test_the_last_line_is_of_the_sae_that_was_saved(
    train_config: Make, lines_of: Lines, store: Store, options: dict[str, Any]
) -> None:
    config = train_config(evaluate_rows=500, **options)
    result = train_sae(config)
    line = lines_of(config.out / "metrics.jsonl")[-1]
    hook_point = store.hook_point(HOOK)
    held_out = open_held_out(store, (hook_point,), 500)
    assert held_out is not None
    x = held_out.rows[HOOK].float()
    latents = result.sae.encode(x)
    fired = (latents > 0).sum(0)
    assert result.sae.mean is not None
    metrics = reconstruction_metrics(result.sae.mean)
    metrics.update(x=x, reconstruction=result.sae.decode(latents), fired=fired)
    for name, value in metrics.compute().items():
        assert line[f"held_out_{name}"] == pytest.approx(value.item(), rel=1e-5)
    assert line["held_out_dead"] == int((fired == 0).sum())
    assert line["held_out_dense"] == int((fired > len(x) / 10).sum())


@pytest.mark.parametrize("n_rows", [1, 10, 65, 300])
def test_there_are_no_more_than_were_asked_for(store: Store, n_rows: int) -> None:
    held_out = open_held_out(store, (store.hook_point(HOOK),), n_rows)
    assert held_out is not None
    assert len(held_out.rows[HOOK]) == n_rows


def test_rows_are_of_the_held_out_split_and_of_many_places(store: Store) -> None:
    hook_points = (store.hook_point(HOOK), store.hook_point(OTHER))
    held_out = open_held_out(store, hook_points, 200)
    assert held_out is not None
    assert {len(rows) for rows in held_out.rows.values()} <= set(range(190, 260))
    every = store.rows(hook_points[0], store.held_out, _all(store))
    found = (held_out.rows[HOOK][:, None] == every[None]).all(2).any(0).nonzero().flatten()
    assert found.min() < len(every) / 8
    assert found.max() > len(every) * 7 / 8


def _all(store: Store) -> list[range]:
    shard, n = store.held_out.rows_per_shard, store.held_out.n_rows
    return [range(first, min(first + shard, n)) for first in range(0, n, shard)]


def test_none_are_read_where_none_are_wanted(
    train_config: Make, lines_of: Lines, store: Store
) -> None:
    assert open_held_out(store, (store.hook_point(HOOK),), 0) is None
    train_sae(train_config(evaluate_rows=0))
    line = lines_of(train_config().out / "metrics.jsonl")[-1]
    assert not [name for name in line if name.startswith("held_out")]


def test_shares_add_up_over_batches() -> None:
    firing = FiringShares(3)
    firing.update(x=torch.zeros(3, 2), fired=torch.tensor([0, 1, 3]))
    firing.update(x=torch.zeros(1, 2), fired=torch.tensor([0, 0, 1]))
    assert firing.compute().tolist() == [0, 0.25, 1]


def test_the_fields_of_a_line_are_those_of_the_docs(train_config: Make, lines_of: Lines) -> None:
    page = (Path(__file__).parents[2] / "docs" / "training.md").read_text()
    section = page.split("## metrics.jsonl")[1].split("\n## ")[0]
    cells = re.findall(r"^\| (`.*?) \|", section, re.MULTILINE)
    documented = {name for cell in cells for name in re.findall(r"`(\w+)`", cell)}
    train_sae(train_config())
    assert set(lines_of(train_config().out / "metrics.jsonl")[-1]) == documented
