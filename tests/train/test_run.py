"""`train_sae` from end to end: the same bytes for the same options, and what it refuses."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from saeflow.errors import BadInputError, SaeflowError
from saeflow.train.config import TrainConfig
from saeflow.train.folder import load_sae
from saeflow.train.run import plan_training, train_sae

Make = Callable[..., TrainConfig]
Lines = Callable[[Path], list[dict[str, Any]]]


def contents(folder: Path) -> dict[str, bytes]:
    return {
        str(file.relative_to(folder)): file.read_bytes()
        for file in sorted(folder.rglob("*"))
        if file.is_file()
    }


def results(run: Path) -> dict[str, bytes]:
    """What a run made, without the options that name its folder, and how fast it was."""
    files = contents(run)
    files.pop("config.toml")
    files.pop("speed.jsonl")
    return {name: content.replace(str(run).encode(), b"RUN") for name, content in files.items()}


def test_a_run_holds_its_options_metrics_and_sae(train_config: Make, lines_of: Lines) -> None:
    result = train_sae(train_config())
    name = "sae/blocks.0.hook_resid_post-topk-48"
    assert sorted(contents(train_config().out)) == [
        "config.toml",
        "metrics.jsonl",
        f"{name}/cfg.json",
        f"{name}/sae_weights.safetensors",
        f"{name}/self_test.safetensors",
        "speed.jsonl",
    ]
    assert result.folder == train_config().out / name
    assert (result.steps, result.rows, result.already_complete) == (10, 2560, False)
    lines = lines_of(train_config().out / "metrics.jsonl")
    assert [line["step"] for line in lines] == [3, 6, 9, 10]
    assert lines[-1]["l0"] == 4


@pytest.mark.parametrize("options", [{}, {"arch": "relu", "k": None}], ids=["topk", "relu"])
def test_the_same_options_give_the_same_bytes(
    train_config: Make, tmp_path: Path, options: dict[str, Any]
) -> None:
    runs = [tmp_path / "one", tmp_path / "two"]
    for run in runs:
        train_sae(train_config(out=run, **options))
    assert results(runs[0]) == results(runs[1])


def test_another_seed_gives_another_sae(train_config: Make, tmp_path: Path) -> None:
    one, two = (
        train_sae(train_config(out=tmp_path / str(seed), seed=seed)).sae.parameters.b_dec
        for seed in (0, 1)
    )
    assert not torch.equal(one, two)


def test_again_it_is_complete_and_nothing_is_touched(train_config: Make) -> None:
    train_sae(train_config())
    before = contents(train_config().out)
    again = train_sae(train_config())
    assert again.already_complete
    assert again.waited is None
    assert contents(train_config().out) == before


def test_the_trained_sae_is_better_than_the_untrained(
    train_config: Make, zarr_rows: Callable[[str], Tensor], tmp_path: Path
) -> None:
    rows = zarr_rows("blocks.0.hook_resid_post")

    def error(tokens: int) -> float:
        sae = train_sae(train_config(out=tmp_path / str(tokens), tokens=tokens)).sae
        return float((sae(rows) - rows).square().sum())

    assert error(10_000) < 0.5 * error(0)


def test_zero_tokens_write_the_initial_sae(train_config: Make, store: Any) -> None:
    result = train_sae(train_config(tokens=0))
    assert (result.steps, result.rows, result.waited) == (0, 0, None)
    assert (train_config().out / "metrics.jsonl").read_text() == ""
    mean = store.statistics(store.hook_point("blocks.0.hook_resid_post"))["mean"]
    torch.testing.assert_close(result.sae.parameters.b_dec, torch.from_numpy(mean).float())


def test_one_epoch_is_the_default(train_config: Make, store: Any) -> None:
    plan = plan_training(train_config(tokens=None))
    assert plan.n_steps == store.train.n_rows // 256
    assert 0.9 < plan.epochs <= 1


def test_expansion_is_a_multiple_of_the_width(train_config: Make) -> None:
    (sae,) = plan_training(train_config(d_sae=None, expansion=1.5)).saes
    assert sae.member.d_sae == 48


def test_cfg_names_model_hook_point_and_store(train_config: Make, store: Any) -> None:
    cfg = train_sae(train_config()).sae.cfg
    assert cfg["metadata"]["hook_name"] == "blocks.0.hook_resid_post"
    assert cfg["metadata"]["model_name"] == store.provenance["model"]["name"]
    recorded = cfg["metadata"]["saeflow"]
    assert recorded["store"]["identity"] == store.identity
    assert recorded["store"]["provenance"] == store.provenance
    assert (recorded["rows"], recorded["train"]["k"]) == (2560, 4)


def test_a_hook_point_with_a_head_axis_says_so(train_config: Make) -> None:
    sae = train_sae(train_config(hook=("blocks.1.attn.hook_z",))).sae
    assert sae.cfg["reshape_activations"] == "hook_z"
    assert sae.d_in == 32


def test_other_options_are_refused_by_name(train_config: Make) -> None:
    train_sae(train_config())
    before = contents(train_config().out)
    with pytest.raises(BadInputError, match=r"seed: 0 there, 5 now.*--overwrite"):
        train_sae(train_config(seed=5))
    assert contents(train_config().out) == before


def test_overwrite_replaces_a_run(train_config: Make) -> None:
    train_sae(train_config())
    result = train_sae(train_config(d_sae=40), overwrite=True)
    assert result.sae.d_sae == 40
    assert [p.name for p in (train_config().out / "sae").iterdir()] == [result.folder.name]


def test_a_store_that_changed_since_is_refused(
    train_config: Make, tiny_store: Path, tmp_path: Path
) -> None:
    copy = shutil.copytree(tiny_store, tmp_path / "copy")
    train_sae(train_config(store=copy))
    root = json.loads((copy / "zarr.json").read_text())
    root["attributes"]["saeflow"]["manifest_sha256"] = "0" * 64
    (copy / "zarr.json").write_text(json.dumps(root))
    with pytest.raises(BadInputError, match="has changed since"):
        train_sae(train_config(store=copy))


def test_a_run_that_diverges_leaves_no_sae(train_config: Make) -> None:
    with pytest.raises(SaeflowError, match=r"is not finite at step \d+.*try a smaller --lr"):
        train_sae(train_config(lr=1e30))
    assert not list(train_config().out.glob("sae/*"))


def test_overwrite_does_not_throw_away_what_is_no_run(train_config: Make, tmp_path: Path) -> None:
    """Many projects have a config.toml of their own."""
    project = tmp_path / "project"
    project.mkdir()
    (project / "config.toml").write_text('title = "my thesis"\n')
    (project / "thesis.tex").write_text("years of work")
    with pytest.raises(BadInputError, match="project"):
        train_sae(train_config(out=project), overwrite=True)
    assert (project / "thesis.tex").read_text() == "years of work"


def test_refused_options_do_not_claim_the_folder(train_config: Make) -> None:
    """A mistyped device must not make the folder another run's."""
    with pytest.raises(BadInputError, match="--device"):
        train_sae(train_config(device="cuda:77x"))
    assert train_sae(train_config()).steps == 10


@pytest.mark.parametrize("options", [{"arch": "relu", "k": None}, {}], ids=["relu", "topk"])
def test_an_expansion_to_no_latents_is_refused(train_config: Make, options: dict[str, Any]) -> None:
    with pytest.raises(BadInputError, match=r"--expansion|latents"):
        plan_training(train_config(d_sae=None, expansion=1e-3, **options))


def test_the_sae_that_is_returned_is_the_one_on_disk(train_config: Make) -> None:
    result = train_sae(train_config())
    loaded = load_sae(result.folder)
    assert torch.equal(loaded.parameters.encoder, result.sae.parameters.encoder)
    assert loaded.cfg == result.sae.cfg


def test_a_row_that_is_not_finite_is_named(
    train_config: Make, tiny_store: Path, tmp_path: Path
) -> None:
    """It is read as stored, before anything is computed of it."""
    copy = shutil.copytree(tiny_store, tmp_path / "copy")
    shard = copy / "acts" / "blocks.0.hook_resid_post" / "c" / "0" / "0"
    content = bytearray(shard.read_bytes())
    content[7 * 64 : 7 * 64 + 2] = b"\xc0\x7f"  # NaN in bfloat16
    shard.write_bytes(content)
    told = (
        r"the loss of blocks.0.hook_resid_post-topk-48 is not finite at step \d+, rows \d.* to .*; "
        r"no weight was changed by it, none was saved yet; "
        r"row 7 of blocks.0.hook_resid_post in the store is not finite"
    )
    with pytest.raises(SaeflowError, match=told):
        train_sae(train_config(store=copy, tokens=None))


def test_training_goes_on_from_an_sae_folder(train_config: Make, tmp_path: Path) -> None:
    first = train_sae(train_config(out=tmp_path / "first"))
    again = train_sae(train_config(tokens=0, init_from=first.folder)).sae
    torch.testing.assert_close(again.parameters.encoder, first.sae.parameters.encoder)
    torch.testing.assert_close(again.parameters.b_enc, first.sae.parameters.b_enc)


def test_an_sae_folder_of_another_width_is_refused(train_config: Make, tmp_path: Path) -> None:
    first = train_sae(train_config(out=tmp_path / "first", tokens=0))
    with pytest.raises(BadInputError, match=r"48.*40|40.*48"):
        train_sae(train_config(d_sae=40, init_from=first.folder))
    assert not train_config().out.exists()


def test_too_few_rows_to_resample_all_latents_from_are_refused_at_once(train_config: Make) -> None:
    config = train_config(
        arch="relu",
        k=None,
        l1=1000.0,
        resample=True,
        resample_every=1024,
        resample_window=512,
        resample_rows=2,
        resample_threshold=0.9,
    )
    with pytest.raises(BadInputError, match=r"--resample-rows 2 is less than the 48 latents"):
        train_sae(config)
