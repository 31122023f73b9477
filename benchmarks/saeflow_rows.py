"""Rows of a store with saeflow's latents and reconstructions, for another library to repeat.

python benchmarks/saeflow_rows.py SAE_FOLDER OUT.safetensors [--rows 1000]
"""

import argparse
from pathlib import Path

from safetensors.torch import save_file

import saeflow


def main() -> None:
    arguments = argparse.ArgumentParser(description="Rows, latents and reconstructions of an SAE.")
    arguments.add_argument("sae", type=Path)
    arguments.add_argument("out", type=Path)
    arguments.add_argument("--rows", type=int, default=1000)
    args = arguments.parse_args()
    sae = saeflow.load_sae(args.sae)
    store = saeflow.open_store(Path(sae.cfg["metadata"]["saeflow"]["store"]["path"]))
    split = store.held_out if store.held_out.n_rows >= args.rows else store.train
    x = store.rows(store.hook_point(sae.hook_point), split, [range(args.rows)]).float()
    latents = sae.encode(x)
    save_file({"x": x, "latents": latents, "reconstruction": sae.decode(latents)}, args.out)
    print(f"{args.rows:,} rows of {split.name} text at {sae.hook_point} written to {args.out}")


if __name__ == "__main__":
    main()
