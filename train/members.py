"""The SAEs of one run: every combination of a sweep, a table of the config file, a hook point.

Each is as if it were trained alone, with options of its own; only the rows that
they are trained on, and in what order, are the same for all.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields, replace
from itertools import product
from pathlib import Path
from typing import Any

from saeflow.config import parse_options, require
from saeflow.files import PARTIAL
from saeflow.harvest.layout import HookPoint
from saeflow.harvest.store import Store
from saeflow.train.config import TrainConfig

_OF_A_RUN = {
    *("store", "out", "sweep", "sae", "batch_size", "accumulate", "tokens", "order_seed"),
    *("device", "precision", "log_every", "evaluate_every", "evaluate_rows", "checkpoint_every"),
    *("log_to", "drop_tokens", "drop_massive", "positions", "window_rows", "reader"),
}
"""Options that all the SAEs of a run have in common."""

_LONGEST_NAME = 255
"""Bytes of a folder's name, the same on every usual file system."""

_NAMED_ANYWAY = {"arch", "d_sae", "expansion", "hook", "target_hook", "crosscoder"}
"""Options that show in every SAE's name."""


@dataclass(frozen=True)
class Member:
    """One SAE of a run.

    Attributes:
        name: of its folder.
        config: its options; of one SAE only.
        inputs: the hook points that it reads.
        target: the hook point that it reconstructs, of a transcoder.
    """

    name: str
    config: TrainConfig
    inputs: tuple[HookPoint, ...]
    target: HookPoint | None

    @property
    def hook_points(self) -> tuple[HookPoint, ...]:
        """All whose rows it is trained on."""
        return self.inputs if self.target is None else (*self.inputs, self.target)

    @property
    def d_in(self) -> int:
        """Width of its input."""
        return sum(hook_point.d_in for hook_point in self.inputs)

    @property
    def d_sae(self) -> int:
        """Its latents."""
        return self.config.d_sae or round((self.config.expansion or 1) * self.d_in)


def make_members(config: TrainConfig, store: Store) -> tuple[Member, ...]:
    """The SAEs that a run trains.

    Raises:
        BadInputError: a table or a sweep has an unknown option, or one of the whole run;
            the options of an SAE contradict each other; the store lacks a hook point;
            two SAEs are the same.
    """
    together = [
        {**table, **values} for table in _tables(config) for values in _combinations(config.sweep)
    ]
    configs = [
        _of_hook_points(
            replace(config, sweep=(), sae=(), **{**own, "hook": _hooks(config, own, store)})
        )
        for own in together
    ]
    alone = [one for several in configs for one in several]
    varied = [f.name for f in fields(config) if len({repr(getattr(c, f.name)) for c in alone}) > 1]
    members = tuple(_member(one, store, varied) for one in alone)
    names = [member.name for member in members]
    for name in names:
        require(
            len((name + PARTIAL).encode()) <= _LONGEST_NAME and PARTIAL not in name,
            f"an SAE of this run would be called {name}, too long for a folder or with {PARTIAL} "
            "in it: give it another --name",
        )
        require(
            names.count(name) == 1,
            f"two SAEs of this run would be called {name}: a --name is of one SAE, and without "
            "one the options that differ make the names",
        )
    return members


def _hooks(config: TrainConfig, own: Mapping[str, Any], store: Store) -> tuple[str, ...]:
    """Those of a table or a sweep, or of the run, or the only one."""
    return own.get("hook") or config.hook or (store.hook_point(None).name,)


def _of_hook_points(config: TrainConfig) -> Iterator[TrainConfig]:
    """One for each of the hook points, or one for all."""
    if config.crosscoder:
        yield config
        return
    require(
        config.name is None or len(config.hook) == 1,
        f"--name {config.name} is of one SAE, and there are {len(config.hook)} hook points: "
        "leave it out",
    )
    for hook_point in config.hook:
        yield replace(config, hook=(hook_point,))


def _tables(config: TrainConfig) -> Iterator[Mapping[str, Any]]:
    """The options in each [[sae]] table."""
    for number, table in enumerate(config.sae or ({},), 1):
        where = f"[[sae]] table {number}"
        _refuse_other_names(table, where)
        yield parse_options(TrainConfig, table, where)


def _combinations(sweep: tuple[str, ...]) -> Iterator[Mapping[str, Any]]:
    """Every combination of the values of a sweep."""
    axes: dict[str, list[Any]] = {}
    for part in " ".join(sweep).split():
        name, given, values = part.partition("=")
        name = name.removeprefix("--").replace("-", "_")
        require(
            bool(given) and all(values.split(",")),
            f"--sweep {part} has no values: give an option and its values, like k=16,32,64",
        )
        require(name not in axes, f"--sweep names {name} twice: give all its values at once")
        _refuse_other_names([name], f"--sweep {part}")
        axes[name] = [
            parse_options(TrainConfig, {name: value}, f"--sweep {part}")[name]
            for value in values.split(",")
        ]
    for combination in product(*axes.values()):
        yield dict(zip(axes, combination, strict=True))


def _refuse_other_names(names: Any, where: str) -> None:
    """Only options that an SAE may have of its own are given for one."""
    known = [field.name for field in fields(TrainConfig) if field.name not in _OF_A_RUN]
    for name in names:
        require(
            name not in _OF_A_RUN,
            f"{where}: {name} is of the whole run, all its SAEs are trained on the same rows: "
            "give it once, outside",
        )
        require(name in known, f"{where}: unknown option '{name}': known are {', '.join(known)}")


def _member(config: TrainConfig, store: Store, varied: list[str]) -> Member:
    inputs = tuple(store.hook_point(name) for name in config.hook)
    target = None if config.target_hook is None else store.hook_point(config.target_hook)
    member = Member("", config, inputs, target)
    require(
        member.d_sae > 0, f"--expansion {config.expansion} of {member.d_in} is no latent: raise it"
    )
    name = "+".join(hook_point.name for hook_point in inputs)
    if target is not None:
        name += f"-to-{target.name}"
    name += f"-{config.arch}-{member.d_sae}"
    for option in varied:
        if option not in _NAMED_ANYWAY | {"name"} and getattr(config, option) is not None:
            name += f"-{option.replace('_', '-')}={_brief(getattr(config, option))}"
    return replace(member, name=config.name or name)


def _brief(value: Any) -> str:
    """A value as it can be in a folder's name."""
    value = value.name if isinstance(value, Path) else value
    return str(value).replace("/", "_").replace(",", "_").replace(" ", "")
