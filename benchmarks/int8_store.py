"""What int8 costs: its rows against bfloat16's, and an SAE trained on either.

    python benchmarks/int8_store.py MODEL_FOLDER TEXT.jsonl OUT [--tokens 120000]

Harvests the same text twice, in bfloat16 and in int8, and prints the FVU of the
int8 rows against the bfloat16 ones; then trains the same TopK SAE on both and prints
the FVU of each on the held-out rows of the bfloat16 store. Exits 1 if a bound does
not hold.
"""

import argparse
import sys
from pathlib import Path

import numpy as np
import torch

from saeflow.harvest.config import HarvestConfig
from saeflow.harvest.run import harvest_activations
from saeflow.harvest.statistics import ordinary_rows
from saeflow.harvest.store import Store
from saeflow.train.config import TrainConfig
from saeflow.train.run import train_sae
from saeflow.train.sae import SAE

ROW_BOUND, SAE_BOUND = 1e-4, 0.01
HOOK = "blocks.15.hook_resid_post"


def rows_in_order(store: Store, split_name: str) -> torch.Tensor:
    """All rows of a split by sequence and position, in float32."""
    split = store.layout.splits[split_name]
    rows = store.rows(
        store.hook_point(HOOK), split, [split.shard(k) for k in range(split.n_shards)]
    )
    names = [np.asarray(store.array(f"{split.folder}{n}")[:]) for n in ("pos", "seq")]
    return rows.float()[torch.from_numpy(np.lexsort(names))]


def fvu(found: torch.Tensor, expected: torch.Tensor) -> float:
    """Over the ordinary rows: a few massive ones would rule it."""
    kept = ordinary_rows(expected.norm(dim=1))
    error = (found[kept] - expected[kept]).double().square().sum()
    return float(error / (expected[kept] - expected[kept].mean(0)).double().square().sum())


def reconstruct(sae: SAE, rows: torch.Tensor) -> torch.Tensor:
    with torch.inference_mode():
        return torch.cat([sae(part) for part in rows.split(4096)])


def main() -> int:
    parser = argparse.ArgumentParser(description="int8 against bfloat16.")
    parser.add_argument("model")
    parser.add_argument("text")
    parser.add_argument("out", type=Path)
    parser.add_argument("--tokens", type=int, default=120_000)
    parser.add_argument("--train-tokens", type=int, default=400_000)
    given = parser.parse_args()
    stores, saes = {}, {}
    for dtype in ("bfloat16", "int8"):
        stores[dtype] = harvest_activations(
            HarvestConfig(
                model=given.model,
                dataset=given.text,
                hook=(HOOK,),
                tokens=given.tokens,
                dtype=dtype,  # type: ignore[arg-type]  # both are among its literals
                out=given.out / f"{dtype}-store",
            )
        ).store
        saes[dtype] = train_sae(
            TrainConfig(
                store=stores[dtype].path,
                out=given.out / f"{dtype}-run",
                d_sae=4608,
                k=32,
                tokens=given.train_tokens,
            )
        ).sae
    train = {dtype: rows_in_order(store, "train") for dtype, store in stores.items()}
    held_out = rows_in_order(stores["bfloat16"], "heldout")
    sizes = {
        d: sum(p.stat().st_size for p in s.path.rglob("*") if p.is_file())
        for d, s in stores.items()
    }
    of_rows = fvu(train["int8"], train["bfloat16"])
    of_saes = {dtype: fvu(reconstruct(sae, held_out), held_out) for dtype, sae in saes.items()}
    apart = abs(of_saes["int8"] / of_saes["bfloat16"] - 1)
    smaller = sizes["int8"] / sizes["bfloat16"]
    print(f"{len(train['int8']):,} rows of {HOOK}, int8 takes {smaller:.2f} of bfloat16's bytes")
    print(f"FVU of int8 rows against bfloat16 rows: {of_rows:.2e} (bound {ROW_BOUND:.0e})")
    for dtype, found in of_saes.items():
        print(f"held-out FVU of the SAE trained on {dtype}: {found:.4f}")
    print(f"they are {apart:.2%} apart (bound {SAE_BOUND:.0%})")
    return int(of_rows > ROW_BOUND or apart > SAE_BOUND)


if __name__ == "__main__":
    sys.exit(main())
