"""`saeflow harvest`: text into tokens, tokens through the model, activations into the store."""

import tempfile
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any

from saeflow import console
from saeflow.devices import choose_device, share_gpus
from saeflow.errors import BadInputError
from saeflow.files import naming
from saeflow.harvest import commits
from saeflow.harvest.build import gather_shard
from saeflow.harvest.capture import probe_hook_points
from saeflow.harvest.claim import BEGUN, clear
from saeflow.harvest.config import HarvestConfig
from saeflow.harvest.contexts import open_text
from saeflow.harvest.cost import Cost, estimate_cost
from saeflow.harvest.create import create_skeleton
from saeflow.harvest.filling import all_shards, fill
from saeflow.harvest.finish import write_root
from saeflow.harvest.layout import FORMAT
from saeflow.harvest.models import SourceModel, load_model
from saeflow.harvest.plan import make_plan
from saeflow.harvest.provenance import describe, model_spec
from saeflow.harvest.sites import Site, bytes_of, open_site
from saeflow.harvest.store import Store, open_store, read_attributes
from saeflow.harvest.workers import Worker, choose_worker
from saeflow.location import Location, locate


@dataclass(frozen=True)
class HarvestResult:
    """What a harvest, or one worker of it, came to.

    Attributes:
        path: the store's folder, or its URL.
        worker: which part of the harvest this was.
        already_complete: nothing was left to do.
        shards: how many are in the worker's share, all of them built.
        shards_missing: how many the other workers still have to build; the last of
            them completes the store.
        shards_total: how many the store has.
    """

    path: Location
    worker: Worker
    already_complete: bool
    shards: int = 0
    shards_missing: int = 0
    shards_total: int = 0

    @property
    def complete(self) -> bool:
        """Whether the store is whole; only then it can be opened."""
        return self.shards_missing == 0

    @cached_property
    def store(self) -> Store:
        """The store, opened.

        Raises:
            BadInputError: it is not complete yet.
        """
        return open_store(self.path)

    def to_json(self) -> dict[str, Any]:
        """What `--json` prints."""
        told = {"store": str(self.path), "complete": self.complete}
        if not self.complete:
            return {
                **told,
                "worker": f"{self.worker.rank}/{self.worker.count}",
                "shards": self.shards,
                "shards_missing": self.shards_missing,
                "shards_total": self.shards_total,
            }
        return {
            **told,
            "already_complete": self.already_complete,
            "rows": self.store.train.n_rows,
            "held_out_rows": self.store.held_out.n_rows,
            "hook_points": [h.name for h in self.store.layout.hook_points],
            "bytes": bytes_of(self.path),
        }


def harvest_activations(config: HarvestConfig, *, overwrite: bool = False) -> HarvestResult:
    """Harvest a store, or finish one that an earlier run with the same options began.

    As one of several workers, build this one's share of the shards; the last worker
    completes the store.

    Args:
        config: the options.
        overwrite: throw away a store that is already at `config.out`.

    Raises:
        BadInputError: an option, the model, the dataset or the output folder can't
            be used, or another process is writing to it; the message says which and
            what to do.
        SaeflowError: the server of a URL can't be reached, or fails.
    """
    worker = choose_worker(config.worker)
    if overwrite and worker.count > 1:
        raise BadInputError(
            f"--overwrite as {worker} would throw away what the others build: "
            f"remove {config.out}, then start the workers without it"
        )
    device = _choose_device(config, worker)
    provenance = describe(config, device.partition(":")[0])
    site = open_site(locate(config.out), worker, config.staging)
    if site.existing_state(provenance, overwrite=overwrite) == "complete" and not overwrite:
        return HarvestResult(site.place, worker, already_complete=True)
    with naming(site.folder), ExitStack() as own_lock:
        with site.claimed():
            # Asked again, now that nobody else can write: another process may just have finished.
            existing = site.existing_state(provenance, overwrite=overwrite)
            if existing == "complete" and not overwrite:
                return HarvestResult(site.place, worker, already_complete=True)
            anew = overwrite or existing != "writing"
            site.refuse_others(alone=anew)
            model = None
            if anew:
                model = load_model(model_spec(config, device))
                _begin(config, site, model, provenance)
            else:
                site.join()
            own_lock.enter_context(site.worker_lock())
        _build_share(config, site, device, model)
        own_lock.close()
        with site.completing():
            return _complete(site)


def plan_harvest(config: HarvestConfig) -> Cost:
    """What a harvest would store and cost; writes nothing.

    Raises:
        BadInputError: as `harvest_activations`.
    """
    model = load_model(model_spec(config, _choose_device(config, Worker())))
    hook_points = probe_hook_points(model, config.hook)
    with tempfile.TemporaryDirectory() as folder:
        plan = make_plan(config, model, hook_points, Path(folder))
        return estimate_cost(plan.layout, plan.streams, plan.counts, model, config.batch_size)


def _choose_device(config: HarvestConfig, worker: Worker) -> str:
    device = choose_device(config.device)
    if device != "cuda" or worker.count == 1:
        return device
    return share_gpus(worker.rank if worker.local_rank is None else worker.local_rank)


def _begin(
    config: HarvestConfig, site: Site, model: SourceModel, provenance: dict[str, Any]
) -> None:
    """Tokenise the text and create the empty store.

    A store that is to be overwritten stays whole until the new one's text is read.
    """
    out = site.folder
    begun = {"format": FORMAT, "state": BEGUN, "provenance": provenance}
    if read_attributes(out) is None:
        write_root(out, begun)
    hook_points = probe_hook_points(model, config.hook)
    console.say(f"tokenising {config.dataset}")
    plan = make_plan(config, model, hook_points, out / commits.FOLDER)
    site.check_space(plan.layout, ", or harvest fewer --tokens")
    write_root(out, begun)  # from here on, nothing that an earlier run left counts
    clear(out)
    create_skeleton(out, plan, model)
    attributes = {
        **begun,
        "state": "writing",
        "layout": plan.layout.to_attributes(),
        "text": asdict(plan.counts),
    }
    write_root(out, attributes)
    site.begun(begun)


def _build_share(config: HarvestConfig, site: Site, device: str, model: SourceModel | None) -> None:
    """Build those shards of a worker's share that aren't there; its own lock is held."""
    layout = site.layout()
    missing = site.missing_shards(layout)
    if not missing:
        return
    view = Store(site.folder, layout, {}, identity="")
    texts = {name: open_text(view, layout.splits[name]) for name in {s.name for s, _ in missing}}
    gather = partial(
        gather_shard,
        layout,
        model=model or load_model(model_spec(config, device)),
        batch_size=config.batch_size,
        quantisations=view.quantisations(),
    )
    fill(
        site.folder,
        layout,
        site.worker,
        missing,
        lambda split, index, on_rows: gather(split, index, text=texts[split.name], on_rows=on_rows),
        "harvesting",
        site.commit,
    )


def _complete(site: Site) -> HarvestResult:
    """Complete the store if every shard is there; the main lock is held."""
    layout = site.layout()
    shards = all_shards(layout)
    return HarvestResult(
        site.place,
        site.worker,
        already_complete=False,
        shards=len(site.worker.share(shards)),
        shards_missing=site.complete_if_whole(layout),
        shards_total=len(shards),
    )
