"""What a store holds is what transformers' own model gives, and zarr alone can read it."""

import importlib.util
import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import zarr

from saeflow.harvest.builtin import MODEL_PATH
from saeflow.harvest.config import HarvestConfig
from saeflow.harvest.run import harvest_activations

MIDDLE, LAST = "blocks.1.hook_resid_post", "blocks.3.hook_resid_post"
SPLITS = {"train": "", "heldout": "heldout/"}

READ_WITH_ZARR_ALONE = """
import json, sys, zarr
store = zarr.open_group(sys.argv[1], mode="r")
array = store["acts/" + sys.argv[2]]
print(json.dumps([array[:2].tolist(), array.shape, store["pos"][:2].tolist()]))
assert not {"torch", "saeflow", "transformers"} & set(sys.modules)
"""


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store of the built-in model and text, two hook points, several shards of both splits."""
    out = tmp_path_factory.mktemp("rows") / "store"
    harvest_activations(
        HarvestConfig(
            model="builtin",
            dataset="builtin",
            hook=(MIDDLE, LAST),
            out=out,
            tokens=8000,
            context_size=64,
            held_out=0.2,
            shard_rows=1024,
            device="cpu",
        )
    )
    return out


@pytest.fixture(scope="module")
def store(path: Path) -> Any:
    return zarr.open_group(path, mode="r")


@pytest.fixture(scope="module")
def truth(store: Any) -> dict[tuple[str, str], np.ndarray]:
    """By split and hook point, what transformers gives at each position of each sequence.

    The last block's output is taken from the block: `hidden_states` has it normed.
    """
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(
        MODEL_PATH, dtype=torch.float32, attn_implementation="eager"
    ).eval()
    last: list[torch.Tensor] = []
    model.model.layers[-1].register_forward_hook(lambda block, given, out: last.append(out))
    found = {}
    for split, folder in SPLITS.items():
        tokens = torch.from_numpy(store[f"{folder}sequences/token"][:].astype(np.int64))
        with torch.inference_mode():
            hidden = model(tokens, output_hidden_states=True).hidden_states
        found[split, MIDDLE] = hidden[2].numpy()
        found[split, LAST] = last.pop().numpy()
    return found


def as_float32(bits: np.ndarray) -> np.ndarray:
    return (bits.astype(np.uint32) << 16).view(np.float32)


@pytest.mark.parametrize("hook_point", [MIDDLE, LAST])
@pytest.mark.parametrize("split", SPLITS)
def test_1000_rows_agree_to_bf16_rounding(
    store: Any, truth: dict[tuple[str, str], np.ndarray], split: str, hook_point: str
) -> None:
    folder = SPLITS[split]
    array = store[f"{folder}acts/{hook_point}"]
    rows = np.random.default_rng(0).choice(array.shape[0], 1000, replace=False)
    stored = as_float32(array.oindex[np.sort(rows)])
    seq, pos = (store[f"{folder}{name}"][:][np.sort(rows)] for name in ("seq", "pos"))
    expected = truth[split, hook_point][seq, pos]
    near = np.abs(stored - expected) <= 2**-8 * np.abs(expected) + 1e-6
    print(f"{near.all(1).sum():,} of 1,000 rows agree to bf16 rounding")
    assert near.all()


@pytest.mark.parametrize("folder", SPLITS.values(), ids=SPLITS)
def test_every_position_but_the_first_has_one_row(store: Any, folder: str) -> None:
    sequences = store[f"{folder}sequences/token"][:]
    token, seq, pos = (store[f"{folder}{name}"][:] for name in ("token", "seq", "pos"))
    n, context = sequences.shape
    assert np.array_equal(np.sort(seq * (context - 1) + pos - 1), np.arange(n * (context - 1)))
    assert pos.min() == 1
    assert np.array_equal(sequences[seq, pos], token)
    assert set(sequences[:, 0]) == {store.attrs["saeflow"]["layout"]["packing"]["bos"]}


def test_a_row_s_document_holds_its_token(store: Any) -> None:
    from transformers import AutoTokenizer

    from saeflow.harvest.builtin import builtin_documents

    tokenizer = AutoTokenizer.from_pretrained(MODEL_PATH)
    token, doc, seq, pos = (store[name][:] for name in ("token", "doc", "seq", "pos"))
    order = np.argsort(seq.astype(np.int64) * 2**32 + pos)
    token, doc = token[order], doc[order]
    texts = list(islice(builtin_documents(), int(doc[-1])))
    whole = np.unique(doc)[:-1]  # the last one was cut by the limit
    assert whole.size > 2
    for index in whole:
        ids = tokenizer(texts[index], add_special_tokens=False)["input_ids"]
        assert token[doc == index].tolist() == [*ids, tokenizer.eos_token_id]


def test_plain_zarr_reads_it_without_saeflow_or_torch(path: Path, store: Any) -> None:
    command = [sys.executable, "-W", "error", "-c", READ_WITH_ZARR_ALONE, str(path), MIDDLE]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    rows, shape, positions = json.loads(done.stdout)
    assert rows == store[f"acts/{MIDDLE}"][:2].tolist()
    assert tuple(shape) == store[f"acts/{MIDDLE}"].shape
    assert positions == store["pos"][:2].tolist()


@pytest.fixture(scope="module")
def check_rows() -> Callable[[list[str]], int]:
    """`scripts/check_rows.py`, called in this process."""
    file = Path(__file__).parents[1] / "scripts" / "check_rows.py"
    spec = importlib.util.spec_from_file_location("check_rows", file)
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    sys.modules["check_rows"] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    main: Callable[[list[str]], int] = module.main
    return main


def test_check_rows_finds_nothing_wrong(
    path: Path, check_rows: Callable[[list[str]], int], capsys: pytest.CaptureFixture[str]
) -> None:
    assert check_rows([str(path)]) == 0
    told = capsys.readouterr().out
    assert "1,000 of 1,000 rows agree to bf16 rounding" in told
    assert f"{LAST}         not checked" in told


@pytest.mark.parametrize(
    "options",
    [
        {"dtype": "int8"},
        {"dtype": "float32", "pack": False, "codec": "zstd"},
        {"dtype": "float16", "codec": "crc32c"},
    ],
    ids=lambda options: " ".join(map(str, options.values())),
)
def test_check_rows_knows_every_precision_with_packing_and_without(
    check_rows: Callable[[list[str]], int],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    options: dict[str, Any],
) -> None:
    config = HarvestConfig(
        model="builtin",
        dataset="builtin",
        hook=(MIDDLE,),
        out=tmp_path / "store",
        tokens=2000,
        context_size=64,
        held_out=0.2,
        device="cpu",
        **options,
    )
    folder = harvest_activations(config).path
    assert check_rows([str(folder), "--rows", "300"]) == 0
    assert "300 of 300 rows agree" in capsys.readouterr().out
    array: Any = zarr.open_array(folder / "acts" / MIDDLE, mode="r+")
    array[3, 5] = 100 if array[3, 5] < 0 else -100
    assert check_rows([str(folder), "--rows", "10000"]) == 1


def test_check_rows_finds_one_wrong_number(
    path: Path,
    check_rows: Callable[[list[str]], int],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    copy = shutil.copytree(path, tmp_path / "store")
    array: Any = zarr.open_array(copy / "acts" / MIDDLE, mode="r+")
    array[17, 5] += 2
    n_rows = array.shape[0] + zarr.open_array(copy / "heldout/token", mode="r").shape[0]
    assert check_rows([str(copy), "--rows", str(n_rows)]) == 1
    assert f"{n_rows - 1:,} of {n_rows:,} rows agree" in capsys.readouterr().out
