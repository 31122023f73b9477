"""Entries of an SAE's cfg.json, which anybody may have written: each of its type, or refused."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, TypeVar, cast

from saeflow.errors import BadInputError

Kind = TypeVar("Kind")

_TOLD = {
    bool: "true or false",
    dict: "an object",
    float: "a number",
    int: "a whole number",
    list: "a list",
    str: "text",
}
_SHOWN = 60


@dataclass(frozen=True)
class Entries:
    """An object of cfg.json.

    Attributes:
        entries: by their names.
        path: of names, from the top of the file.
        sae: which SAE it is, for messages.
    """

    entries: Mapping[str, Any]
    path: str
    sae: str

    def get(self, name: str, kind: type[Kind]) -> Kind | None:
        """An entry; None where it is missing or null.

        Raises:
            BadInputError: it is of another type.
        """
        found = self.entries.get(name)
        if found is None:
            return None
        right = isinstance(found, (int, float) if kind is float else kind)
        if not right or (isinstance(found, bool) and kind is not bool):
            raise self.wrong(name, _TOLD[kind])
        return cast("Kind", found)

    def needed(self, name: str, kind: type[Kind]) -> Kind:
        """An entry that can't be missing.

        Raises:
            BadInputError: it is, or is of another type.
        """
        found = self.get(name, kind)
        if found is None:
            raise self.wrong(name, _TOLD[kind])
        return found

    def within(self, name: str) -> "Entries":
        """An object in this one; one without entries where it is missing or null.

        Raises:
            BadInputError: it is something else.
        """
        return Entries(self.get(name, dict) or {}, f"{self.path}.{name}", self.sae)

    def wrong(self, name: str, wanted: str) -> BadInputError:
        """The error of an entry that is not what it must be."""
        found = repr(self.entries[name])[:_SHOWN] if name in self.entries else "missing"
        return BadInputError(
            f"{self.sae}: {self.path}.{name} is {found}: it must be {wanted}; correct its cfg.json"
        )
