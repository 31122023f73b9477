"""`saeflow train` as its users meet it: results, and one line for every kind of bad input."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from saeflow.errors import BadInputError
from saeflow.train.folder import find_sae, load_sae

HOOK = "blocks.0.hook_resid_post"
Run = Callable[..., Any]


@pytest.fixture
def train(run_cli: Run, tiny_store: Path, tmp_path: Path) -> Run:
    """Run `saeflow train` into `tmp_path / "run"`; keywords are flags, None leaves one out."""

    def run(*more: object, store: object = tiny_store, **flags: object) -> Any:
        given = {
            "out": tmp_path / "run",
            "hook": HOOK,
            "d_sae": 48,
            "k": 4,
            "batch_size": 256,
            "tokens": 1024,
            "device": "cpu",
            **flags,
        }
        return run_cli("train", store, *more, **given)

    return run


def assert_no_result(run: Path) -> None:
    """Nothing that `saeflow evaluate` would take for an SAE."""
    with pytest.raises(BadInputError, match=r"does not exist|holds no SAE"):
        find_sae(run)


@pytest.fixture
def changed_store(tiny_store: Path, tmp_path: Path) -> Callable[..., Path]:
    """A copy of the store with some of its root attributes changed."""

    def change(**attributes: Any) -> Path:
        copy = shutil.copytree(tiny_store, tmp_path / "store")
        root = json.loads((copy / "zarr.json").read_text())
        root["attributes"]["saeflow"].update(attributes)
        (copy / "zarr.json").write_text(json.dumps(root))
        return copy

    return change


# Results.


def test_the_result_is_one_line(train: Run, tmp_path: Path) -> None:
    outcome = train()
    assert outcome.code == 0
    folder = tmp_path / "run" / "sae" / f"{HOOK}-topk-48"
    assert outcome.out == f"SAE {folder} is trained: 1,024 rows in 4 steps\n"
    assert load_sae(folder).d_sae == 48


def test_again_says_that_it_was_trained_already(train: Run) -> None:
    train()
    again = train()
    assert again.code == 0
    assert "was trained already" in again.out


def test_json_is_one_object_and_nothing_else(train: Run, tmp_path: Path) -> None:
    result = json.loads(train("--json").out)
    reading = result.pop("reading")
    assert 0 <= reading["waited"] == result.pop("waited") <= 1
    assert reading["rows_per_s"] > 0
    assert result.pop("rows_kept") > 1024
    assert result == {
        "saes": [str(tmp_path / "run" / "sae" / f"{HOOK}-topk-48")],
        "steps": 4,
        "rows": 1024,
        "already_complete": False,
    }


def test_a_relu_sae(train: Run, tmp_path: Path) -> None:
    assert train(arch="relu", k=None, l1=2.0).code == 0
    assert load_sae(find_sae(tmp_path / "run")).cfg["architecture"] == "standard"


def test_a_dry_run_writes_nothing(train: Run, tmp_path: Path) -> None:
    outcome = train("--dry-run")
    assert outcome.code == 0
    assert f'hook = [\n    "{HOOK}",\n]' in outcome.out
    assert "# steps: 4" in outcome.out
    assert list(tmp_path.iterdir()) == []


def test_a_dry_run_in_json(train: Run, tmp_path: Path) -> None:
    shown = json.loads(train("--dry-run", "--json").out)
    (sae,) = shown["cost"]["saes"]
    assert (shown["options"]["k"], sae["d_in"], shown["cost"]["rows"]) == (4, 32, 1024)
    assert shown["cost"]["bytes_of_state"] == 16 * (2 * 32 * 48 + 48 + 32)
    assert not (tmp_path / "run").exists()


def test_what_a_dry_run_prints_is_a_config_file(
    train: Run, run_cli: Run, tiny_store: Path, tmp_path: Path
) -> None:
    file = tmp_path / "saeflow.toml"
    file.write_text(train("--dry-run").out)
    assert run_cli("train", "--config", file).code == 0
    assert "was trained already" in train().out


def test_the_config_of_a_run_makes_it_again(train: Run, run_cli: Run, tmp_path: Path) -> None:
    train()
    again = run_cli("train", "--config", tmp_path / "run" / "config.toml")
    assert "was trained already" in again.out


def test_overwrite_trains_again(train: Run, tmp_path: Path) -> None:
    train()
    assert train("--overwrite", d_sae=40).code == 0
    assert load_sae(find_sae(tmp_path / "run")).d_sae == 40


def test_the_only_hook_point_needs_no_name(
    train: Run, tiny_config: Callable[..., Any], tmp_path: Path
) -> None:
    from saeflow.harvest.run import harvest_activations

    store = harvest_activations(tiny_config()).store.path
    assert train(store=store, hook=None).code == 0
    assert load_sae(find_sae(tmp_path / "run")).hook_point == HOOK


# The store.


def test_a_missing_store(train: Run, tmp_path: Path) -> None:
    line = train(store="/no/such/store").refusal()
    assert line.startswith("saeflow: store /no/such/store does not exist: check the path")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("content", ["nothing", "other files", "another zarr group", "a file"])
def test_what_is_not_a_store(train: Run, tmp_path: Path, content: str) -> None:
    path = tmp_path / "thing"
    if content == "a file":
        path.write_text("x")
    elif content == "another zarr group":
        import zarr

        zarr.open_group(path, mode="w")
    else:
        path.mkdir()
        if content == "other files":
            (path / "zarr.json").write_text("{")
    assert f"{path} " in train(store=path).refusal()
    assert not (tmp_path / "run").exists()


def test_an_incomplete_store(train: Run, changed_store: Run, tmp_path: Path) -> None:
    line = train(store=changed_store(state="writing")).refusal()
    assert "is incomplete (" in line
    assert "run the same saeflow harvest or import again" in line
    assert not (tmp_path / "run").exists()


def test_a_store_of_a_newer_format(train: Run, changed_store: Run, tmp_path: Path) -> None:
    line = train(store=changed_store(format=2)).refusal()
    assert "is of format 2, newer than this saeflow reads (1): upgrade saeflow" in line
    assert not (tmp_path / "run").exists()


def test_a_store_with_a_layout_that_means_nothing(train: Run, changed_store: Run) -> None:
    assert "unreadable attributes" in train(store=changed_store(layout={"dtype": "int3"})).refusal()


def test_a_hook_point_that_the_store_does_not_hold(train: Run, tmp_path: Path) -> None:
    line = train(hook="blocks.1.hook_resid_post").refusal()
    assert "does not hold hook point blocks.1.hook_resid_post" in line
    assert f"it holds {HOOK}, blocks.1.attn.hook_z" in line
    assert not (tmp_path / "run").exists()


def test_several_hook_points_and_none_named(train: Run) -> None:
    line = train(hook=None).refusal()
    assert f"holds several hook points: choose with --hook from {HOOK}," in line


# Options.

CONTRADICTIONS: dict[str, tuple[dict[str, Any], str]] = {
    "k > d_sae": ({"k": 49}, "--k 49 is more than the 48 latents: lower --k or raise --d-sae"),
    "default k > d_sae": ({"k": None, "d_sae": 31}, "--k 32 is more than the 31 latents"),
    "d_sae and expansion": ({"expansion": 2}, "give --d-sae or --expansion, not both"),
    "no width": ({"d_sae": None}, "give --d-sae or --expansion"),
    "l1 with topk": ({"l1": 2}, "--l1 is for --arch relu"),
    "k with relu": ({"arch": "relu"}, "--k is for --arch topk"),
    "more rows in a batch than in the store": (
        {"batch_size": 100_000, "tokens": None},
        "fewer than one batch of 100000: lower --batch-size, or harvest more",
    ),
    "fewer tokens than a batch": (
        {"tokens": 255},
        "--tokens 255 is less than one batch of 256: raise it, or lower --batch-size",
    ),
    "warm-up and decay overlap": ({"warm_up": 0.6, "decay": 0.6}, "overlap"),
}


@pytest.mark.parametrize("why", CONTRADICTIONS)
def test_options_that_contradict_each_other(train: Run, tmp_path: Path, why: str) -> None:
    flags, message = CONTRADICTIONS[why]
    assert message in train(**flags).refusal()
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("flag", "value"),
    [
        ("batch_size", 0),
        ("batch_size", -1),
        ("k", 0),
        ("d_sae", -8),
        ("lr", 0),
        ("lr", "nan"),
        ("lr", "inf"),
        ("tokens", -1),
        ("warm_up", 1.5),
        ("warm_up", "nan"),
        ("decay", -0.1),
        ("dead_after", 0),
        ("log_every", 0),
        ("device", "gpu"),
    ],
)
def test_a_value_that_makes_no_sense(train: Run, tmp_path: Path, flag: str, value: object) -> None:
    assert f"--{flag.replace('_', '-')} " in train(**{flag: value}).refusal()
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("expansion", ["0", "nan", "inf", "0.001"])
@pytest.mark.parametrize("arch", ["topk", "relu"])
def test_an_expansion_that_makes_no_sense(train: Run, expansion: str, arch: str) -> None:
    outcome = train(d_sae=None, expansion=expansion, arch=arch, k=4 if arch == "topk" else None)
    assert "--expansion" in outcome.refusal()


@pytest.mark.parametrize("l1", ["-1", "nan", "inf"])
def test_a_penalty_that_makes_no_sense(train: Run, l1: str) -> None:
    assert "--l1" in train(arch="relu", k=None, l1=l1).refusal()


@pytest.mark.parametrize("flags", [{"arch": "no-such"}, {"d_sae": "wide"}, {"no_such": 1}])
def test_what_the_parser_refuses(train: Run, tmp_path: Path, flags: dict[str, object]) -> None:
    outcome = train(**flags)
    assert outcome.code == 2
    assert next(iter(flags)).replace("_", "-") in outcome.err
    assert "Traceback" not in outcome.err
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("batch_sise = 3", "unknown option 'batch_sise'"),
        ('seed = "many"', "seed: "),
        ("seed = ", "is not TOML"),
        (None, "can't be read"),
    ],
)
def test_a_bad_config_file(train: Run, tmp_path: Path, content: str | None, message: str) -> None:
    file = tmp_path / "saeflow.toml"
    if content is not None:
        file.write_text(content)
    line = train("--config", file).refusal()
    assert message in line
    assert str(file) in line


def test_no_out(train: Run) -> None:
    assert train(out=None).refusal().startswith("saeflow: --out is needed")


# What is at --out.


def test_out_holds_something_else(train: Run, tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "thesis.tex").write_text("years of work")
    for more in ([], ["--overwrite"]):
        line = train(*more).refusal()
        assert f"--out {tmp_path / 'run'} holds something else: name an empty or a new" in line
    assert [p.name for p in (tmp_path / "run").iterdir()] == ["thesis.tex"]


def test_out_is_a_file(train: Run, tmp_path: Path) -> None:
    (tmp_path / "run").write_text("x")
    assert f"--out {tmp_path / 'run'} is a file: name a folder" in train().refusal()
    assert (tmp_path / "run").read_text() == "x"


def test_out_is_the_store(train: Run, tiny_store: Path) -> None:
    assert "holds something else" in train("--overwrite", out=tiny_store).refusal()
    assert (tiny_store / "zarr.json").is_file()


def test_other_options_are_refused_by_name(train: Run, tmp_path: Path) -> None:
    train()
    line = train(seed=3, k=None).refusal()
    assert "seed: 0 there, 3 now" in line
    assert "k: 4 there, None now" in line
    assert "--overwrite" in line
    assert "d_sae" not in line
    assert load_sae(find_sae(tmp_path / "run")).d_sae == 48


# Failures that are no bad input.


def test_a_damaged_shard_fails_by_name(train: Run, changed_store: Run, tmp_path: Path) -> None:
    store = changed_store()
    for shard in (store / "acts" / HOOK / "c").glob("*/0"):
        shard.write_bytes(shard.read_bytes()[:-7])
    outcome = train(store=store)
    assert outcome.code == 1
    assert "is damaged or not laid out as format 1" in outcome.err.splitlines()[-1]
    assert_no_result(tmp_path / "run")


def test_a_run_that_diverges_fails(train: Run, tmp_path: Path) -> None:
    outcome = train(lr=1e30)
    assert outcome.code == 1
    assert outcome.err.splitlines()[-1].startswith(f"saeflow: the loss of {HOOK}-topk-48 is")
    assert_no_result(tmp_path / "run")


def test_a_sweep_takes_several_values(train: Run, tmp_path: Path) -> None:
    outcome = train("--sweep", "k=2,4", "lr=1e-3,3e-3", "--seed", "1")
    assert outcome.code == 0
    names = sorted(folder.name for folder in (tmp_path / "run" / "sae").iterdir())
    assert names == [f"{HOOK}-topk-48-k={k}-lr={lr}" for k in (2, 4) for lr in (0.001, 0.003)]
    assert len(outcome.out.splitlines()) == 4


def test_a_flag_that_every_table_overrides_is_not_ignored(train: Run, tmp_path: Path) -> None:
    file = tmp_path / "run.toml"
    file.write_text("[[sae]]\nk = 2\n[[sae]]\nk = 3\n")
    refusal = train("--config", str(file), "--k", "4").refusal()
    assert f"--k has no effect: every [[sae]] table of {file} gives its own" in refusal


def test_tables_of_the_config_file_are_an_sae_each(
    run_cli: Run, tiny_store: Path, tmp_path: Path
) -> None:
    file = tmp_path / "run.toml"
    file.write_text(f"""
store = "{tiny_store}"
out = "{tmp_path / "run"}"
hook = "{HOOK}"
batch_size = 256
tokens = 1024

[[sae]]
arch = "jumprelu"
d_sae = 40

[[sae]]
name = "wide"
d_sae = 64
k = 4
""")
    assert run_cli("train", "--config", str(file)).code == 0
    assert sorted(folder.name for folder in (tmp_path / "run" / "sae").iterdir()) == [
        f"{HOOK}-jumprelu-40",
        "wide",
    ]
    again = run_cli("train", "--config", str(tmp_path / "run" / "config.toml"))
    assert "was trained already" in again.out


def test_tensorboard_gets_the_same_figures(train: Run, tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    assert train("--log-to", "tensorboard").code == 0
    assert list((tmp_path / "run" / "tensorboard").glob("events*"))


def test_an_unknown_logger(train: Run) -> None:
    assert "'tensorboard', 'wandb' or 'trackio'" in train("--log-to", "paper").refusal()
