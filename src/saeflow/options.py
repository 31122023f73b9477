"""Turn a stage's config dataclass into the signature of its typer command.

So an option is written once, in the dataclass: its name, type, default and help.
"""

import dataclasses
import inspect
from collections.abc import Callable
from pathlib import Path
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, get_args, get_origin, get_type_hints

import typer
from typer.core import TyperCommand

from saeflow.location import Place

Command = Callable[..., None]


def with_options_of(config: type, *, argument: str | None = None) -> Callable[[Command], Command]:
    """Give a command every option of a config dataclass, each absent unless given.

    Args:
        config: the dataclass; its fields are `Annotated[type, Doc(help)]`.
        argument: the field that is a positional argument instead of a flag.

    The command gets the options that were given as keywords, beside its own.
    """

    def decorate(command: Command) -> Command:
        signature = inspect.signature(command, eval_str=True)
        own = [p for p in signature.parameters.values() if p.kind is not p.VAR_KEYWORD]
        hints = get_type_hints(config, include_extras=True)
        options = [
            _parameter(field, hints[field.name], positional=field.name == argument)
            for field in dataclasses.fields(config)
            if get_origin(hints[field.name]) is Annotated  # what has no help is for files only
        ]
        options.sort(key=lambda p: p.name != argument)
        parameters = [*options, *own]

        def wrapped(**given: Any) -> None:
            command(**given)

        wrapped.__name__ = command.__name__
        wrapped.__doc__ = command.__doc__
        wrapped.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]  # read by inspect.signature
        wrapped.__annotations__ = {p.name: p.annotation for p in parameters}
        return wrapped

    return decorate


def _parameter(
    field: "dataclasses.Field[Any]", hint: Any, *, positional: bool
) -> inspect.Parameter:
    kind, documentation = get_args(hint)
    base = str if kind == Place else _without_none(kind)
    if get_origin(base) is tuple:
        one = get_args(base)[0]
        one = str if get_origin(one) is Literal else one  # which typer can't have several of
        base = list[one]  # type: ignore[valid-type]  # built at run time, for typer
    help_text = documentation.documentation
    info: Any
    if positional:
        info = typer.Argument(help=help_text, show_default=False)
    else:
        if not any(field.default is none for none in (dataclasses.MISSING, None, False, ())):
            help_text += f" (default {field.default})"
        if field.default is dataclasses.MISSING:
            help_text += " (needed)"
        flag = f"--{field.name.replace('_', '-')}"
        flags = f"{flag}/--no-{flag[2:]}" if base is bool else flag
        info = typer.Option(flags, help=help_text, show_default=False)
    return inspect.Parameter(
        field.name,
        inspect.Parameter.KEYWORD_ONLY,
        default=None,
        annotation=Annotated[base | None, info],
    )


class ManyValues(TyperCommand):
    """A command whose `--sweep` takes several values, `--sweep k=16,32 lr=1e-4,3e-4`."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Give each of the values a flag of its own, which is what click knows."""
        return super().parse_args(ctx, _one_each(args, "--sweep"))


def _one_each(args: list[str], flag: str) -> list[str]:
    """After a flag, its first value and all those that are assignments, each behind the flag."""
    spread, sweeping = [], False
    for place, arg in enumerate(args):
        assigns = "=" in arg and not arg.startswith("-")
        if sweeping and assigns and args[place - 1] != flag:
            spread.append(flag)
        spread.append(arg)
        sweeping = arg == flag or (sweeping and assigns)
    return spread


def _without_none(kind: Any) -> Any:
    if get_origin(kind) is UnionType or NoneType in get_args(kind):
        (kind,) = [part for part in get_args(kind) if part is not NoneType]
    return kind


ConfigFile = Annotated[
    Path | None,
    typer.Option(
        "--config",
        help="TOML file whose keys are option names; flags win over it.",
        show_default=False,
    ),
]
Json = Annotated[
    bool, typer.Option("--json", help="Print the result as one JSON object on stdout.")
]
DryRun = Annotated[
    bool, typer.Option("--dry-run", help="Print the options and what they will cost, and stop.")
]
Overwrite = Annotated[
    bool, typer.Option("--overwrite", help="Throw away what an earlier run left at --out.")
]
