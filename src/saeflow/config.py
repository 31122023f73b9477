"""One frozen dataclass a stage, filled from flags over a TOML file over defaults.

A field's name is the option's name everywhere: the keyword in Python, the key in
the TOML file, and (with dashes) the flag on the command line.
"""

import dataclasses
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar, get_type_hints

from saeflow.errors import BadInputError
from saeflow.location import Place, Url, is_collapsed, locate

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

    Config = TypeVar("Config", bound=DataclassInstance)
else:
    Config = TypeVar("Config")


def load_config(cls: type[Config], file: Path | None, flags: Mapping[str, Any]) -> Config:
    """Build a stage's config: flags that were given, over the file, over defaults.

    Args:
        cls: the config dataclass.
        file: a TOML file whose top-level keys are option names, or None.
        flags: option names with values; None means that the flag wasn't given.

    Raises:
        BadInputError: the file can't be read, or an option is unknown, missing or
            of the wrong type; the message names the option and where it came from.
    """
    from pydantic import TypeAdapter, ValidationError

    given = {name: value for name, value in flags.items() if value is not None}
    from_file = _read_toml(file) if file else {}
    known = [field.name for field in dataclasses.fields(cls)]
    for name in {**from_file, **given}:
        if name not in known:
            where = file if name in from_file else "command line"
            raise BadInputError(f"{where}: unknown option '{name}': known are {', '.join(known)}")
    hints = get_type_hints(cls)
    values = {
        name: _place(value) if hints[name] == Place else value
        for name, value in {**from_file, **given}.items()
    }
    try:
        config = TypeAdapter(cls).validate_python(values)
    except ValidationError as error:
        first = error.errors()[0]
        name = str(first["loc"][0])
        flag = f"--{name.replace('_', '-')}"
        if first["type"] == "missing":
            raise BadInputError(f"{flag} is needed: give it as a flag or in --config") from error
        where = f"{file}: {name}" if name not in given else flag
        raise BadInputError(f"{where}: {first['msg']}, not {first['input']!r}") from error
    for field in dataclasses.fields(config):
        if is_collapsed(getattr(config, field.name)):
            raise BadInputError(f"--{field.name.replace('_', '-')} is a URL: give a folder")
    return config


def to_plain(config: "DataclassInstance") -> dict[str, Any]:
    """A config as JSON and TOML can hold it: paths as text, tuples as lists, None left out."""
    plain = {}
    for name, value in dataclasses.asdict(config).items():
        if isinstance(value, Path):
            value = str(value)
        if isinstance(value, tuple):
            value = list(value)
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
