"""`saeflow train`: rows of a store, in a shuffled stream, into a sparse autoencoder."""

import json
import shutil
from collections.abc import Mapping
from contextlib import closing
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from saeflow import console
from saeflow.config import load_config, require, to_plain, to_toml
from saeflow.devices import choose_device
from saeflow.errors import BadInputError
from saeflow.files import PARTIAL, write_durably
from saeflow.harvest.store import Store, open_store
from saeflow.location import locate
from saeflow.train.config import TrainConfig
from saeflow.train.fill import Share
from saeflow.train.folder import load_sae, metadata, save_sae
from saeflow.train.loader import Loader
from saeflow.train.parameters import Parameters
from saeflow.train.plan import TrainPlan, make_plan
from saeflow.train.sae import SAE
from saeflow.train.trainer import Normalisation, Trainer

_CONFIG, _METRICS, _SPEED = "config.toml", "metrics.jsonl", "speed.jsonl"
_ENTRIES = {_CONFIG, _CONFIG + PARTIAL, _METRICS, _SPEED, "sae", "checkpoints", "scores.json"}
_SELF_TEST_ROWS = 8


@dataclass(frozen=True)
class TrainResult:
    """A trained SAE, and whether it already was.

    Attributes:
        sae: opened from its folder.
        folder: where it is.
        steps, rows: how long it was trained.
        already_complete: nothing was left to do.
        rows_kept: rows of the store that were trained on, those that no filter left out.
        reading: rows and GB a second, and the share of the time that the trainer waited
            for them; None if it didn't run.
    """

    sae: SAE
    folder: Path
    steps: int
    rows: int
    already_complete: bool
    rows_kept: int
    reading: Mapping[str, Any] | None

    @property
    def waited(self) -> float | None:
        """Share of the time that the trainer waited for rows."""
        return None if self.reading is None else self.reading["waited"]

    def to_json(self) -> dict[str, Any]:
        """What `--json` prints."""
        return {
            "sae": str(self.folder),
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
    """Train an SAE and write its folder, `RUN/sae/<name>`.

    A run that was interrupted starts again from its first step.

    Args:
        config: the options.
        overwrite: throw away a run that is already at `config.out`.

    Raises:
        BadInputError: the store, an option, or what is at `config.out` can't be used.
        SaeflowError: the store is damaged, or training diverges.
    """
    store = open_store(config.store)
    plan = make_plan(config, store)
    folder = config.out / "sae" / f"{plan.hook_point.name}-{plan.architecture.name}-{plan.d_sae}"
    device = torch.device(choose_device(config.device))
    _claim(config, overwrite=overwrite)
    if folder.is_dir():
        sae = load_sae(folder)
        require(
            sae.cfg["metadata"]["saeflow"]["store"]["identity"] == store.identity,
            f"store {store.path} has changed since run {config.out} was trained on it: "
            "name another --out, or train again with --overwrite",
        )
        return _result(sae, folder, plan, already_complete=True, reading=None)
    trainer = _make_trainer(config, plan, store, device)
    share = Share(config.batch_size)
    loader = Loader(store, (plan.hook_point,), plan.order, share, device, config.reader)
    _fit(config, plan, trainer, loader)
    inference, parameters = plan.architecture.trained(
        trainer.normalisation.folded(trainer.parameters).cpu()
    )
    cfg = {**inference.to_cfg(), **_cfg(config, plan, store, trainer)}
    sae = SAE(inference, parameters, cfg, trainer.normalisation.mean.cpu())
    runs = plan.order.runs(0, _SELF_TEST_ROWS)
    rows = store.rows(plan.hook_point, store.train, runs).float()
    save_sae(sae, folder, rows)
    reading = loader.figures() if plan.n_steps else None
    return _result(load_sae(folder), folder, plan, already_complete=False, reading=reading)


def _claim(config: TrainConfig, *, overwrite: bool) -> None:
    """Make the run folder ours, or refuse it."""
    out = config.out
    if out.is_dir() and any(out.iterdir()):
        foreign = {entry.name for entry in out.iterdir()} - _ENTRIES
        if foreign or not (out / _CONFIG).is_file():
            raise BadInputError(f"--out {out} holds something else: name an empty or a new folder")
        if overwrite:
            shutil.rmtree(out)
        else:
            _refuse_other_options(config)
    elif out.exists() and not out.is_dir():
        raise BadInputError(f"--out {out} is a file: name a folder")
    write_durably(out / _CONFIG, [to_toml(config).encode()])


def _refuse_other_options(config: TrainConfig) -> None:
    before, now = (
        to_plain(replace(options, store=str(locate(options.store).resolve())))
        for options in (load_config(TrainConfig, config.out / _CONFIG, {}), config)
    )
    changed = [
        f"{key}: {before.get(key)!r} there, {now.get(key)!r} now"
        for key in sorted({*before, *now} - {"out", "reader"})  # who reads changes nothing
        if before.get(key) != now.get(key)
    ]
    if changed:
        raise BadInputError(
            f"--out {config.out} holds a run with other options ({'; '.join(changed)}): "
            "name another folder, or throw it away with --overwrite"
        )


def _make_trainer(
    config: TrainConfig, plan: TrainPlan, store: Store, device: torch.device
) -> Trainer:
    """An untrained SAE whose units and `b_dec` come from the store's statistics."""
    statistics = store.statistics(plan.hook_point)
    normalisation = Normalisation.from_statistics(statistics["mean"], statistics["std"], device)
    b_dec = normalisation.mean.cpu() * normalisation.scale
    extra = plan.architecture.initial(plan.d_sae)
    parameters = Parameters.initial(
        b_dec, plan.d_sae, config.seed, extra, plan.architecture.rules
    ).to(device)
    return Trainer(plan.architecture, parameters, normalisation, plan.schedule, config.dead_after)


def _fit(config: TrainConfig, plan: TrainPlan, trainer: Trainer, loader: Loader) -> None:
    """Run all steps."""
    kept = plan.order.rows_per_epoch
    if plan.order.kept is not None:
        share = kept / plan.order.n_rows
        console.say(f"training on {kept:,} of {plan.order.n_rows:,} rows ({share:.1%})")
    with (
        (config.out / _METRICS).open("w", encoding="utf-8") as log,
        (config.out / _SPEED).open("w", encoding="utf-8") as speed,
        console.meter("training", plan.n_steps * plan.batch_size, "rows") as meter,
        closing(loader.batches(0, plan.n_steps)) as batches,
    ):
        note = ""
        for line in trainer.fit(batches, 0, log_every=config.log_every):
            if line is not None:
                log.write(json.dumps(line) + "\n")
                log.flush()
                speed.write(json.dumps({"step": line["step"], **loader.figures()}) + "\n")
                speed.flush()
                note = f"FVU {line['row_fvu']:.3f}, L0 {line['l0']:.1f}, dead {line['dead']}"
            meter.advance(plan.batch_size, note)
    if plan.n_steps:
        reading = loader.figures()
        console.say(
            f"read {reading['rows_per_s']:,} rows/s, {reading['gb_per_s']} GB/s; "
            f"the trainer waited for them {reading['waited']:.1%} of the time"
        )


def _cfg(config: TrainConfig, plan: TrainPlan, store: Store, trainer: Trainer) -> dict[str, Any]:
    """The rest of cfg.json that SAELens 6 needs, and our provenance under `metadata.saeflow`."""
    provenance, packing = store.provenance, store.layout.packing
    hook_z = len(plan.hook_point.shape) > 1
    return {
        "d_in": plan.hook_point.d_in,
        "d_sae": plan.d_sae,
        "dtype": "float32",
        "device": "cpu",
        "apply_b_dec_to_input": True,
        "normalize_activations": "none",
        "reshape_activations": "hook_z" if hook_z else "none",
        "metadata": metadata(
            model_name=provenance["model"]["name"],
            hook_name=plan.hook_point.name,
            context_size=packing.context_size if packing else None,
            prepend_bos=True if packing else None,
            dataset_path=provenance["dataset"],
            training_architecture=plan.architecture.name,
            saeflow={
                "version": version("saeflow"),
                "store": {
                    "path": str(store.path.resolve()),
                    "identity": store.identity,
                    "provenance": dict(provenance),
                },
                "train": to_plain(config),
                "rows": plan.n_steps * plan.batch_size,
                "rows_kept": plan.order.rows_per_epoch,
                "dead": int((trainer.since_fired >= trainer.dead_after).sum()),
            },
        ),
    }


def _result(
    sae: SAE,
    folder: Path,
    plan: TrainPlan,
    *,
    already_complete: bool,
    reading: Mapping[str, Any] | None,
) -> TrainResult:
    return TrainResult(
        sae=sae,
        folder=folder,
        steps=plan.n_steps,
        rows=plan.n_steps * plan.batch_size,
        already_complete=already_complete,
        rows_kept=plan.order.rows_per_epoch,
        reading=reading,
    )
