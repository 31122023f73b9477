"""`saeflow import` as its users meet it: stores to train on, and a line for every bad input."""

import io
import json
import os
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from saeflow.harvest.config import HarvestConfig
from saeflow.harvest.run import harvest_activations
from saeflow.harvest.shards import place_shard

HOOK = "blocks.0.hook_resid_post"
Run = Callable[..., Any]


@pytest.fixture
def run_import(run_cli: Run, tmp_path: Path) -> Run:
    """Run `saeflow import SOURCE` into `tmp_path / "store"`; keywords are flags."""

    def run(source: Path, *more: object, **flags: object) -> Any:
        return run_cli("import", source, *more, **{"out": tmp_path / "store", **flags})

    return run


def rows(*shape: int, dtype: str = "float32") -> np.ndarray:
    return np.random.default_rng(0).normal(size=shape).astype(dtype)


@pytest.fixture
def npy(tmp_path: Path) -> Path:
    """1,000 rows of width 16."""
    np.save(tmp_path / "acts.npy", rows(1000, 16))
    return tmp_path / "acts.npy"


# Results.


def test_the_result_is_one_line(run_import: Run, npy: Path, tmp_path: Path) -> None:
    outcome = run_import(npy, hook=HOOK)
    assert outcome.code == 0
    assert outcome.out.startswith(
        f"store {tmp_path / 'store'} is complete: 949 rows and 51 held-out rows of {HOOK}, "
    )
    assert outcome.out.count("\n") == 1
    assert "is complete already" in run_import(npy, hook=HOOK).out


def test_json_is_one_object_and_nothing_else(run_import: Run, npy: Path) -> None:
    result = json.loads(run_import(npy, "--json").out)
    assert result["rows"] + result["held_out_rows"] == 1000
    assert (result["format"], result["dtype"]) == ("npy", "float32")
    assert json.loads(run_import(npy, "--json").out) == {**result, "already_complete": True}


def test_a_dry_run_writes_nothing_and_tells_the_bytes(
    run_import: Run, npy: Path, tmp_path: Path
) -> None:
    told = json.loads(run_import(npy, "--dry-run", "--json").out)
    assert not (tmp_path / "store").exists()
    assert told["options"]["source"] == str(npy)
    found = json.loads(run_import(npy, "--json").out)
    assert told["cost"]["bytes_on_disk"] == pytest.approx(found["bytes"], rel=0.02)
    assert told["cost"]["rows"] == found["rows"]


def test_options_come_from_a_file_too(run_import: Run, npy: Path, tmp_path: Path) -> None:
    file = tmp_path / "saeflow.toml"
    file.write_text(f'dtype = "bfloat16"\nhook = ["{HOOK}"]\n')
    result = json.loads(run_import(npy, "--config", file, "--json").out)
    assert (result["dtype"], result["hook_points"]) == ("bfloat16", [HOOK])


def test_overwrite_makes_a_store_of_other_options(run_import: Run, npy: Path) -> None:
    run_import(npy)
    assert "(dtype: 'float32' there, 'int8' now): name" in run_import(npy, dtype="int8").refusal()
    assert json.loads(run_import(npy, "--json", "--overwrite", dtype="int8").out)["dtype"] == "int8"


def test_masked_rows_are_told(run_import: Run, tmp_path: Path, save_llamascopium: Run) -> None:
    tokens = torch.arange(40)
    save_llamascopium(tmp_path / HOOK, 0, torch.randn(40, 8), tokens, tokens > 9)
    assert f"of {HOOK} (10 masked ones left out), " in run_import(tmp_path / HOOK).out


def test_files_of_another_kind_are_told(run_import: Run, npy: Path) -> None:
    (npy.parent / "README.md").write_text("what these are")
    outcome = run_import(npy.parent, out=npy.parent.parent / f"{npy.parent.name}-store")
    assert outcome.code == 0
    assert "holds 1 more, not imported: README.md" in outcome.err


# Training.


def sae_of(run: Path) -> dict[str, torch.Tensor]:
    (weights,) = run.glob("sae/*/sae_weights.safetensors")
    return load_file(weights)


SMALL: dict[str, object] = {"d_sae": 32, "k": 4, "batch_size": 128, "tokens": 2048, "device": "cpu"}


def test_an_sae_is_trained_on_a_numpy_file(
    run_import: Run, run_cli: Run, npy: Path, tmp_path: Path
) -> None:
    run_import(npy)
    assert run_cli("train", tmp_path / "store", out=tmp_path / "run", **SMALL).code == 0
    (cfg,) = (tmp_path / "run").glob("sae/*/cfg.json")
    metadata = json.loads(cfg.read_text())["metadata"]
    assert (metadata["model_name"], metadata["dataset_path"]) == ("unknown", "unknown")
    assert "prepend_bos" not in metadata  # nobody knows


def test_an_sae_is_trained_on_a_saelens_dataset(
    run_import: Run, run_cli: Run, save_saelens: Run, tmp_path: Path
) -> None:
    tokens = np.random.default_rng(0).integers(0, 300, (60, 17))
    source = save_saelens(tmp_path / "cached", {HOOK: rows(60, 17, 16)}, tokens)
    assert run_import(source, model="tiny").code == 0
    assert run_cli("train", tmp_path / "store", out=tmp_path / "run", **SMALL).code == 0
    (cfg,) = (tmp_path / "run").glob("sae/*/cfg.json")
    metadata = json.loads(cfg.read_text())["metadata"]
    assert (metadata["model_name"], metadata["hook_name"]) == ("tiny", HOOK)


def test_the_rows_of_a_harvest_train_the_same_sae(
    run_import: Run, run_cli: Run, tiny_config: Callable[..., HarvestConfig], tmp_path: Path
) -> None:
    harvested = harvest_activations(tiny_config(dtype="float32", held_out=0.0)).store
    split = harvested.train
    found = harvested.rows(harvested.hook_point(None), split, [split.shard(k) for k in range(4)])
    for k in range(4):
        place = place_shard(harvested.layout, split, k)
        span = slice(place.rows.start, place.rows.stop)
        found[span] = found[span][torch.from_numpy(place.places)]
    np.save(tmp_path / "acts.npy", found.numpy())
    run_import(tmp_path / "acts.npy", out=tmp_path / "imported", held_out=0, shard_rows=512)
    for name, store in (("a", harvested.path), ("b", tmp_path / "imported")):
        assert run_cli("train", store, out=tmp_path / name, **SMALL).code == 0
    one, other = sae_of(tmp_path / "a"), sae_of(tmp_path / "b")
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_evaluate_says_what_it_needs_to_know(
    run_import: Run, run_cli: Run, tiny_model: Path, tiny_text: Path, tmp_path: Path
) -> None:
    np.save(tmp_path / "acts.npy", rows(1000, 32))
    run_import(tmp_path / "acts.npy", hook=HOOK)
    run_cli("train", tmp_path / "store", out=tmp_path / "run", **SMALL)
    assert "does not say its source model: give --model" in (
        run_cli("evaluate", tmp_path / "run").refusal()
    )
    flags: dict[str, object] = {"model": tiny_model, "device": "cpu"}
    assert "imported activations, whose text is not in the store: give --dataset" in (
        run_cli("evaluate", tmp_path / "run", **flags).refusal()
    )
    assert run_cli("evaluate", tmp_path / "run", dataset=tiny_text, **flags).code == 0


def test_evaluate_needs_a_hook_point(
    run_import: Run, run_cli: Run, npy: Path, tiny_model: Path, tmp_path: Path
) -> None:
    run_import(npy)
    run_cli("train", tmp_path / "store", out=tmp_path / "run", **SMALL)
    line = run_cli("evaluate", tmp_path / "run", model=tiny_model).refusal()
    assert "does not say its hook point" in line


# Files that hold no activations.


def save(file: Path, value: Any) -> Path:
    if file.suffix == ".npy":
        np.save(file, value, allow_pickle=True)
    elif file.suffix == ".safetensors":
        save_file(value, file)
    else:
        torch.save(value, file)
    return file


@pytest.mark.parametrize(
    ("name", "value", "told"),
    [
        ("a.npy", np.zeros(10), "has the shape (10,): give (rows, width) or (sequences, "),
        ("a.npy", np.zeros((2, 2, 2, 2)), "has the shape (2, 2, 2, 2): give (rows, width)"),
        ("a.npy", np.zeros((3, 0)), "has the shape (3, 0): give"),
        ("a.npy", np.zeros((0, 3)), "holds no rows: there is nothing to import"),
        ("a.npy", np.zeros((3, 3), int), "holds numbers of type int64: activations are float16"),
        ("a.npy", np.zeros((3, 3), complex), "holds numbers of type complex128"),
        ("a.npy", np.array([{}]), "can't be read (ValueError: Array can't be memory-mapped: Py"),
        ("a.safetensors", {"a": torch.zeros(3, 3, dtype=torch.int32)}, "numbers of type I32"),
        ("a.safetensors", {}, "holds no tensor: give activations, one vector a row"),
        (
            "a.safetensors",
            {"a": torch.zeros(3, 3), "b": torch.zeros(3, 3)},
            "holds several tensors (a, b): choose one with --key",
        ),
        ("a.pt", torch.zeros(3, 3, dtype=torch.int16), "numbers of type int16"),
        ("a.pt", [torch.zeros(3, 3)], "holds no tensor"),
        ("a.pth", {"a": torch.zeros(3, 3), "b": torch.zeros(9)}, "several tensors (a, b): choose"),
        ("a.pt", {"a": torch.zeros(3, 3).to_sparse()}, "holds no tensor"),
    ],
)
def test_a_file_without_activations(
    run_import: Run, tmp_path: Path, name: str, value: Any, told: str
) -> None:
    line = run_import(save(tmp_path / name, value)).refusal()
    assert str(tmp_path / name) in line
    assert told in line
    assert not (tmp_path / "store").exists()


class Malicious:
    """Makes a file when it is unpickled."""

    def __init__(self, file: Path) -> None:
        self.file = str(file)

    def __reduce__(self) -> Any:
        return os.mkdir, (self.file,)


@pytest.mark.parametrize("how", ["torch", "pickle", "npy"])
def test_code_in_a_file_is_never_run(run_import: Run, tmp_path: Path, how: str) -> None:
    bad, trace = Malicious(tmp_path / "ran"), tmp_path / "ran"
    file = tmp_path / ("acts.npy" if how == "npy" else "acts.pt")
    if how == "torch":
        torch.save({"acts": torch.zeros(4, 4), "more": bad}, file)
    elif how == "pickle":
        file.write_bytes(pickle.dumps(bad))
    else:
        np.save(file, np.array([bad], dtype=object), allow_pickle=True)
    line = run_import(file).refusal()
    assert ("save its tensors alone" if how == "torch" else str(file)) in line
    assert not trace.exists()


def test_a_torch_file_of_the_old_form(run_import: Run, tmp_path: Path) -> None:
    torch.save(torch.zeros(4, 4), tmp_path / "a.pt", _use_new_zipfile_serialization=False)
    line = run_import(tmp_path / "a.pt").refusal()
    assert "is in torch's format from before version 1.6, or no torch file: load it and" in line


@pytest.mark.parametrize("name", ["a.npy", "a.safetensors", "a.pt"])
def test_a_file_that_was_cut_short(run_import: Run, tmp_path: Path, name: str) -> None:
    values = torch.zeros(300, 8)
    file = save(
        tmp_path / name,
        {"a.npy": values.numpy(), "a.safetensors": {"a": values}}.get(name, values),
    )
    file.write_bytes(file.read_bytes()[:-700])
    line = run_import(file).refusal()
    assert f"{file} can't be read (" in line
    assert line.endswith("): check that it is whole")


@pytest.mark.parametrize("value", [np.nan, np.inf])
@pytest.mark.parametrize("shape", [(40, 4), (10, 4, 4)])
def test_a_row_that_is_not_finite(
    run_import: Run, tmp_path: Path, value: float, shape: tuple[int, ...]
) -> None:
    values = rows(*shape)
    values.reshape(-1, 4)[33, 2] = value
    np.save(tmp_path / "a.npy", values)
    line = run_import(tmp_path / "a.npy").refusal()
    where = "row 33" if len(shape) == 2 else "sequence 8, position 1"
    assert f"a.npy, {where}: NaN or infinity among the activations: take such rows out" in line


def test_an_overflow_of_float16(run_import: Run, tmp_path: Path) -> None:
    values = rows(40, 4)
    values[7, 1] = 1e5
    np.save(tmp_path / "a.npy", values)
    line = run_import(tmp_path / "a.npy", dtype="float16").refusal()
    assert "row 7: an activation of 1e+05 overflows float16: import with --dtype float32" in line
    assert run_import(tmp_path / "a.npy", "--overwrite", dtype="float32").code == 0


def test_an_overflow_of_float32(run_import: Run, tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", np.full((4, 4), 1e300))
    line = run_import(tmp_path / "a.npy").refusal()
    assert "row 0: an activation of 1e+300 overflows float32: scale the rows down" in line


# Folders.


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "source").mkdir()
    return tmp_path / "source"


@pytest.mark.parametrize(
    ("shape", "dtype", "told"),
    [
        ((5, 3), "float32", "has the shape (5, 3) and "),
        ((5, 2, 4), "float32", "import them into stores of their own"),
        ((5, 4), "float16", "holds activations of different precisions: choose one with --dtype"),
    ],
)
def test_files_that_do_not_go_together(
    run_import: Run, folder: Path, shape: tuple[int, ...], dtype: str, told: str
) -> None:
    np.save(folder / "a.npy", rows(5, 4))
    np.save(folder / "b.npy", rows(*shape, dtype=dtype))
    assert told in run_import(folder).refusal()


def test_a_folder_without_files(run_import: Run, folder: Path) -> None:
    assert f"{folder} holds no activations: give .npy, " in run_import(folder).refusal()
    assert "holds no file of --format npy" in run_import(folder, format="npy").refusal()


def test_a_folder_of_two_kinds(run_import: Run, folder: Path) -> None:
    np.save(folder / "a.npy", rows(500, 4))
    torch.save(torch.zeros(5, 4), folder / "a.pt")
    line = run_import(folder).refusal()
    assert "holds files of 2 kinds (npy, torch): choose one with --format" in line
    assert "500" not in line
    assert run_import(folder, format="npy").code == 0


@pytest.mark.parametrize(
    ("source", "told"),
    [
        ("none.npy", "none.npy does not exist"),
        ("a.csv", "is none of .npy, .safetensors, .pt"),
        ("/dev/null", "source /dev/null is neither a file nor a folder: check the path"),
        ("pipe.npy", "pipe.npy is neither a file nor a folder: check the path"),
    ],
)
def test_a_source_that_is_no_source(
    run_import: Run, tmp_path: Path, source: str, told: str
) -> None:
    os.mkfifo(tmp_path / "pipe.npy")
    (tmp_path / "a.csv").write_text("1,2\n")
    assert told in run_import(tmp_path / source).refusal()


# Options.


@pytest.mark.parametrize(
    ("flags", "told"),
    [
        ({"key": "a"}, "--key a is for files with names in them: a .npy has none"),
        ({"held_out": 1}, "--held-out is 1.0: it must be at least 0 and below 1"),
        ({"held_out": 0.9999}, "1 training rows, fewer than one shard of --shard-rows 2"),
        ({"shard_rows": 0}, "--shard-rows is 0: it must be at least 1"),
        ({"model": ""}, "--model is empty: leave it out"),
        ({"hook": "a/b"}, "hook point 'a/b' can't be the name of a folder"),
        ({"format": "torch"}, "is a file of another kind"),
        ({"format": "saelens"}, "--format saelens: "),
        ({"out": "s3://bucket/store"}, "is a URL: import from a folder into a folder"),
    ],
)
def test_an_option_without_sense(
    run_import: Run, tmp_path: Path, flags: dict[str, object], told: str
) -> None:
    np.save(tmp_path / "a.npy", rows(10, 4))
    assert told in run_import(tmp_path / "a.npy", **{"shard_rows": 2, **flags}).refusal()
    assert not (tmp_path / "store").exists()


def test_two_hook_points_for_one_file(run_import: Run, npy: Path) -> None:
    assert "holds rows of one" in run_import(npy, "--hook", "a", "--hook", "b").refusal()
    assert "--hook names a twice" in run_import(npy, "--hook", "a", "--hook", "a").refusal()


@pytest.mark.parametrize("key", ["c", ""])
def test_a_key_that_is_not_there(run_import: Run, tmp_path: Path, key: str) -> None:
    save(tmp_path / "a.safetensors", {"a": torch.zeros(3, 3)})
    line = run_import(tmp_path / "a.safetensors", key=key).refusal()
    assert ("has no tensor 'c': it holds a" if key else "--key is empty: leave it out") in line


# The output folder.


def test_out_holds_something_else(run_import: Run, npy: Path, tmp_path: Path) -> None:
    (tmp_path / "store").mkdir()
    (tmp_path / "store/thesis.tex").write_text("precious")
    line = run_import(npy, "--overwrite").refusal()
    assert "holds something else (thesis.tex): name an empty or a new folder" in line
    assert (tmp_path / "store/thesis.tex").read_text() == "precious"


def test_the_source_is_never_inside_the_store(run_import: Run, npy: Path, tmp_path: Path) -> None:
    run_import(npy)
    inside = tmp_path / "store/acts.npy"
    npy.rename(inside)
    assert "contains the source" in run_import(inside, "--overwrite").refusal()
    assert inside.is_file()


# SAELens and llamascopium.


def test_a_saelens_dataset_without_activations(run_import: Run, tmp_path: Path) -> None:
    from datasets import Dataset

    Dataset.from_dict({"text": ["a"]}).save_to_disk(tmp_path / "text")
    assert "no column of activations (Array2D): it has text" in (
        run_import(tmp_path / "text").refusal()
    )


def test_a_hook_point_that_is_not_there(
    run_import: Run, tmp_path: Path, save_saelens: Run, save_llamascopium: Run
) -> None:
    save_saelens(tmp_path / "cached", {HOOK: rows(4, 5, 6)})
    tokens = torch.arange(5)
    save_llamascopium(tmp_path / "chunks" / HOOK, 0, torch.zeros(5, 6), tokens, tokens > 0)
    for source in ("cached", "chunks"):
        line = run_import(tmp_path / source, hook="other").refusal()
        assert f"does not hold hook point other: it holds {HOOK}" in line


def test_saelens_was_interrupted(run_import: Run, folder: Path) -> None:
    (folder / ".tmp_shards").mkdir()
    assert "SAELens has not written it to the end" in run_import(folder).refusal()
    assert "has no state.json and dataset_info.json" in (
        run_import(folder, format="saelens").refusal()
    )


def test_a_damaged_saelens_dataset(run_import: Run, tmp_path: Path, save_saelens: Run) -> None:
    folder = save_saelens(tmp_path / "cached", {HOOK: rows(400, 5, 6)})
    file = min(folder.glob("*.arrow"))
    file.write_bytes(file.read_bytes()[:5000])
    assert f"{folder} can't be read (" in run_import(folder).refusal()


def test_contexts_of_different_lengths(run_import: Run, tmp_path: Path, save_saelens: Run) -> None:
    folder = save_saelens(tmp_path / "cached", {"a": rows(4, 5, 6), "b": rows(4, 7, 6)})
    assert "contexts of different lengths: import one at a time" in run_import(folder).refusal()


def test_a_negative_token_id(
    run_import: Run, tmp_path: Path, save_saelens: Run, save_llamascopium: Run
) -> None:
    folder = save_saelens(tmp_path / "cached", {HOOK: rows(4, 5, 6)}, np.full((4, 5), -7))
    assert "holds token id -7: it must be from 0 to " in run_import(folder).refusal()
    tokens = torch.full((5,), -7)
    save_llamascopium(tmp_path / HOOK, 0, torch.zeros(5, 6), tokens, tokens < 0)
    assert "holds token id -7: it must be from 0 to " in run_import(tmp_path / HOOK).refusal()


def test_chunks_that_do_not_go_together(
    run_import: Run, folder: Path, save_llamascopium: Run
) -> None:
    tokens = torch.arange(5)
    save_llamascopium(folder / "a", 0, torch.zeros(5, 6), tokens, tokens > 0)
    save_llamascopium(folder / "b", 0, torch.zeros(5, 6), tokens + 1, tokens > 0)
    assert "holds other tokens than " in run_import(folder).refusal()
    save_llamascopium(folder / "b", 0, torch.zeros(5, 6), tokens, tokens > 0)
    save_llamascopium(folder / "b", 1, torch.zeros(5, 6), tokens, tokens > 0)
    assert "holds chunk 1 of shard 0 for only one of a and b" in run_import(folder).refusal()
    save_llamascopium(folder / "a", 1, torch.zeros(5, 7), tokens, tokens > 0)
    assert "chunks of a hold rows of different widths (6, 7)" in run_import(folder).refusal()
    save_llamascopium(folder / "a", 1, torch.zeros(4, 6), tokens, tokens > 0)
    assert "has tokens of shape (5,) for activations of shape (4, 6)" in (
        run_import(folder).refusal()
    )


def test_a_chunk_of_both_kinds(run_import: Run, folder: Path, save_llamascopium: Run) -> None:
    tokens = torch.arange(5)
    for kind in ("pt", "safetensors"):
        save_llamascopium(folder, 0, torch.zeros(5, 6), tokens, tokens > 0, kind)
    assert "are the same chunk: take one away" in run_import(folder).refusal()


def test_a_chunk_of_something_else(run_import: Run, folder: Path) -> None:
    save_file({"acts": torch.randn(500, 4)}, folder / "chunk-0.safetensors")
    line = run_import(folder).refusal()
    assert "chunk-0.safetensors has no tensor 'activation': llamascopium writes" in line
    assert run_import(folder, format="safetensors").code == 0


def test_chunks_whose_rows_are_all_masked(
    run_import: Run, folder: Path, save_llamascopium: Run
) -> None:
    tokens = torch.arange(5)
    save_llamascopium(folder, 0, torch.zeros(5, 6), tokens, tokens < 0)
    assert "holds no rows but 5 masked ones: there is nothing" in run_import(folder).refusal()


def test_a_pickle_between_the_bytes_of_a_chunk(run_import: Run, folder: Path) -> None:
    buffer = io.BytesIO()
    torch.save({"activation": Malicious(folder / "ran")}, buffer)
    (folder / "chunk-0.pt").write_bytes(buffer.getvalue())
    assert "save its tensors alone" in run_import(folder).refusal()
    assert not (folder / "ran").exists()
