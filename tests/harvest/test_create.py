"""A store's skeleton: all that can be known before the first shard."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import zarr

from saeflow.harvest import create
from saeflow.harvest.capture import capture, probe_hook_points
from saeflow.harvest.config import HarvestConfig
from saeflow.harvest.create import create_skeleton
from saeflow.harvest.models import SourceModel
from saeflow.harvest.plan import Plan, make_plan
from saeflow.harvest.quantise import calibrate
from saeflow.harvest.sample import sample_rows

Options = Callable[..., HarvestConfig]
HOOK = "blocks.0.hook_resid_post"


@pytest.fixture
def planned(tiny_config: Options, source_model: SourceModel, tmp_path: Path) -> Callable[..., Plan]:
    """Plans a harvest with some options changed, and creates its skeleton in `tmp_path / "out"`."""

    def plan_and_create(**changes: object) -> Plan:
        config = tiny_config(**changes)
        plan = make_plan(config, source_model, probe_hook_points(source_model, [HOOK]), tmp_path)
        (tmp_path / "out").mkdir()
        create_skeleton(tmp_path / "out", plan, source_model)
        return plan

    return plan_and_create


@pytest.fixture
def group(tmp_path: Path) -> Callable[[], Any]:
    return lambda: zarr.open_group(tmp_path / "out", mode="r")


def test_the_skeleton_holds_the_text_and_the_sample_and_no_row(
    planned: Callable[..., Plan], group: Callable[[], Any]
) -> None:
    plan = planned()
    packing = plan.layout.packing
    assert packing is not None
    for name, stream in plan.streams.items():
        split = plan.layout.splits[name]
        found = group()[f"{split.folder}sequences/token"][:]
        assert np.array_equal(found, stream.sequences(packing, 0, stream.n_sequences))
        assert np.isnan(group()[f"{split.folder}norm/{HOOK}"][:]).all()
    assert np.array_equal(group()["sample"][:], sample_rows(plan.layout))
    assert "quant" not in group()


@pytest.mark.parametrize("pack", [True, False])
def test_int8_is_calibrated_on_ordinary_rows_from_all_over_the_text(
    planned: Callable[..., Plan],
    group: Callable[[], Any],
    source_model: SourceModel,
    monkeypatch: pytest.MonkeyPatch,
    pack: bool,
) -> None:
    """Eight places of two sequences each, every one's rows and no padding."""
    monkeypatch.setattr(create, "_CALIBRATION_PLACES", 8)
    monkeypatch.setattr(create, "_CALIBRATION_SEQUENCES", 2)
    plan = planned(dtype="int8", tokens=None, pack=pack)
    packing, stream = plan.layout.packing, plan.streams["train"]
    assert packing is not None
    rows = []
    for first in (stream.n_sequences * place // 8 for place in range(8)):
        for tokens in stream.sequences(packing, first, first + 2):
            if not pack:
                tokens = tokens[: 1 + (tokens[1:] != packing.separator).sum()]
            batch = torch.from_numpy(tokens[None].astype(np.int64))
            rows.append(capture(source_model, batch, plan.layout.hook_points)[HOOK][0, 1:])
    expected = calibrate(torch.cat(rows)).to_array()
    assert group()[f"quant/{HOOK}"].dtype == np.float32
    np.testing.assert_allclose(group()[f"quant/{HOOK}"][:], expected, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("tokens", [1, 40])
def test_a_text_of_few_sequences_calibrates_too(
    planned: Callable[..., Plan], group: Callable[[], Any], tokens: int
) -> None:
    planned(dtype="int8", tokens=tokens, held_out=0.0, shard_rows=None)
    assert np.isfinite(group()[f"quant/{HOOK}"][:]).all()
