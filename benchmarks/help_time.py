"""How long `saeflow --help` takes, beside an empty Python in the same run.

python benchmarks/help_time.py [--runs 15]
"""

import argparse
import statistics
import subprocess
import sys
import time
from pathlib import Path

BOUND = "3 x empty Python + 0.2 s"


def main() -> int:
    arguments = argparse.ArgumentParser(description="Time of saeflow --help.")
    arguments.add_argument("--runs", type=int, default=15)
    runs = arguments.parse_args().runs
    commands = {
        "python -c pass": [sys.executable, "-c", "pass"],
        "saeflow --help": [str(Path(sys.executable).parent / "saeflow"), "--help"],
    }
    times: dict[str, list[float]] = {name: [] for name in commands}
    for _ in range(runs):
        for name, command in commands.items():
            started = time.perf_counter()
            subprocess.run(command, check=True, capture_output=True)
            times[name].append(time.perf_counter() - started)
    empty, ours = (statistics.median(times[name]) for name in commands)
    for name in commands:
        print(f"{name}: median of {runs} {statistics.median(times[name]):.3f} s")
    print(f"bound ({BOUND}): {3 * empty + 0.2:.3f} s, used {ours / (3 * empty + 0.2):.0%}")
    return int(ours >= 3 * empty + 0.2)


if __name__ == "__main__":
    sys.exit(main())
