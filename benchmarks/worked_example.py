"""The README's worked example, measured: wall and CPU time and peak memory of each stage.

    python benchmarks/worked_example.py MODEL_FOLDER TEXT.jsonl OUT

Runs the README's three commands, with OUT for the store and the run, and prints what
each took, the bytes a token takes on disk beside those of a float32 cache of the
activations alone, and the scores.
"""

import json
import os
import sys
import time
from pathlib import Path


def run(*arguments: str) -> tuple[float, float, float]:
    """Run a saeflow command; wall seconds, CPU seconds, peak memory in MB."""
    started = time.perf_counter()
    command = [sys.executable, "-m", "saeflow", *arguments]
    process = os.posix_spawn(sys.executable, command, os.environ)
    _, status, usage = os.wait4(process, 0)
    if status:
        sys.exit(f"{' '.join(arguments)} failed")
    cpu = usage.ru_utime + usage.ru_stime
    return time.perf_counter() - started, cpu, usage.ru_maxrss / 1e3


def main() -> None:
    model, text, out = sys.argv[1], sys.argv[2], Path(sys.argv[3])
    hook_point, store, trained = "blocks.15.hook_resid_post", f"{out}/store", f"{out}/run"
    stages = {
        "harvest": [
            "--model",
            model,
            "--dataset",
            text,
            "--hook",
            hook_point,
            "--tokens",
            "320000",
            "--out",
            store,
        ],
        "train": [
            store,
            "--out",
            trained,
            "--arch",
            "topk",
            "--d-sae",
            "4608",
            "--k",
            "32",
            "--tokens",
            "1000000",
        ],
        "evaluate": [trained, "--tokens", "16384"],
    }
    taken = {name: run(name, *arguments) for name, arguments in stages.items()}
    print(f"\n{'stage':10}{'wall s':>10}{'CPU s':>10}{'peak MB':>10}")
    for name, (wall, cpu, memory) in taken.items():
        print(f"{name:10}{wall:10.0f}{cpu:10.0f}{memory:10.0f}")
    layout = json.loads(Path(store, "zarr.json").read_text())["attributes"]["saeflow"]["layout"]
    tokens = sum(split["n_rows"] for split in layout["splits"].values())
    size = sum(path.stat().st_size for path in Path(store).rglob("*") if path.is_file())
    float32 = 4 * layout["hook_points"][0]["d_in"]
    print(f"{tokens:,} tokens stored, {size / tokens:.0f} bytes a token on disk ", end="")
    print(f"(float32 activations alone: {float32}, ratio {size / tokens / float32:.2f})")


if __name__ == "__main__":
    main()
