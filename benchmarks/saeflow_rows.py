"""Rows of a store with saeflow's latents and reconstructions, for another library to repeat.

python benchmarks/saeflow_rows.py SAE_FOLDER OUT.safetensors [--rows 1000]
"""

import argparse
from pathlib import Path

import torch
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
    read = [store.rows(store.hook_point(h), split, [range(args.rows)]) for h in sae.hook_points]
    x = torch.cat(read, 1).float()
    latents = sae.encode(x)
    save_file({"x": x, "latents": latents, "reconstruction": sae.decode(latents, x)}, args.out)
    hook_points = ", ".join(sae.hook_points)
    print(f"{args.rows:,} rows of {split.name} text at {hook_points} written to {args.out}")


if __name__ == "__main__":
    main()
