"""Hold the rows of a store against its source model, run by transformers itself.

    python scripts/check_rows.py STORE [--rows 1000] [--seed 0]

The store is read with zarr alone and the model is run with transformers alone, so
that neither saeflow nor TransformerLens is taken at its word. Rows are drawn at
random from both splits; their sequences are taken from the store, and what the
model gives there must be what the store holds, up to rounding. That can be done
for the residual stream between blocks (`hook_resid_pre`, `hook_resid_post`); of
the last block, transformers gives it after the final norm only.
"""

import argparse
import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import zarr
from transformers import AutoModelForCausalLM
from transformers.utils import logging

BUILTIN = Path(__file__).resolve().parents[1] / "harvest" / "builtin-model"
FOLDERS = {"train": "", "heldout": "heldout/"}
SEQUENCES_AT_ONCE = 8
SHORT = {"bfloat16": "bf16", "float16": "fp16", "float32": "fp32", "int8": "int8"}

ROUNDING = {"bfloat16": 2**-8, "float16": 2**-11, "float32": 2**-24}
"""How far a number may lie from the one that it was rounded from, as a share of that.

In int8 it is half of the row's scale, times the channel's deviation.
"""

FORWARD = {"bfloat16": 2**-6, "float16": 2**-9, "float32": 1e-5}
"""How far two forward passes may lie apart besides, as a share of the row's largest value."""


@dataclass(frozen=True)
class Rows:
    """Rows of one split: its folder, their numbers, and what the store says of each."""

    folder: str
    number: np.ndarray
    token: np.ndarray
    seq: np.ndarray
    pos: np.ndarray


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("store", type=Path, help="folder of the store")
    parser.add_argument("--rows", type=int, default=1000, help="how many (default 1000)")
    parser.add_argument("--seed", type=int, default=0, help="seed of their choice (default 0)")
    options = parser.parse_args(arguments)
    store: Any = zarr.open_group(options.store, mode="r")
    about = store.attrs["saeflow"]
    layout, source = about["layout"], about["provenance"]["model"]
    if layout["packing"] is None or source["compatibility_mode"] or about["state"] != "complete":
        print("can't be checked: the store is incomplete, imported, or of compatibility mode")
        return 1
    model = load_model(source)
    names = [hook_point["name"] for hook_point in layout["hook_points"]]
    states = {name: hidden_state(name, model.config.num_hidden_layers) for name in names}
    checkable = {state for state in states.values() if state is not None}
    parts = draw(store, layout, options.rows, options.seed)
    agree = np.concatenate([is_named_rightly(store, rows) for rows in parts])
    outputs = [run(model, store, rows, checkable) for rows in parts]
    print(f"{'hook point':32} {'largest relative error':>24} {'same value':>12}")
    for name, state in states.items():
        if state is None:
            print(f"{name:32} {'not checked: transformers does not give it':>37}")
            continue
        expected = np.concatenate([output[state] for output in outputs])
        read_parts = [read(store, rows, name, layout["dtype"]) for rows in parts]
        stored, step = (np.concatenate(each) for each in zip(*read_parts, strict=True))
        far = np.abs(stored - expected) > allowed(expected, step, layout["dtype"], source["dtype"])
        agree &= ~far.any(1)
        print(f"{name:32} {compare(stored, expected, step, layout['dtype'])}")
    print(f"{agree.sum():,} of {len(agree):,} rows agree to {SHORT[layout['dtype']]} rounding")
    return 0 if agree.all() and checkable else 1


def load_model(source: dict[str, Any]) -> Any:
    logging.disable_progress_bar()
    return AutoModelForCausalLM.from_pretrained(
        BUILTIN if source["name"] == "builtin" else source["name"],
        revision=source["revision"] or "main",
        dtype=source["dtype"],
        attn_implementation="eager",
        trust_remote_code=source["trust_remote_code"],
    ).eval()


def hidden_state(hook_point: str, n_blocks: int) -> int | None:
    """Which of transformers' hidden states a hook point is; the last is none, being normed."""
    match = re.fullmatch(r"blocks\.(\d+)\.hook_resid_(pre|post)", hook_point)
    state = int(match[1]) + (match[2] == "post") if match else n_blocks
    return state if state < n_blocks else None


def draw(store: Any, layout: dict[str, Any], n_rows: int, seed: int) -> list[Rows]:
    """Rows of both splits, each as likely as any other; fewer if the store has fewer."""
    sizes = {name: layout["splits"][name]["n_rows"] for name in FOLDERS}
    total = sum(sizes.values())
    chosen = np.random.default_rng(seed).permutation(total)[:n_rows]
    parts, first = [], 0
    for name, folder in FOLDERS.items():
        number = np.sort(chosen[(first <= chosen) & (chosen < first + sizes[name])] - first)
        values = {v: store[f"{folder}{v}"][:][number] for v in ("token", "seq", "pos")}
        parts.append(Rows(folder, number, **values))
        first += sizes[name]
    return [rows for rows in parts if len(rows.number)]


def is_named_rightly(store: Any, rows: Rows) -> np.ndarray:
    """Whether each row's token stands in its sequence at its position."""
    sequences = store[f"{rows.folder}sequences/token"]
    return np.asarray(sequences.vindex[rows.seq, rows.pos] == rows.token)


@torch.inference_mode()
def run(model: Any, store: Any, rows: Rows, states: set[int]) -> dict[int, np.ndarray]:
    """The hidden states at the rows, in float32."""
    which, row_of = np.unique(rows.seq, return_inverse=True)
    last = np.zeros(len(which), np.int64)
    np.maximum.at(last, row_of, rows.pos)
    order = np.argsort(last)  # tokens after the last row of a sequence change nothing: left out
    row_of = np.argsort(order)[row_of]
    sequences = store[f"{rows.folder}sequences/token"].oindex[which][order].astype(np.int64)
    shape = len(rows.number), model.config.hidden_size
    found = {state: np.empty(shape, np.float32) for state in states}
    for begin in range(0, len(which), SEQUENCES_AT_ONCE):
        end = min(begin + SEQUENCES_AT_ONCE, len(which))
        batch = torch.from_numpy(sequences[begin:end, : last[order[end - 1]] + 1])
        hidden = model.base_model(batch, output_hidden_states=True).hidden_states
        here = (begin <= row_of) & (row_of < end)
        at = row_of[here] - begin, rows.pos[here].astype(np.int64)
        for state in states:
            found[state][here] = hidden[state].float().numpy()[at]
    return found


def read(store: Any, rows: Rows, hook_point: str, dtype: str) -> tuple[np.ndarray, np.ndarray]:
    """The stored rows as float32, and how far apart int8's values are there; else 0."""
    stored = store[f"{rows.folder}acts/{hook_point}"].oindex[rows.number]
    if dtype == "bfloat16":
        stored = (stored.astype(np.uint32) << 16).view(np.float32)
    if dtype != "int8":
        return stored.astype(np.float32), np.zeros(stored.shape, np.float32)
    mean, deviation = store[f"quant/{hook_point}"][:]
    scale = store[f"{rows.folder}scale/{hook_point}"].oindex[rows.number]
    return stored * scale[:, None] * deviation + mean, scale[:, None] * deviation


def allowed(expected: np.ndarray, step: np.ndarray, dtype: str, model_dtype: str) -> np.ndarray:
    """How far each stored number may lie from the model's."""
    largest = np.abs(expected).max(1, keepdims=True)
    rounding = step / 2 if dtype == "int8" else ROUNDING[dtype] * np.abs(expected)
    return np.asarray(rounding + FORWARD[model_dtype] * largest)


def compare(stored: np.ndarray, expected: np.ndarray, step: np.ndarray, dtype: str) -> str:
    """The largest error of a row against its norm, and the share of numbers that are the same."""
    error = np.linalg.norm(stored - expected, axis=1) / np.linalg.norm(expected, axis=1)
    same = np.abs(stored - expected) <= step / 2
    if dtype != "int8":
        same = stored == torch.from_numpy(expected).to(getattr(torch, dtype)).float().numpy()
    return f"{error.max():24.2e} {same.mean():12.2%}"


if __name__ == "__main__":
    sys.exit(main())
