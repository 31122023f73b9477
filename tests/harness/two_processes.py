"""One of two processes that see half of the activations each; run by test_two_processes.py.

Usage: two_processes.py RANK MEETING_POINT. Prints its metrics as JSON.
"""

import json
import sys
from typing import Any

import torch
from torch import distributed

import saeflow
from saeflow.train.seeds.collection import training_metrics

HOOKS = ["a", "b"]


def batch(rows: slice) -> dict[str, Any]:
    """Some rows of activations that every process can draw."""
    generator = torch.Generator().manual_seed(0)
    learned, source, decoded = (
        torch.randn(10, 2, width, generator=generator)[rows] for width in (7, 5, 5)
    )
    return {
        "learned_activations": learned.relu(),
        "source_activations": source,
        "decoded_activations": decoded,
    }


def values(updates: list[slice]) -> dict[str, Any]:
    """Every metric after some updates, over all processes, and the last batch's own values."""
    metrics: dict[str, Any] = {
        "l1": saeflow.L1AbsoluteLoss(2),
        "items": saeflow.SparseAutoencoderLoss(2, keep_batch_dim=True),
        "l0": saeflow.L0NormMetric(2),
        "dead": saeflow.NeuronActivityMetric(7, 2),
        "density": saeflow.FeatureDensityMetric(7, 2),
        "capacity": saeflow.CapacityMetric(),
    }
    collection = training_metrics(HOOKS, 7)
    score = saeflow.ReconstructionScoreMetric(2)
    own = {}
    for rows in updates:
        for metric in metrics.values():
            metric.update(**batch(rows))
        own = collection(**batch(rows))
        losses = batch(rows)["learned_activations"]
        for component in range(2):
            clean = losses[:, component].sum(1)
            score.update(clean, clean + 1, 2 * clean + 3, component_idx=component)
    found = {name: metric.compute() for name, metric in (metrics | {"score": score}).items()}
    numbers = {name: value.tolist() for name, value in (found | collection.compute()).items()}
    return numbers | {"own": {name: value.item() for name, value in own.items()}}


if __name__ == "__main__":
    rank, meeting_point = int(sys.argv[1]), sys.argv[2]
    distributed.init_process_group(
        "gloo", init_method=f"file://{meeting_point}", rank=rank, world_size=2
    )
    # The first has two batches, the second one, and then none: lists of different lengths meet.
    uneven = values([slice(0, 4), slice(4, 7)] if rank == 0 else [slice(7, 10)])
    one_idle = values([slice(0, 4)] if rank == 0 else [])
    print(json.dumps({"uneven": uneven, "one idle": one_idle}))
    distributed.destroy_process_group()
