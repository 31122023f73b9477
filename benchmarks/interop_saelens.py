"""Does SAELens read the SAE folders that saeflow writes, and compute the same?

    python benchmarks/interop_saelens.py SAE_FOLDER ROWS.safetensors

To be run where SAELens is installed (`pip install sae-lens`; it needs a
transformer-lens older than saeflow's, so an environment of its own). The rows
file is what `saeflow_rows.py` beside this script writes: `x`, and saeflow's
`latents` and `reconstruction` for it. Prints the largest differences, relative
to the largest value, beside the bound, and exits 1 if one is over it. Folders whose
cfg.json says `"loads_in_sae_lens": false` are of kinds that SAELens does not have.
"""

import sys
from pathlib import Path

import torch
from safetensors.torch import load_file

BOUND = 1e-5


def main() -> int:
    import sae_lens
    from sae_lens import SAE

    folder, rows = Path(sys.argv[1]), load_file(sys.argv[2])
    sae = SAE.load_from_disk(folder)
    with torch.inference_mode():
        latents = sae.encode(rows["x"])
        decoded = sae.decode(rows["latents"])
        if hasattr(sae, "W_skip"):  # which SAELens adds in its forward pass only
            decoded = decoded + rows["x"] @ sae.W_skip.T
        found = {
            "encode": (latents, rows["latents"]),
            "decode": (decoded, rows["reconstruction"]),
            "forward": (sae(rows["x"]), rows["reconstruction"]),
        }
    print(f"sae-lens {sae_lens.__version__}: {type(sae).__name__}, {len(rows['x']):,} rows")
    where = sae.cfg.metadata.hook_name
    if sae.cfg.metadata.hook_name_out:
        where += f" to {sae.cfg.metadata.hook_name_out}"
    print(f"hook point {where}, model {sae.cfg.metadata.model_name}")
    worst = 0.0
    for name, (theirs, ours) in found.items():
        difference = ((theirs - ours).abs().max() / ours.abs().max()).item()
        worst = max(worst, difference)
        print(
            f"{name}: largest difference {difference:.2e} of the largest value (bound {BOUND:.0e})"
        )
    return int(worst > BOUND)


if __name__ == "__main__":
    sys.exit(main())
