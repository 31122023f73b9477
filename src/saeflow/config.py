"""One frozen dataclass a stage, filled from flags over a TOML file over defaults.

A field's name is the option's name everywhere: the keyword in Python, the key in
the TOML file, and (with dashes) the flag on the command line.
"""

import dataclasses
import tomllib
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar, get_origin, get_type_hints

from saeflow.errors import BadInputError
from saeflow.location import Place, Url, is_collapsed, locate

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

    Config = TypeVar("Config", bound=DataclassInstance)
else:
    Config = TypeVar("Config")


def load_config(
    cls: type[Config],
    file: Path | None,
    flags: Mapping[str, Any],
    *,
    argument: str | None = None,
) -> Config:
    """Build a stage's config: flags that were given, over the file, over defaults.

    Args:
        cls: the config dataclass.
        file: a TOML file whose top-level keys are option names, or None.
        flags: option names with values; None means that the flag wasn't given.
        argument: which of them is no flag on the command line, but a word of its own.

    Raises:
        BadInputError: the file can't be read, or an option is unknown, missing or
            of the wrong type; the message names the option and where it came from.
    """
    given = {name: value for name, value in flags.items() if value is not None}
    from_file = _read_toml(file) if file else {}
    known = [field.name for field in dataclasses.fields(cls)]
    for name in {**from_file, **given}:
        if name not in known:
            where = file if name in from_file else "command line"
            raise BadInputError(f"{where}: unknown option '{name}': known are {', '.join(known)}")
    _refuse_without_effect(given, from_file, file)
    values = {
        **parse_options(cls, {k: v for k, v in from_file.items() if k not in given}, str(file)),
        **parse_options(cls, given),
    }
    for field in dataclasses.fields(cls):
        missing = field.default is field.default_factory is dataclasses.MISSING
        if missing and field.name not in values:
            word = field.name.upper() if field.name == argument else flag_of(field.name)
            how = "behind the command" if field.name == argument else "as a flag"
            raise BadInputError(f"{word} is needed: give it {how} or in --config")
    config = cls(**values)
    for name in known:
        if is_collapsed(getattr(config, name)):
            raise BadInputError(f"{flag_of(name)} is a URL: give a folder")
    return config


def _refuse_without_effect(
    given: Mapping[str, Any], from_file: Mapping[str, Any], file: Path | None
) -> None:
    """A flag wins over the file, but not over each of its tables."""
    for name, value in from_file.items():
        tables = value if isinstance(value, list) else []
        if not tables or not all(isinstance(table, dict) for table in tables):
            continue
        for flag in given:
            require(
                not all(flag in table for table in tables),
                f"{flag_of(flag)} has no effect: every [[{name}]] table of {file} gives its own, "
                "change it there",
            )


def parse_options(
    cls: type[Config], options: Mapping[str, Any], where: str | None = None
) -> dict[str, Any]:
    """Values of some options, as text or as TOML has them, in the types of the config's fields.

    Args:
        cls: the config dataclass.
        options: by their names, all of which it has.
        where: they are from, for messages; None for the command line.

    Raises:
        BadInputError: one is of the wrong type.
    """
    return {
        name: _parsed(
            _hints(cls)[name], value, flag_of(name) if where is None else f"{where}: {name}"
        )
        for name, value in options.items()
    }


def take_types(config: "DataclassInstance") -> None:
    """Bring options that were given in Python into their fields' types, as those of a file are.

    For a config's `__post_init__`: a folder may be given as text, one value for several.

    Raises:
        BadInputError: one is of the wrong type, or none of its choices.
    """
    for name, hint in _hints(type(config)).items():
        value = getattr(config, name)
        parsed = value if hint == Place else _parsed(hint, value, flag_of(name))
        if parsed is not value:
            object.__setattr__(config, name, parsed)


def _parsed(hint: Any, value: Any, told: str) -> Any:
    from pydantic import ValidationError

    given = _place(value) if hint == Place else value
    if get_origin(hint) is tuple and isinstance(value, str):
        given = (value,)
    if isinstance(value, bool) and hint is not bool:
        raise BadInputError(f"{told} is {value}: give a value, not whether")
    try:
        return _adapter(hint).validate_python(given)
    except ValidationError as error:
        first = error.errors()[0]
        raise BadInputError(f"{told}: {first['msg']}, not {first['input']!r}") from error


@cache
def _hints(cls: type) -> dict[str, Any]:
    """The types of a config's fields."""
    return get_type_hints(cls)


@cache
def _adapter(hint: Any) -> Any:
    from pydantic import TypeAdapter

    return TypeAdapter(hint)


def flag_of(name: str) -> str:
    """What an option is called on the command line."""
    return f"--{name.replace('_', '-')}"


def to_plain(config: "DataclassInstance") -> dict[str, Any]:
    """A config as JSON and TOML can hold it: paths as text, tuples as lists, None left out."""
    plain = {}
    for name, value in dataclasses.asdict(config).items():
        if isinstance(value, Path):
            value = str(value)
        if isinstance(value, tuple):
            value = [dict(one) if isinstance(one, Mapping) else one for one in value]
        if value is not None:
            plain[name] = value
    return plain


def to_toml(config: "DataclassInstance") -> str:
    """A config as a TOML file that `--config` takes back."""
    import tomli_w

    return tomli_w.dumps(to_plain(config))


def require(condition: bool, message: str) -> None:
    """Refuse bad input with one line.

    Raises:
        BadInputError: the condition does not hold.
    """
    if not condition:
        raise BadInputError(message)


def require_seed(value: int, name: str) -> None:
    """Refuse a seed that not every generator takes, or takes for another one.

    Raises:
        BadInputError: it is below 0, or over 32 bits.
    """
    require(0 <= value < 2**32, f"{flag_of(name)} is {value}: it is from 0 to {2**32 - 1}")


def _place(value: Any) -> Any:
    """Text that names a folder as a path; a URL stays text, which no path keeps as it is."""
    if not isinstance(value, str):
        return value
    place = locate(value)
    return str(place) if isinstance(place, Url) else place


def _read_toml(file: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise BadInputError(f"config file {file} can't be read: {error.strerror}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise BadInputError(f"config file {file} is not TOML: {error}") from error
