"""One SAE, trained by saeflow from its store: our cell in the table that `train_table.py` prints.

    python benchmarks/peer_saeflow.py STORE OUT --arch topk --sparsity 32 --rows 256000

Everything that is not asked for is saeflow's default. Prints one line of JSON, as the
peers' scripts do; the SAE is at `OUT/sae/<name>`.
"""

import argparse
import json
import time
from importlib.metadata import version
from pathlib import Path

from saeflow import TrainConfig, train_sae

SPARSITY_OPTION = {
    "topk": "k",
    "batchtopk": "k",
    "matryoshka": "k",
    "relu": "l1",
    "gated": "l1",
    "p-anneal": "l1",
    "jumprelu": "l0",
}
"""What `--sparsity` is, by architecture."""


def main() -> None:
    parser = argparse.ArgumentParser(description="Train one SAE.")
    parser.add_argument("store", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--arch", default="topk")
    parser.add_argument("--sparsity", type=float, default=32.0)
    parser.add_argument("--d-sae", type=int, default=2304)
    parser.add_argument("--rows", type=int, default=256_000)
    parser.add_argument("--batch-size", type=int, default=2048)
    given = parser.parse_args()
    option = SPARSITY_OPTION[given.arch]
    sparsity = int(given.sparsity) if option == "k" else given.sparsity
    ready = time.process_time()
    train_sae(
        TrainConfig(
            store=given.store,
            out=given.out,
            arch=given.arch,
            d_sae=given.d_sae,
            tokens=given.rows,
            batch_size=given.batch_size,
            device="cpu",
            **{option: sparsity},
        )
    )
    figures = {
        "library": f"saeflow {version('saeflow')}",
        "cpu_seconds": time.process_time(),
        "cpu_seconds_of_training": time.process_time() - ready,
    }
    print(json.dumps(figures), flush=True)


if __name__ == "__main__":
    main()
