"""`saeflow train`: rows of a store, in a shuffled stream, into sparse autoencoders."""

import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from saeflow import console
from saeflow.config import require, to_plain
from saeflow.devices import choose_device
from saeflow.harvest.store import Store, open_store
from saeflow.train.begin import begin_trainer
from saeflow.train.checkpoint import Checkpoint, newest, open_checkpoints
from saeflow.train.claim import CHECKPOINTS, SAES, claimed
from saeflow.train.config import TrainConfig
from saeflow.train.fill import Share
from saeflow.train.finish import write_sae
from saeflow.train.folder import load_sae
from saeflow.train.held_out import open_held_out
from saeflow.train.journal import open_journal
from saeflow.train.loader import Loader
from saeflow.train.loop import Training
from saeflow.train.plan import TrainPlan, make_plan
from saeflow.train.sae import SAE
from saeflow.train.shared import share_encoders
from saeflow.train.stopping import watching
from saeflow.train.trainer import Trainer


@dataclass(frozen=True)
class TrainResult:
    """The SAEs of a run, and whether they already were there.

    Attributes:
        saes: by their names, each opened from its folder.
        run: the run's folder.
        steps, rows: how long they were trained.
        already_complete: nothing was left to do.
        rows_kept: rows of the store that were trained on, those that no filter left out.
        reading: rows and GB a second, and the share of the time that the trainer waited
            for them; None if it didn't run.
    """

    saes: Mapping[str, SAE]
    run: Path
    steps: int
    rows: int
    already_complete: bool
    rows_kept: int
    reading: Mapping[str, Any] | None

    @property
    def sae(self) -> SAE:
        """The only one.

        Raises:
            ValueError: there are several.
        """
        (sae,) = self.saes.values()
        return sae

    @property
    def folders(self) -> tuple[Path, ...]:
        """Where they are."""
        return tuple(self.run / SAES / name for name in self.saes)

    @property
    def folder(self) -> Path:
        """Where the only one is.

        Raises:
            ValueError: there are several.
        """
        (folder,) = self.folders
        return folder

    @property
    def waited(self) -> float | None:
        """Share of the time that the trainer waited for rows."""
        return None if self.reading is None else self.reading["waited"]

    def to_json(self) -> dict[str, Any]:
        """What `--json` prints."""
        return {
            "saes": [str(folder) for folder in self.folders],
            "steps": self.steps,
            "rows": self.rows,
            "already_complete": self.already_complete,
            "rows_kept": self.rows_kept,
            "waited": self.waited,
            "reading": self.reading,
        }


def plan_training(config: TrainConfig) -> TrainPlan:
    """What a training run will do; reads only the store's metadata.

    Raises:
        BadInputError: the store can't be used, or the options don't fit it.
    """
    return make_plan(config, open_store(config.store))


def train_sae(config: TrainConfig, *, overwrite: bool = False) -> TrainResult:
    """Train SAEs and write their folders, `RUN/sae/<name>`.

    A run that was interrupted goes on from its last checkpoint.

    Args:
        config: the options.
        overwrite: throw away a run that is already at `config.out`.

    Raises:
        BadInputError: the store, an option, or what is at `config.out` can't be used.
        SaeflowError: the store is damaged, or training diverges.
    """
    store = open_store(config.store)
    plan = make_plan(config, store)
    device = torch.device(choose_device(config.device))
    trainers = {sae.member.name: begin_trainer(config, sae, store, device) for sae in plan.saes}
    with claimed(config, overwrite=overwrite, remarks=plan.remarks()):
        folders = [config.out / SAES / name for name in trainers]
        reading, complete = None, all(folder.is_dir() for folder in folders)
        if not complete:
            reading = _train(config, plan, store, trainers, device)
            for sae in plan.saes:
                folder = config.out / SAES / sae.member.name
                if not folder.is_dir():  # it is, where a run was cut short while it wrote them
                    write_sae(folder, plan, sae, trainers[sae.member.name], store)
        result = _result(config, plan, store, reading=reading, already_complete=complete)
        # Also of a run that was cut short after its SAEs, but before this.
        shutil.rmtree(config.out / CHECKPOINTS, ignore_errors=True)
        return result


def _train(
    config: TrainConfig,
    plan: TrainPlan,
    store: Store,
    trainers: Mapping[str, Trainer],
    device: torch.device,
) -> Mapping[str, Any] | None:
    """Go on from the newest checkpoint, or begin; how fast rows came, if any did."""
    checkpoint = newest(config.out / CHECKPOINTS) or Checkpoint(0, store.identity, 0, {})
    require(
        checkpoint.store == store.identity,
        f"store {store.path} has changed since the checkpoint of step {checkpoint.step:,} in "
        f"{config.out}: name another --out, or train again with --overwrite",
    )
    for name, state in checkpoint.states.items():
        trainers[name].load_state_dict(state)
    if checkpoint.step:
        console.say(f"going on after step {checkpoint.step:,} of {plan.n_steps:,}")
    _say_what_is_kept(plan)
    loader = Loader(
        store, plan.hook_points, plan.order, Share(config.batch_size), device, config.reader
    )
    options, begun = to_plain(config), checkpoint.metrics_bytes
    with (
        open_journal(config, options, first_step=checkpoint.step, metrics_bytes=begun) as journal,
        open_checkpoints(config.out / CHECKPOINTS) as checkpoints,
        watching() as stopping,
    ):
        training = Training(
            config=config,
            plan=plan,
            store=store,
            trainers=trainers,
            groups=share_encoders(trainers, config.batch_size) if device.type == "cuda" else (),
            loader=loader,
            held_out=open_held_out(store, plan.hook_points, config.evaluate_rows),
            journal=journal,
            checkpoints=checkpoints,
            stopping=stopping,
            saved=checkpoint.step,
        )
        training.run(checkpoint.step)
        journal.settle()
    if checkpoint.step == plan.n_steps:
        return None
    reading = loader.figures()
    console.say(
        f"read {reading['rows_per_s']:,} rows/s, {reading['gb_per_s']} GB/s; "
        f"the trainer waited for them {reading['waited']:.1%} of the time"
    )
    return reading


def _say_what_is_kept(plan: TrainPlan) -> None:
    if plan.order.kept is not None:
        kept, n_rows = plan.order.rows_per_epoch, plan.order.n_rows
        console.say(f"training on {kept:,} of {n_rows:,} rows ({kept / n_rows:.1%})")


def _result(
    config: TrainConfig,
    plan: TrainPlan,
    store: Store,
    *,
    reading: Mapping[str, Any] | None,
    already_complete: bool,
) -> TrainResult:
    saes = {sae.member.name: load_sae(config.out / SAES / sae.member.name) for sae in plan.saes}
    for sae in saes.values():
        require(
            sae.cfg["metadata"]["saeflow"]["store"]["identity"] == store.identity,
            f"store {store.path} has changed since run {config.out} was trained on it: "
            "name another --out, or train again with --overwrite",
        )
    return TrainResult(
        saes=saes,
        run=config.out,
        steps=plan.n_steps,
        rows=plan.rows,
        already_complete=already_complete,
        rows_kept=plan.order.rows_per_epoch,
        reading=reading,
    )
