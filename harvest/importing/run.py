"""`saeflow import`: activations that somebody already has, into a store."""

import resource
import shutil
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any

from saeflow.errors import BadInputError
from saeflow.files import naming
from saeflow.harvest.arrays import create_arrays, write_array
from saeflow.harvest.claim import (
    BEGUN,
    check_space,
    claimed,
    clear,
    existing_state,
)
from saeflow.harvest.cost import bytes_on_disk, encoded_share_of, shard_memory
from saeflow.harvest.filling import complete_if_whole, fill, layout_of, missing_shards
from saeflow.harvest.finish import write_root
from saeflow.harvest.importing.config import ImportConfig
from saeflow.harvest.importing.gather import calibrate_import, first_chunk, gather_import
from saeflow.harvest.importing.open import open_source
from saeflow.harvest.importing.plan import ImportPlan, describe_import, make_plan
from saeflow.harvest.layout import FORMAT
from saeflow.harvest.locks import refuse_others
from saeflow.harvest.sample import sample_rows
from saeflow.harvest.store import Store, open_store
from saeflow.harvest.workers import Worker

_WORKER = Worker()


@dataclass(frozen=True)
class ImportResult:
    """A complete store of imported rows.

    Attributes:
        path: its folder.
        already_complete: nothing was left to do.
    """

    path: Path
    already_complete: bool

    @cached_property
    def store(self) -> Store:
        """The store, opened."""
        return open_store(self.path)

    def to_json(self) -> dict[str, Any]:
        """What `--json` prints."""
        imported = self.store.provenance["imported_from"]
        return {
            "store": str(self.path),
            "already_complete": self.already_complete,
            "format": imported["format"],
            "rows": self.store.train.n_rows,
            "held_out_rows": self.store.held_out.n_rows,
            "masked_rows": imported["masked_rows"],
            "dtype": self.store.layout.dtype,
            "hook_points": [h.name for h in self.store.layout.hook_points],
            "bytes": sum(p.stat().st_size for p in self.path.rglob("*") if p.is_file()),
        }


@dataclass(frozen=True)
class ImportCost:
    """What an import will store and take.

    Attributes:
        plan: of the import.
        free: bytes free on the disk of the store.
    """

    plan: ImportPlan
    free: int

    def to_json(self) -> dict[str, Any]:
        """For people and machines, before anything is written."""
        layout, source = self.plan.layout, self.plan.source
        shares = encoded_share_of(layout, first_chunk(self.plan))
        return {
            "format": source.format,
            "files": len(source.files),
            "rows": layout.splits["train"].n_rows,
            "held_out_rows": layout.splits["heldout"].n_rows,
            "masked_rows": source.masked,
            "bytes_on_disk": bytes_on_disk(layout, shares),
            "bytes_in_memory": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
            + shard_memory(layout),
            "bytes_free": self.free,
            "layout": layout.to_attributes(),
        }


def import_activations(config: ImportConfig, *, overwrite: bool = False) -> ImportResult:
    """Import a source into a store, or finish what an earlier run with the same options began.

    Args:
        config: the options.
        overwrite: throw away a store that is already at `config.out`.

    Raises:
        BadInputError: an option, the source or the output folder can't be used, or
            another process is writing to it; the message says which and what to do.
    """
    out = config.out
    source = open_source(config)
    _refuse_inside(source.path, out)
    plan = make_plan(config, source)
    provenance = describe_import(config, source)
    if existing_state(out, provenance, overwrite=overwrite) == "complete" and not overwrite:
        return ImportResult(out, already_complete=True)
    with naming(out), claimed(out, _WORKER):
        refuse_others(out, _WORKER, alone=True)
        # Asked again, now that nobody else can write: another process may just have finished.
        existing = existing_state(out, provenance, overwrite=overwrite)
        if existing == "complete" and not overwrite:
            return ImportResult(out, already_complete=True)
        if overwrite or existing != "writing":
            _begin(out, plan, provenance)
        _fill(out, plan)
    return ImportResult(out, already_complete=False)


def plan_import(config: ImportConfig) -> ImportCost:
    """What an import would store; writes nothing.

    Raises:
        BadInputError: as `import_activations`.
    """
    plan = make_plan(config, open_source(config))
    _refuse_inside(plan.source.path, config.out)
    disk = next(f for f in (config.out.absolute(), *config.out.absolute().parents) if f.is_dir())
    return ImportCost(plan, shutil.disk_usage(disk).free)


def _refuse_inside(source: Path, out: Path) -> None:
    """The store's folder is the store's alone: what is in it may be thrown away."""
    if source.resolve().is_relative_to(out.resolve()):
        raise BadInputError(f"--out {out} contains the source {source}: name another folder")


def _begin(out: Path, plan: ImportPlan, provenance: dict[str, Any]) -> None:
    """Create the empty store; one that is to be overwritten stays whole until then."""
    attributes = {"format": FORMAT, "state": BEGUN, "provenance": provenance}
    check_space(out, plan.layout, "")
    write_root(out, attributes)  # from here on, nothing that an earlier run left counts
    clear(out)
    for split in plan.layout.splits.values():
        create_arrays(out, plan.layout, split)
    write_array(out, "sample", sample_rows(plan.layout), ("row",))
    if plan.layout.dtype == "int8":
        for name, quantisation in calibrate_import(plan).items():
            write_array(out, f"quant/{name}", quantisation.to_array(), ("mean_deviation", "d_in"))
    write_root(out, {**attributes, "state": "writing", "layout": plan.layout.to_attributes()})


def _fill(out: Path, plan: ImportPlan) -> None:
    """Write the shards that aren't there, and complete the store; the main lock is held."""
    layout = layout_of(out, _WORKER)
    missing = missing_shards(out, layout, _WORKER)
    quantisations = Store(out, layout, {}, identity="").quantisations()
    gather = partial(gather_import, plan, quantisations=quantisations)
    fill(out, layout, _WORKER, missing, gather, "importing")
    complete_if_whole(out, layout)
