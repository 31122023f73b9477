"""The same harvest on a GPU: the CPU's rows, and what it does after it was stopped."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from saeflow.harvest.config import HarvestConfig
from saeflow.harvest.run import harvest_activations
from saeflow.harvest.store import open_store
from saeflow.harvest.verify import verify_store

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")

HOOKS = ("blocks.0.hook_resid_post", "blocks.1.attn.hook_z")


@pytest.mark.parametrize("model_dtype", ["float32", "bfloat16"])
def test_rows_are_the_cpus(
    tiny_config: Callable[..., HarvestConfig], tmp_path: Path, model_dtype: str
) -> None:
    stores = []
    for device in ("cpu", "cuda"):
        config = tiny_config(
            out=tmp_path / device,
            device=device,
            hook=HOOKS,
            dtype="float32",
            tokens=None,
            model_dtype=model_dtype,
        )
        harvest_activations(config)
        stores.append(open_store(tmp_path / device))
    here, there = stores
    assert here.train.n_rows == there.train.n_rows
    assert np.array_equal(here.array("token")[:], there.array("token")[:])
    tolerance = 1e-4 if model_dtype == "float32" else 0.1
    for hook in HOOKS:
        here_rows, there_rows = (
            store.rows(
                store.hook_point(hook),
                store.train,
                [store.train.shard(i) for i in range(store.train.n_shards)],
            )
            for store in (here, there)
        )
        torch.testing.assert_close(there_rows, here_rows, rtol=tolerance, atol=tolerance)


def test_a_store_from_a_gpu_is_whole(tiny_config: Callable[..., HarvestConfig]) -> None:
    config = tiny_config(device="cuda", tokens=None)
    assert not harvest_activations(config).already_complete
    assert harvest_activations(config).already_complete
    assert verify_store(config.out).problems == ()
