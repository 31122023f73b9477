"""`saeflow harvest`: text into tokens, tokens through the model, activations into the store."""

import shutil
import tempfile
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from saeflow import console
from saeflow.devices import choose_device
from saeflow.errors import BadInputError
from saeflow.files import PARTIAL
from saeflow.harvest import commits
from saeflow.harvest.build import Text, build_shard
from saeflow.harvest.capture import probe_hook_points
from saeflow.harvest.config import HarvestConfig
from saeflow.harvest.finish import ROOT, finish_store, write_root
from saeflow.harvest.layout import FORMAT, Layout, create_arrays
from saeflow.harvest.models import SourceModel, load_model
from saeflow.harvest.plan import Plan, make_plan
from saeflow.harvest.provenance import describe, differences, model_spec
from saeflow.harvest.sequences import write_sequences
from saeflow.harvest.store import Store, open_store, read_attributes


@dataclass(frozen=True)
class HarvestResult:
    """A complete store, and whether it already was.

    Attributes:
        store: opened.
        already_complete: nothing was left to do.
    """

    store: Store
    already_complete: bool

    def to_json(self) -> dict[str, Any]:
        """What `--json` prints."""
        layout = self.store.layout
        return {
            "store": str(self.store.path),
            "already_complete": self.already_complete,
            "rows": self.store.train.n_rows,
            "held_out_rows": self.store.held_out.n_rows,
            "hook_points": [h.name for h in layout.hook_points],
            "bytes": sum(p.stat().st_size for p in self.store.path.rglob("*") if p.is_file()),
        }


def harvest_activations(config: HarvestConfig, *, overwrite: bool = False) -> HarvestResult:
    """Harvest a store, or finish one that an earlier run with the same options began.

    Args:
        config: the options.
        overwrite: throw away a store that is already at `config.out`.

    Raises:
        BadInputError: an option, the model, the dataset or the output folder can't
            be used; the message says which and what to do.
    """
    device = choose_device(config.device)
    provenance = describe(config, device)
    existing = _existing(config.out, provenance, overwrite=overwrite)
    if existing == "complete" and not overwrite:
        return HarvestResult(open_store(config.out), already_complete=True)
    created = not config.out.exists()
    with commits.locked(config.out):
        try:
            # Asked again, now that nobody else can write: another process may just have finished.
            existing = _existing(config.out, provenance, overwrite=overwrite)
            if existing != "complete" or overwrite:
                _fill(config, device, provenance, anew=overwrite or existing != "writing")
        except BadInputError:
            attributes = read_attributes(config.out)
            if created and (attributes is None or attributes["state"] == "tokenizing"):
                shutil.rmtree(config.out)  # nothing of value is in it yet
            raise
    return HarvestResult(open_store(config.out), already_complete=False)


def plan_harvest(config: HarvestConfig) -> Plan:
    """What a harvest would store and cost; writes nothing.

    Raises:
        BadInputError: as `harvest_activations`.
    """
    model = load_model(model_spec(config, choose_device(config.device)))
    hook_points = probe_hook_points(model, config.hook)
    with tempfile.TemporaryDirectory() as folder:
        return make_plan(config, model, hook_points, Path(folder))


def _existing(out: Path, provenance: dict[str, Any], *, overwrite: bool) -> str | None:
    """The state of the store at `out`, if any, after refusing what must not be touched."""
    if not out.exists():
        return None
    if not out.is_dir():
        raise BadInputError(f"--out {out} is a file: name a folder")
    attributes = read_attributes(out)
    if attributes is None:
        ours = {commits.FOLDER, f"{ROOT}{PARTIAL}"}
        foreign = sorted({entry.name for entry in out.iterdir()} - ours)
        if foreign:
            raise BadInputError(
                f"--out {out} holds something else ({', '.join(foreign[:3])}): "
                "name an empty or a new folder"
            )
        return None
    state = str(attributes.get("state"))
    changed = differences(attributes.get("provenance", {}), provenance)
    if state != "tokenizing" and changed and not overwrite:
        raise BadInputError(
            f"--out {out} holds a store made with other options ({'; '.join(changed)}): "
            "name another folder, or throw it away with --overwrite"
        )
    return state


def _fill(config: HarvestConfig, device: str, provenance: dict[str, Any], *, anew: bool) -> None:
    """Bring the store to completion, from nothing or from where it was."""
    model = load_model(model_spec(config, device))
    begun = None if anew else read_attributes(config.out)
    attributes = begun or _begin(config, model, provenance)
    commits.recover(config.out)
    layout = Layout.from_attributes(attributes["layout"])
    _build_missing(config, layout, model)
    finish_store(config.out, layout, attributes)


def _begin(config: HarvestConfig, model: SourceModel, provenance: dict[str, Any]) -> dict[str, Any]:
    """Tokenise the text and create the empty store; returns what its root says.

    A store that is to be overwritten stays whole until the new one's text is read.
    """
    out = config.out
    attributes = {"format": FORMAT, "state": "tokenizing", "provenance": provenance}
    if read_attributes(out) is None:
        write_root(out, attributes)
    hook_points = probe_hook_points(model, config.hook)
    console.say(f"tokenising {config.dataset}")
    plan = make_plan(config, model, hook_points, out / commits.FOLDER)
    _check_space(out, plan)
    write_root(out, attributes)  # from here on, nothing that an earlier run left counts
    _clear(out)
    for split in plan.layout.splits.values():
        write_sequences(out, split, plan.streams[split.name], plan.layout.packing)
        create_arrays(out, plan.layout, split)
    attributes = {
        **attributes,
        "state": "writing",
        "layout": plan.layout.to_attributes(),
        "text": asdict(plan.counts),
    }
    write_root(out, attributes)
    return attributes


def _build_missing(config: HarvestConfig, layout: Layout, model: SourceModel) -> None:
    view = Store(config.out, layout, {}, identity="")
    done = commits.read_records(config.out)
    total = sum(split.n_rows for split in layout.splits.values())
    with console.meter("harvesting", total, "rows") as meter:
        meter.resume_at(sum(record["rows"] for record in done.values()))
        for split in layout.splits.values():
            folder = f"{split.folder}sequences"
            text = Text(
                partial(view.sequences, split),
                np.asarray(view.array(f"{folder}/document")[:], np.uint32),
                np.asarray(view.array(f"{folder}/start")[:], np.uint64),
            )
            for index in range(split.n_shards):
                if (split.name, index) not in done:
                    record = build_shard(
                        config.out,
                        layout,
                        split,
                        index,
                        model=model,
                        text=text,
                        batch_size=config.batch_size,
                        on_rows=meter.advance,
                    )
                    commits.append(config.out, record)


def _clear(out: Path) -> None:
    """Remove what was cut short or thrown away; the root, which says so, and the lock stay."""
    for entry in [*out.iterdir(), *(out / commits.FOLDER).iterdir()]:
        if entry.name in (ROOT, commits.FOLDER, commits.LOCK):
            continue
        if entry.is_dir():
            shutil.rmtree(entry)
        else:
            entry.unlink()


def _check_space(out: Path, plan: Plan) -> None:
    free = shutil.disk_usage(out).free + sum(
        path.stat().st_size for path in out.rglob("*") if path.is_file()
    )
    if plan.bytes_on_disk > free:
        raise BadInputError(
            f"the store takes {plan.bytes_on_disk:,} bytes and {out} has {free:,} free: "
            "make room, or harvest fewer --tokens"
        )
