"""What harvesting costs over the bare forward passes of the same model and batches.

    python benchmarks/harvest_overhead.py MODEL_FOLDER TEXT.jsonl [--tokens 8000] [--pairs 5]

Each pair runs the same batches twice, in turn first: forward passes that stop at the
deepest hook point and keep nothing; and the harvest, with rows placed, checked,
permuted, counted, checksummed, written and flushed. The median of the pairs' ratios
is printed beside the bound. Exits 1 if it does not hold.
"""

import argparse
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch

from saeflow.devices import choose_device
from saeflow.harvest import commits
from saeflow.harvest.build import gather_shard
from saeflow.harvest.capture import capture, probe_hook_points
from saeflow.harvest.config import HarvestConfig
from saeflow.harvest.contexts import Text, open_text
from saeflow.harvest.create import create_skeleton
from saeflow.harvest.filling import all_shards, fill
from saeflow.harvest.layout import Layout, Split
from saeflow.harvest.models import ModelSpec, SourceModel, load_model
from saeflow.harvest.plan import make_plan
from saeflow.harvest.shards import GatheredShard
from saeflow.harvest.store import Store
from saeflow.harvest.workers import Worker

BOUND = 1.05
SHARD_ROWS = 2048
HOOKS = [
    ("blocks.15.hook_resid_post",),
    ("blocks.5.hook_resid_post", "blocks.10.hook_resid_post", "blocks.15.hook_resid_post"),
]


def forward_only(layout: Layout, texts: dict[str, Text], model: SourceModel, size: int) -> None:
    for split, index in all_shards(layout):
        for batch in texts[split.name].contexts(split.shard(index)).batches(size):
            capture(model, torch.from_numpy(batch.tokens), layout.hook_points)
    if model.device.type == "cuda":
        torch.cuda.synchronize()


def harvest(
    out: Path, layout: Layout, texts: dict[str, Text], model: SourceModel, size: int
) -> None:
    def gather(split: Split, index: int, on_rows: Callable[[int], None]) -> GatheredShard:
        return gather_shard(
            layout,
            split,
            index,
            model=model,
            text=texts[split.name],
            batch_size=size,
            quantisations={},
            on_rows=on_rows,
        )

    fill(out, layout, Worker(), all_shards(layout), gather, "harvesting")


def measure(config: HarvestConfig, model: SourceModel, pairs: int) -> float:
    shutil.rmtree(config.out, ignore_errors=True)
    (config.out / commits.FOLDER).mkdir(parents=True)
    plan = make_plan(
        config, model, probe_hook_points(model, config.hook), config.out / commits.FOLDER
    )
    create_skeleton(config.out, plan, model)
    layout = plan.layout
    view = Store(config.out, layout, {}, identity="")
    texts = {s.name: open_text(view, s) for s in layout.splits.values() if s.n_rows}
    ways = {
        "bare": partial(forward_only, layout, texts, model, config.batch_size),
        "harvest": partial(harvest, config.out, layout, texts, model, config.batch_size),
    }
    ways["bare"]()
    times: dict[str, list[tuple[float, float]]] = {name: [] for name in ways}
    for pair in range(pairs):
        for name in sorted(ways, reverse=bool(pair % 2)):
            shutil.rmtree(config.out / commits.LOGS, ignore_errors=True)
            wall, cpu = time.perf_counter(), time.process_time()
            ways[name]()
            times[name].append((time.perf_counter() - wall, time.process_time() - cpu))
    both = list(zip(times["harvest"], times["bare"], strict=True))
    ratio, cpu_ratio = (statistics.median(h[i] / b[i] for h, b in both) for i in (0, 1))
    rows = sum(split.n_rows for split in layout.splits.values())
    bare = statistics.median(wall for wall, _ in times["bare"])
    print(f"\n{len(config.hook)} hook points, {rows:,} rows, {pairs} pairs")
    print(f"  bare forward passes: {rows / bare:,.0f} rows/s")
    print(f"  harvest / bare: wall {ratio:.3f}, CPU {cpu_ratio:.3f} (bound {BOUND}: ", end="")
    print("holds)" if ratio <= BOUND else "DOES NOT HOLD)")
    return ratio


def main() -> int:
    parser = argparse.ArgumentParser(description="Cost of harvesting over forward passes.")
    parser.add_argument("model")
    parser.add_argument("text")
    parser.add_argument("--tokens", type=int, default=8000)
    parser.add_argument("--pairs", type=int, default=5)
    parser.add_argument("--device", default="auto")
    given = parser.parse_args()
    model = load_model(ModelSpec(name=given.model, device=choose_device(given.device)))
    with tempfile.TemporaryDirectory() as folder:
        ratios = [
            measure(
                HarvestConfig(
                    model=given.model,
                    dataset=given.text,
                    hook=hooks,
                    out=Path(folder) / "store",
                    tokens=given.tokens,
                    shard_rows=SHARD_ROWS,
                ),
                model,
                given.pairs,
            )
            for hooks in HOOKS
        ]
    return int(max(ratios) > BOUND)


if __name__ == "__main__":
    sys.exit(main())
