"""The rows of a store in the order in which saeflow trains on them, for tools that can't read it.

    python benchmarks/peers_rows.py STORE OUT [--rows 256000] [--batch-size 2048] [--seed 0]

Writes `OUT/rows.npy`, the training rows of whole batches in the order of the stream, as
many epochs as it takes, and `OUT/rows.json`. Rows of a bfloat16 store keep their bits (as
uint16), others are widened to float32. `peer_cell.py` beside this script reads them.
"""

import argparse
import json
from contextlib import closing
from pathlib import Path

import numpy as np
import torch

from saeflow import open_store
from saeflow.train.choose import choose_order
from saeflow.train.fill import Share
from saeflow.train.loader import Loader


def export(store_path: Path, out: Path, n_rows: int, batch_size: int, seed: int) -> None:
    """Write the stream; nothing is done if it is there already."""
    store = open_store(store_path)
    hook_point = store.hook_point(None)
    n_steps = n_rows // batch_size
    about = {
        "store": store.identity,
        "hook_point": hook_point.name,
        "d_in": hook_point.d_in,
        "batch_size": batch_size,
        "steps": n_steps,
        "seed": seed,
        "dtype": "bfloat16" if store.layout.dtype == "bfloat16" else "float32",
    }
    described = out / "rows.json"
    if described.is_file() and json.loads(described.read_text(encoding="utf-8")) == about:
        return
    out.mkdir(parents=True, exist_ok=True)
    described.unlink(missing_ok=True)
    order = choose_order(store.layout, store.train, hook_point, batch_size=batch_size, seed=seed)
    loader = Loader(store, (hook_point,), order, Share(batch_size), torch.device("cpu"))
    rows = np.lib.format.open_memmap(
        out / "rows.npy",
        mode="w+",
        dtype=np.uint16 if about["dtype"] == "bfloat16" else np.float32,
        shape=(n_steps * batch_size, hook_point.d_in),
    )
    with closing(loader.batches(0, n_steps)) as batches:
        for step, batch in enumerate(batches):
            part = batch.bfloat16().view(torch.uint16) if rows.dtype == np.uint16 else batch
            rows[step * batch_size : (step + 1) * batch_size] = part.numpy()
    rows.flush()
    described.write_text(json.dumps(about, indent=2) + "\n", encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description="A store's rows, in training order.")
    parser.add_argument("store", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--rows", type=int, default=256_000)
    parser.add_argument("--batch-size", type=int, default=2048)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    export(given.store, given.out, given.rows, given.batch_size, given.seed)


if __name__ == "__main__":
    main()
