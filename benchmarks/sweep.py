"""Eight SAEs in one run against the same eight in eight runs: time, bytes read, and weights.

    python benchmarks/sweep.py STORE [--d-sae 2304] [--tokens 100000] [--rounds 3]

STORE is a harvested store of one hook point. The members differ in k, rate, seed and
architecture. Each round trains both ways, in processes of their own, in turns; printed
are the ratio of CPU times and of wall times (medians), how many bytes of activations
each way asked the store for, and the largest difference between two members' weights.
"""

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from safetensors.torch import load_file

MEMBERS = (
    {"arch": "topk", "k": 16},
    {"arch": "topk", "k": 32},
    {"arch": "topk", "k": 64},
    {"arch": "topk", "k": 32, "lr": 1e-3},
    {"arch": "topk", "k": 32, "seed": 1},
    {"arch": "batchtopk", "k": 32},
    {"arch": "relu"},
    {"arch": "jumprelu"},
)


def member_table(number: int) -> str:
    values = (f"{key} = {json.dumps(value)}" for key, value in MEMBERS[number].items())
    return "\n".join(["[[sae]]", f'name = "m{number}"', *values, ""])


def train(store: Path, out: Path, members: list[int], options: list[str]) -> tuple[float, float]:
    """Run the command; wall and CPU seconds of it and its reader."""
    config = out.with_suffix(".toml")
    config.write_text("\n".join(member_table(number) for number in members))
    command = [sys.executable, "-m", "saeflow", "train", str(store), "--out", str(out)]
    before, began = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    subprocess.run([*command, "--config", str(config), *options], check=True, capture_output=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return time.perf_counter() - began, cpu


def bytes_read(run: Path) -> int:
    """What the run says that it read: rows and their width, from its last line."""
    last = json.loads((run / "speed.jsonl").read_text().splitlines()[-1])
    return int(last["bytes"])


def largest_difference(together: Path, alone: Path, number: int) -> float:
    folders = (run / "sae" / f"m{number}" for run in (together, alone))
    one, other = (load_file(folder / "sae_weights.safetensors") for folder in folders)
    return max(float((one[name] - other[name]).abs().max()) for name in one)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("store", type=Path)
    parser.add_argument("--d-sae", default="2304")
    parser.add_argument("--tokens", default="100000")
    parser.add_argument("--rounds", type=int, default=3)
    given = parser.parse_args()
    options = ["--d-sae", given.d_sae, "--tokens", given.tokens, "--evaluate-rows", "0"]
    everyone = list(range(len(MEMBERS)))
    walls, cpus = [], []
    with tempfile.TemporaryDirectory(dir=os.environ.get("TMPDIR")) as scratch:
        for turn in range(given.rounds):
            runs = Path(scratch, str(turn))
            runs.mkdir()
            ways = {"all": [everyone], "alone": [[number] for number in everyone]}
            spent = {
                way: [
                    train(
                        given.store,
                        runs / (way if way == "all" else str(members[0])),
                        members,
                        options,
                    )
                    for members in ways[way]
                ]
                for way in sorted(ways, reverse=bool(turn % 2))
            }
            wall, cpu = (
                sum(t[i] for t in spent["all"]) / sum(t[i] for t in spent["alone"]) for i in (0, 1)
            )
            walls.append(wall)
            cpus.append(cpu)
            print(f"round {turn}: wall {wall:.2f}, CPU {cpu:.2f} of eight runs", flush=True)
        apart = max(largest_difference(runs / "all", runs / str(n), n) for n in everyone)
        once, eight = bytes_read(runs / "all"), sum(bytes_read(runs / str(n)) for n in everyone)
    print(f"wall {statistics.median(walls):.2f}, CPU {statistics.median(cpus):.2f} (bound 1.00)")
    print(f"bytes read: {once:,} together, {eight:,} alone ({eight / once:.1f} times as many)")
    print(f"largest difference of a weight: {apart:.1e} (bound 1e-5)")


if __name__ == "__main__":
    main()
