"""The SAE folder of an SAE that has been trained."""

from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from saeflow.config import to_plain
from saeflow.harvest.store import Store
from saeflow.train.architecture import Inference
from saeflow.train.folder import metadata, save_sae
from saeflow.train.kinds import cfg_of, hook_metadata
from saeflow.train.plan import SaePlan, TrainPlan
from saeflow.train.sae import SAE
from saeflow.train.trainer import Trainer

_SELF_TEST_ROWS = 8


def write_sae(folder: Path, plan: TrainPlan, sae: SaePlan, trainer: Trainer, store: Store) -> None:
    """Write what training has left, whole or not at all; the folder must not exist."""
    member = sae.member
    with trainer.finished() as (inference, parameters):
        trained = SAE(
            inference,
            parameters.cpu(),
            _cfg(inference, plan, sae, trainer, store),
            trainer.normalisation.mean.cpu(),
        )
        runs = plan.order.runs(0, _SELF_TEST_ROWS)
        rows = [store.rows(h, store.train, runs).float() for h in member.inputs]
        save_sae(trained, folder, torch.cat(rows, 1))


def _cfg(
    inference: Inference, plan: TrainPlan, sae: SaePlan, trainer: Trainer, store: Store
) -> dict[str, Any]:
    """cfg.json: what SAELens 6 needs, and our provenance under `metadata.saeflow`."""
    provenance, packing, member = store.provenance, store.layout.packing, sae.member
    cfg = cfg_of(inference, member.inputs, member.target, member.d_sae, skip=member.config.skip)
    cfg["metadata"] = metadata(
        model_name=provenance["model"]["name"],
        **hook_metadata(member.inputs, member.target),
        context_size=packing.context_size if packing else None,
        prepend_bos=True if packing else None,
        dataset_path=provenance["dataset"],
        training_architecture=sae.architecture.name,
        saeflow={
            "version": version("saeflow"),
            "store": {
                "path": str(store.path.resolve()),
                "identity": store.identity,
                "provenance": dict(provenance),
            },
            "train": to_plain(member.config),
            "rows": plan.rows,
            "rows_kept": plan.order.rows_per_epoch,
            "dead": trainer.n_dead,
        },
    )
    return cfg
