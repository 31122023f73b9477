"""`saeflow harvest` as its users meet it: results, and one line for every kind of bad input."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import zarr
from transformers import AutoModelForCausalLM, AutoTokenizer

from saeflow.errors import BadInputError
from saeflow.harvest.store import open_store

HOOK = "blocks.0.hook_resid_post"
Run = Callable[..., Any]


@pytest.fixture
def harvest(run_cli: Run, tiny_model: Path, tiny_text: Path, tmp_path: Path) -> Run:
    """Run `saeflow harvest` into `tmp_path / "store"`; keywords are flags, None leaves one out."""

    def run(*more: object, **flags: object) -> Any:
        given = {
            "model": tiny_model,
            "dataset": tiny_text,
            "hook": HOOK,
            "out": tmp_path / "store",
            "context_size": 17,
            "tokens": 800,
            "device": "cpu",
            **flags,
        }
        return run_cli("harvest", *more, **given)

    return run


def assert_no_result(out: Path) -> None:
    """Nothing that a later run would take for a result."""
    with pytest.raises(BadInputError, match=r"does not exist|is incomplete|not a saeflow store"):
        open_store(out)


def dataset(file: Path, *texts: str | None, field: str = "text") -> Path:
    lines = [json.dumps({field: text}) for text in texts]
    file.parent.mkdir(exist_ok=True)
    file.write_text("".join(line + "\n" for line in lines), encoding="utf-8")
    return file


# Results.


def test_the_result_is_one_line(harvest: Run, tmp_path: Path) -> None:
    outcome = harvest(held_out=0.2)
    assert outcome.code == 0
    assert outcome.out.startswith(f"store {tmp_path / 'store'} is complete: ")
    assert f"of {HOOK}, " in outcome.out
    assert outcome.out.count("\n") == 1


def test_again_says_that_it_is_complete_already(harvest: Run) -> None:
    harvest()
    again = harvest()
    assert again.code == 0
    assert "is complete already" in again.out


def test_json_is_one_object_and_nothing_else(harvest: Run, tmp_path: Path) -> None:
    result = json.loads(harvest("--json", held_out=0.2).out)
    assert result["store"] == str(tmp_path / "store")
    assert result["rows"] + result["held_out_rows"] == 800
    assert result["hook_points"] == [HOOK]
    assert result["already_complete"] is False
    assert json.loads(harvest("--json", held_out=0.2).out) == {**result, "already_complete": True}


def test_hook_points_are_named_one_flag_each(harvest: Run, tmp_path: Path) -> None:
    assert harvest("--hook", "blocks.1.attn.hook_z").code == 0
    store = open_store(tmp_path / "store")
    assert [h.name for h in store.layout.hook_points] == [HOOK, "blocks.1.attn.hook_z"]


def test_a_dry_run_writes_nothing(harvest: Run, tmp_path: Path) -> None:
    outcome = harvest("--dry-run")
    assert outcome.code == 0
    assert f'hook = [\n    "{HOOK}",\n]' in outcome.out
    assert "# bytes_on_disk: " in outcome.out
    assert list(tmp_path.iterdir()) == []


def test_a_dry_run_in_json(harvest: Run, tmp_path: Path) -> None:
    shown = json.loads(harvest("--dry-run", "--json").out)
    assert shown["options"]["tokens"] == 800
    assert shown["cost"]["layout"]["hook_points"] == [{"name": HOOK, "shape": [32], "d_in": 32}]
    assert not (tmp_path / "store").exists()


def test_what_a_dry_run_prints_is_a_config_file(harvest: Run, tmp_path: Path) -> None:
    file = tmp_path / "saeflow.toml"
    file.write_text(harvest("--dry-run").out)
    all_none = dict.fromkeys(
        ("model", "dataset", "hook", "out", "context_size", "tokens", "device")
    )
    assert harvest("--config", file, **all_none).code == 0
    assert harvest().out.startswith(f"store {tmp_path / 'store'} is complete already")


def test_flags_win_over_the_file_and_the_file_over_defaults(harvest: Run, tmp_path: Path) -> None:
    file = tmp_path / "saeflow.toml"
    file.write_text('seed = 5\ntokens = 99\norder = "sequence"\n')
    shown = json.loads(harvest("--dry-run", "--json", "--config", file).out)["options"]
    assert (shown["seed"], shown["tokens"], shown["order"]) == (5, 800, "sequence")
    assert shown["batch_size"] == 32


def test_overwrite_replaces_a_store(harvest: Run, tmp_path: Path) -> None:
    harvest()
    assert "seed: 0 there, 1 now" in harvest(seed=1).refusal()
    assert harvest("--overwrite", seed=1).code == 0
    assert open_store(tmp_path / "store").layout.seed == 1


def test_a_held_out_share_of_nothing(harvest: Run) -> None:
    assert "800 rows and 0 held-out rows" in harvest(held_out=0).out


@pytest.mark.parametrize("dtype", ["bfloat16", "float32", "int8"])
@pytest.mark.parametrize("codec", ["bytes", "crc32c", "zstd"])
@pytest.mark.parametrize("pack", ["--pack", "--no-pack"])
def test_every_precision_codec_and_packing_go_together(
    harvest: Run, tmp_path: Path, pack: str, codec: str, dtype: str
) -> None:
    """And hold the same rows: what they differ by is the precision."""
    assert harvest(pack, codec=codec, dtype=dtype).code == 0
    assert harvest(pack, out=tmp_path / "plain", dtype="float32").code == 0
    store, plain = open_store(tmp_path / "store"), open_store(tmp_path / "plain")
    layout = store.layout
    assert (layout.codec, layout.dtype) == (codec, dtype)
    assert layout.packing is not None
    assert layout.packing.packed == (pack == "--pack")
    assert np.array_equal(store.array("seq")[:], plain.array("seq")[:])
    runs = [store.train.shard(k) for k in range(store.train.n_shards)]
    rows, exact = (s.rows(s.layout.hook_points[0], s.train, runs).float() for s in (store, plain))
    error = (rows - exact).square().mean() / exact.var(0).mean()
    assert error < {"float32": 1e-12, "bfloat16": 1e-4, "int8": 1e-3}[dtype]


def test_without_packing_a_sequence_ends_with_its_document(harvest: Run, tmp_path: Path) -> None:
    """Long documents are split, short ones padded, and pads have no rows."""
    text = dataset(tmp_path / "a.jsonl", "the tensor", "", "shard " * 30)
    outcome = harvest("--no-pack", dataset=text, held_out=0, tokens=None)
    assert outcome.code == 0
    store = open_store(tmp_path / "store")
    lengths = np.asarray(store.array("sequences/length")[:]).tolist()
    tokens = np.asarray(store.array("sequences/token")[:])
    ids = [0] + AutoTokenizer.from_pretrained(store.provenance["model"]["name"])("the tensor")[
        "input_ids"
    ]
    assert tokens[0].tolist() == ids + [1] * (17 - len(ids))
    assert lengths[0] == len(ids)
    assert lengths[1:-1] == [17] * (len(lengths) - 2)
    assert store.train.n_rows == sum(lengths) - len(lengths)
    assert store.train.n_documents == 2


@pytest.mark.parametrize(
    ("more", "flags", "told"),
    [
        (["--no-pack"], {}, "pack: True there, False now"),
        ([], {"codec": "zstd"}, "codec: 'bytes' there, 'zstd' now"),
        ([], {"dtype": "int8"}, "dtype: 'bfloat16' there, 'int8' now"),
    ],
)
def test_a_store_of_other_options_is_not_gone_on_with(
    harvest: Run, more: list[str], flags: dict[str, str], told: str
) -> None:
    assert harvest().code == 0
    line = harvest(*more, **flags).refusal()
    assert f"holds a store made with other options ({told}): name another folder" in line


# The model.


def test_a_missing_model_folder(harvest: Run, tmp_path: Path) -> None:
    line = harvest(model="/no/such/model").refusal()
    assert line == (
        "saeflow: model folder /no/such/model does not exist: check the path, "
        "or say with --model where it is"
    )
    assert not (tmp_path / "store").exists()


def test_a_model_folder_without_weights(harvest: Run, tiny_model: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(tiny_model, tmp_path / "model")
    (folder / "model.safetensors").unlink()
    assert f"model folder {folder} has no weights" in harvest(model=folder).refusal()
    assert not (tmp_path / "store").exists()


def test_damaged_weights(harvest: Run, tiny_model: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(tiny_model, tmp_path / "model")
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:5000])
    assert f"model {folder} can't be loaded: " in harvest(model=folder).refusal()
    assert not (tmp_path / "store").exists()


def test_weights_that_are_not_the_models(harvest: Run, tiny_model: Path, tmp_path: Path) -> None:
    """A layer whose weights are missing must not be harvested with random ones."""
    from safetensors.torch import load_file, save_file

    folder = shutil.copytree(tiny_model, tmp_path / "model")
    weights = load_file(folder / "model.safetensors")
    kept = {name: w for name, w in weights.items() if "layers.0.mlp" not in name}
    assert len(kept) < len(weights)
    save_file(kept, folder / "model.safetensors", metadata={"format": "pt"})
    assert "layers.0.mlp" in harvest(model=folder).refusal()


@pytest.mark.parametrize("kept", [(), ("tokenizer_config.json",)], ids=["none", "config only"])
def test_a_model_without_a_tokenizer(
    harvest: Run, tiny_model: Path, tmp_path: Path, kept: tuple[str, ...]
) -> None:
    folder = shutil.copytree(tiny_model, tmp_path / "model")
    for file in folder.glob("tokenizer*"):
        if file.name not in kept:
            file.unlink()
    assert f"model {folder} can't be loaded: " in harvest(model=folder).refusal()
    assert not (tmp_path / "store").exists()


def test_a_tokenizer_with_neither_bos_nor_eos(
    harvest: Run, tiny_model: Path, tmp_path: Path
) -> None:
    folder = shutil.copytree(tiny_model, tmp_path / "model")
    file = folder / "tokenizer_config.json"
    config = json.loads(file.read_text())
    file.write_text(
        json.dumps({k: v for k, v in config.items() if k not in ("bos_token", "eos_token")})
    )
    line = harvest(model=folder).refusal()
    assert f"the tokenizer of {folder} has neither a BOS nor an end-of-text token: set bos" in line
    assert not (tmp_path / "store").exists()


def test_an_unknown_hook_point(harvest: Run, tmp_path: Path) -> None:
    line = harvest(hook="blocks.0.hook_residual_post").refusal()
    assert "hook point blocks.0.hook_residual_post does not exist in " in line
    assert "near ones are " in line
    assert HOOK in line.split("near ones are ")[1]
    assert not (tmp_path / "store").exists()


def test_a_hook_point_without_one_vector_a_token(harvest: Run) -> None:
    assert "one vector a token" in harvest(hook="blocks.0.attn.hook_pattern").refusal()


def test_a_context_longer_than_the_model_takes(harvest: Run, tmp_path: Path) -> None:
    line = harvest(context_size=65).refusal()
    assert "--context-size 65 is more than model " in line
    assert line.endswith("at most 64")
    assert not (tmp_path / "store").exists()


@pytest.mark.parametrize("device", ["nonsense", "cuda:99"])
def test_a_device_that_is_not_there(harvest: Run, device: str) -> None:
    assert f"--device {device}" in harvest(device=device).refusal()


# Activations that can't be stored.


@pytest.fixture
def poisoned(tiny_model: Path, tmp_path: Path) -> Callable[[float], tuple[Path, Path]]:
    """A model that gives a value at one character, and documents of which number 7 holds it."""

    def make(value: float) -> tuple[Path, Path]:
        token = AutoTokenizer.from_pretrained(str(tiny_model))("§")["input_ids"][-1]
        model = AutoModelForCausalLM.from_pretrained(str(tiny_model))
        with torch.no_grad():
            model.model.embed_tokens.weight[token] = value
        folder = shutil.copytree(tiny_model, tmp_path / "poisoned")
        model.save_pretrained(folder)
        texts = [f"{'no § here' if i == 7 else 'the store'} of document {i}" * 3 for i in range(20)]
        return folder, dataset(tmp_path / "poison.jsonl", *texts)

    return make


@pytest.mark.parametrize("hook", [HOOK, "hook_embed"])
def test_an_overflow_names_hook_document_and_position(
    harvest: Run, poisoned: Callable[[float], tuple[Path, Path]], tmp_path: Path, hook: str
) -> None:
    model, text = poisoned(1e6)
    line = harvest(
        model=model, dataset=text, hook=hook, dtype="float16", held_out=0, tokens=None
    ).refusal()
    assert f"overflows float16 at {hook}, document 7, sequence " in line
    assert "an activation of 1e+06 " in line
    assert line.endswith(": harvest with --dtype float32 --overwrite")
    assert_no_result(tmp_path / "store")


def test_an_overflow_is_mended_by_what_the_message_says(
    harvest: Run, poisoned: Callable[[float], tuple[Path, Path]], tmp_path: Path
) -> None:
    model, text = poisoned(1e6)
    options = {"model": model, "dataset": text, "held_out": 0, "tokens": None}
    harvest(dtype="float16", **options).refusal()
    assert harvest("--overwrite", dtype="float32", **options).code == 0


def test_a_nan_is_no_int8(harvest: Run, poisoned: Callable[[float], tuple[Path, Path]]) -> None:
    model, text = poisoned(float("nan"))
    line = harvest(
        model=model, dataset=text, hook="hook_embed", dtype="int8", held_out=0, tokens=None
    ).refusal()
    assert "gives NaN or infinity at hook_embed, document 7, sequence " in line


def test_an_overflow_of_bfloat16(
    harvest: Run, poisoned: Callable[[float], tuple[Path, Path]]
) -> None:
    model, text = poisoned(3.4e38)
    line = harvest(model=model, dataset=text, hook="hook_embed", held_out=0, tokens=None).refusal()
    assert "overflows bfloat16 at hook_embed, document 7, " in line


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_nan_names_hook_document_and_position(
    harvest: Run,
    poisoned: Callable[[float], tuple[Path, Path]],
    tmp_path: Path,
    value: float,
) -> None:
    model, text = poisoned(value)
    line = harvest(model=model, dataset=text, hook="hook_embed", held_out=0, tokens=None).refusal()
    assert "gives NaN or infinity at hook_embed, document 7, sequence " in line
    assert ", position " in line
    assert "check its weights" in line
    assert_no_result(tmp_path / "store")


def test_the_position_of_a_nan_is_the_tokens(
    harvest: Run, poisoned: Callable[[float], tuple[Path, Path]], tmp_path: Path, tiny_model: Path
) -> None:
    model, text = poisoned(float("nan"))
    line = harvest(model=model, dataset=text, hook="hook_embed", held_out=0, tokens=None).refusal()
    token = AutoTokenizer.from_pretrained(str(tiny_model))("§")["input_ids"][-1]
    sequences = np.asarray(zarr.open_array(tmp_path / "store/sequences/token", mode="r")[:])
    sequence, position = np.argwhere(sequences == token)[0]
    assert f"sequence {sequence}, position {position}: " in line


# The dataset.


def test_a_dataset_without_the_text_field(harvest: Run, tmp_path: Path) -> None:
    text = dataset(tmp_path / "a.jsonl", "the store", field="body")
    line = harvest(dataset=text).refusal()
    assert f"dataset {text} has no field 'text'" in line
    assert "(body) with --text-field" in line
    assert not (tmp_path / "store").exists()
    assert harvest(dataset=text, text_field="body", context_size=2, held_out=0).code == 0


@pytest.mark.parametrize("name", ["a.jsonl", "a.txt", "a.csv"])
def test_an_empty_dataset(harvest: Run, tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_text("")
    line = harvest(dataset=tmp_path / name).refusal()
    assert "no documents: check --dataset" in line
    assert not (tmp_path / "store").exists()


def test_an_empty_parquet_file(harvest: Run, tmp_path: Path) -> None:
    from datasets import Dataset

    Dataset.from_dict({"text": [""]}).select([]).to_parquet(tmp_path / "a.parquet")
    line = harvest(dataset=tmp_path / "a.parquet").refusal()
    assert "no documents: check --dataset, --split and --text-field" in line


def test_only_empty_documents(harvest: Run, tmp_path: Path) -> None:
    line = harvest(dataset=dataset(tmp_path / "a.jsonl", "", None, " \n ")).refusal()
    assert "3 documents, all of them empty: check --dataset" in line
    assert not (tmp_path / "store").exists()


def test_a_missing_dataset(harvest: Run, tmp_path: Path) -> None:
    line = harvest(dataset=tmp_path / "none.jsonl").refusal()
    assert "none.jsonl does not exist: check the path" in line
    assert not (tmp_path / "store").exists()


def test_a_line_that_is_not_json(harvest: Run, tmp_path: Path) -> None:
    text = tmp_path / "a.jsonl"
    text.write_text('{"text": "a"}\n{"text": \n')
    line = harvest(dataset=text).refusal()
    told = (
        f"document 1 of dataset {text}: line 2 of a.jsonl is not JSON (Expecting value, column 9)"
    )
    assert line == f"saeflow: {told}: mend it, or take it out"
    assert not (tmp_path / "store").exists()


def test_a_file_that_is_not_utf_8(harvest: Run, tmp_path: Path) -> None:
    text = tmp_path / "a.txt"
    text.write_bytes("the store\n\nof Z\u00fcrich\n".encode("latin-1"))
    line = harvest(dataset=text).refusal()
    told = f"document 1 of dataset {text}: line 3 of a.txt is not UTF-8 at its byte 5"
    assert line == f"saeflow: {told}: save the file as UTF-8"
    assert not (tmp_path / "store").exists()


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (5, "int 5"),
        (0.5, "float 0.5"),
        ({"a": 1}, "dict {'a': 1}"),
        (["a"], "str 'a' at place 0 of a list"),
        ([4, -4], "int -4 at place 1 of a list"),
        ("a\ud800", r"half a surrogate pair, '\ud800' at character 1"),
    ],
    ids=str,
)
def test_a_document_that_is_no_text(
    harvest: Run, tmp_path: Path, content: object, told: str
) -> None:
    text = tmp_path / "a.jsonl"
    text.write_text("".join(json.dumps({"text": t}) + "\n" for t in ("a", content, "b")))
    line = harvest(dataset=text).refusal()
    start = f"saeflow: document 1 of dataset {text}: field 'text' holds {told}"
    assert line == f"{start}: give text, or token ids from 0"
    assert not (tmp_path / "store").exists()


def test_a_parquet_file_that_is_cut_short(harvest: Run, tmp_path: Path) -> None:
    from datasets import Dataset

    file = tmp_path / "a.parquet"
    Dataset.from_dict({"text": ["the store"] * 100}).to_parquet(file)
    file.write_bytes(file.read_bytes()[:200])
    assert f"dataset {file} can't be opened: " in harvest(dataset=file).refusal()
    assert not (tmp_path / "store").exists()


def test_a_folder_of_two_kinds_of_files(harvest: Run, tmp_path: Path) -> None:
    dataset(tmp_path / "text/a.jsonl", "the store")
    (tmp_path / "text/b.txt").write_text("the store")
    line = harvest(dataset=tmp_path / "text").refusal()
    assert f"dataset {tmp_path / 'text'} holds files of 2 kinds (json, text) to read" in line
    assert not (tmp_path / "store").exists()


def test_token_ids_that_the_model_does_not_have(harvest: Run, tmp_path: Path) -> None:
    from datasets import Dataset

    rows = [[5] * 100, [5, 300, 7] * 30]
    Dataset.from_dict({"input_ids": rows}).save_to_disk(tmp_path / "tokens")
    line = harvest(dataset=tmp_path / "tokens", held_out=0, tokens=None).refusal()
    assert "document 1" in line
    assert "300" in line
    assert_no_result(tmp_path / "store")


def test_fewer_tokens_than_one_sequence(harvest: Run, tmp_path: Path) -> None:
    line = harvest(dataset=dataset(tmp_path / "a.jsonl", "the"), held_out=0).refusal()
    assert "training tokens, fewer than one sequence of 16: give more text, or a smaller" in line
    assert not (tmp_path / "store").exists()


def test_fewer_tokens_than_one_shard(harvest: Run, tmp_path: Path) -> None:
    line = harvest(shard_rows=4096, held_out=0).refusal()
    assert "800 training rows, fewer than one shard of --shard-rows 4096: give more text" in line
    assert not (tmp_path / "store").exists()


# The output folder.


def test_out_is_a_file(harvest: Run, tmp_path: Path) -> None:
    (tmp_path / "store").write_text("precious")
    assert "store is a file: name a folder" in harvest().refusal()
    assert (tmp_path / "store").read_text() == "precious"


def test_out_is_below_a_file(harvest: Run, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("precious")
    assert "--out" in harvest(out=tmp_path / "file/store").refusal()


def test_out_holds_something_else(harvest: Run, tmp_path: Path) -> None:
    (tmp_path / "store").mkdir()
    (tmp_path / "store/thesis.tex").write_text("precious")
    line = harvest("--overwrite").refusal()
    assert "holds something else (thesis.tex): name an empty or a new folder" in line
    assert [p.name for p in (tmp_path / "store").iterdir()] == ["thesis.tex"]


def test_out_holds_another_zarr_group(harvest: Run, tmp_path: Path) -> None:
    zarr.create_group(tmp_path / "store", attributes={"mine": 1})
    assert "holds something else (zarr.json)" in harvest("--overwrite").refusal()


def test_out_is_an_empty_folder(harvest: Run, tmp_path: Path) -> None:
    (tmp_path / "store").mkdir()
    assert harvest().code == 0


def test_out_is_an_empty_folder_and_the_dataset_is_empty(harvest: Run, tmp_path: Path) -> None:
    (tmp_path / "store").mkdir()
    harvest(dataset=dataset(tmp_path / "a.jsonl", "")).refusal()
    assert_no_result(tmp_path / "store")
    assert harvest().code == 0


def test_out_holds_a_store_of_a_newer_format(harvest: Run, tmp_path: Path) -> None:
    harvest()
    root = tmp_path / "store/zarr.json"
    root.write_text(root.read_text().replace('"format": 1', '"format": 2'))
    assert "is of format 2, newer than this saeflow reads (1): upgrade" in harvest().refusal()


# The options.


@pytest.mark.parametrize(
    ("flags", "told"),
    [
        ({"hook": None}, "--hook is needed"),
        ({"model": None}, "--model is needed"),
        ({"out": None}, "--out is needed"),
        ({"tokens": 0}, "--tokens is 0: it must be at least 1"),
        ({"context_size": 1}, "--context-size is 1: it must be at least 2"),
        ({"held_out": 1}, "--held-out is 1.0: it must be at least 0 and below 1"),
        ({"held_out": "nan"}, "--held-out is nan"),
        ({"seed": -1, "batch_size": 0}, "--batch-size is 0"),
        ({"shard_rows": 0}, "--shard-rows is 0: it must be at least 1"),
        ({"worker": "2/2"}, "--worker 2/2 is no share: give i/n with i from 0 to n - 1"),
    ],
)
def test_an_option_without_sense(harvest: Run, flags: dict[str, object], told: str) -> None:
    assert told in harvest(**flags).refusal()


def test_a_hook_point_named_twice(harvest: Run) -> None:
    assert f"--hook names {HOOK} twice" in harvest("--hook", HOOK).refusal()


@pytest.mark.parametrize(
    "more",
    [
        ["--no-such-flag"],
        ["--dtype", "int3"],
        ["--codec", "gzip"],
        ["--pack=yes"],
        ["--tokens", "many"],
    ],
    ids=lambda m: m[0],
)
def test_wrong_usage_leaves_with_code_2(harvest: Run, more: list[str]) -> None:
    outcome = harvest(*more)
    assert outcome.code == 2
    assert more[0].partition("=")[0] in outcome.err
    assert "Traceback" not in outcome.err


@pytest.mark.parametrize(
    ("content", "told"),
    [
        ("tokens = ", "is not TOML: "),
        ("tokns = 5", "unknown option 'tokns': known are model, dataset, hook, out, tokens"),
        ('batch_size = "many"', "batch_size: Input should be a valid integer"),
        ("hook = 3", "hook: Input should be a valid tuple"),
        (
            'dtype = "int3"',
            "dtype: Input should be 'bfloat16', 'float16', 'float32' or 'int8'",
        ),
        ('codec = "gzip"', "codec: Input should be 'bytes', 'crc32c' or 'zstd', not 'gzip'"),
        ('pack = "some"', "pack: Input should be a valid boolean"),
        ("held_out = 2", "--held-out is 2.0"),
    ],
)
def test_a_bad_config_file(harvest: Run, tmp_path: Path, content: str, told: str) -> None:
    file = tmp_path / "saeflow.toml"
    file.write_text(content)
    line = harvest("--config", file, hook=None if "hook" in content else HOOK).refusal()
    assert told in line
    assert str(file) in line or told.startswith("--")


def test_a_missing_config_file(harvest: Run, tmp_path: Path) -> None:
    line = harvest("--config", tmp_path / "none.toml").refusal()
    assert "none.toml can't be read: No such file" in line
