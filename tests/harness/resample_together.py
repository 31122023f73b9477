"""One of two processes that resample together; run by test_resample_together.py.

Usage: resample_together.py RANK MEETING_POINT. Prints what it was told, as JSON.
"""

import json
import sys
from typing import Any

import torch
from torch import distributed

from saeflow import ActivationResampler, BadInputError


def batch(rows: slice) -> dict[str, Any]:
    """Some of 40 rows that every process can draw; latents 1 and 4 of component 1 never fire.

    Latent 0 of component 0 fires in row 30 only, latent 2 of it never.
    """
    generator = torch.Generator().manual_seed(0)
    learned = torch.rand(40, 2, 6, generator=generator) + 0.1
    learned[:, 1, [1, 4]] = 0
    learned[:, 0, 2] = 0
    learned[:, 0, 0] = 0
    learned[30, 0, 0] = 1
    return {
        "input_activations": torch.randn(40, 2, 3, generator=generator)[rows],
        "learned_activations": learned[rows],
        "loss": torch.rand(40, 2, generator=generator)[rows],
    }


def resample(parts: list[slice], seed: int, **changed: int) -> Any:
    """Resample after some batches, of which this process sees these rows."""
    options = {"resample_interval": 40, "n_activations_activity_collate": 40} | changed
    generator = torch.Generator().manual_seed(seed)
    resampler = ActivationResampler(
        6, 2, **({"resample_dataset_size": 40} | options), generator=generator
    )
    for rows in parts:
        assert not resampler.due
        resampler.update(**batch(rows))
    assert resampler.due
    encoder = torch.arange(36, dtype=torch.float32).reshape(2, 6, 3)
    try:
        updates = resampler.compute(encoder)
    except BadInputError as refusal:
        return str(refusal)
    return [
        [update.dead_neuron_indices.tolist(), update.dead_encoder_weight_updates.tolist()]
        for update in updates
    ]


if __name__ == "__main__":
    rank, meeting_point = int(sys.argv[1]), sys.argv[2]
    distributed.init_process_group(
        "gloo", init_method=f"file://{meeting_point}", rank=rank, world_size=2
    )
    # Rows of the processes follow each other by rank, as those of one process that sees them all.
    parts = [slice(20 * rank, 20 * rank + 10), slice(20 * rank + 10, 20 * rank + 20)]
    found = {
        "same": resample(parts, seed=5 + rank),  # each has other random numbers
        "refused": resample(parts, seed=5, resample_dataset_size=1),  # less than one for each
    }
    print(json.dumps(found))
    distributed.destroy_process_group()
