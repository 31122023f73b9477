"""Where a store is: a folder, or a URL of an object store or of a web server."""

import re
from dataclasses import dataclass
from pathlib import Path

from saeflow.errors import BadInputError

SCHEMES = ("s3", "gs", "http", "https")


@dataclass(frozen=True)
class Url:
    """A place that only requests reach; it joins and prints as a path does.

    Attributes:
        text: with scheme and bucket or host, without a slash at the end.
    """

    text: str

    @property
    def scheme(self) -> str:
        """One of `SCHEMES`."""
        return self.text.partition("://")[0]

    @property
    def writable(self) -> bool:
        """Whether objects can be put there; a web server only gives."""
        return self.scheme in ("s3", "gs")

    def __truediv__(self, name: str) -> "Url":
        return Url(f"{self.text}/{name}")

    def __str__(self) -> str:
        return self.text

    def resolve(self) -> "Url":
        """Itself: it means the same from everywhere."""
        return self


Location = Path | Url
"""A place that is known to be one."""

Place = Path | str
"""A place as an option names it: a folder, or text, which may be a URL."""


def is_collapsed(place: object) -> bool:
    """Whether it is a URL that was taken for a path, which lost it a slash."""
    return isinstance(place, Path) and re.match(f"({'|'.join(SCHEMES)}):/", str(place)) is not None


def locate(place: Path | Url | str) -> Location:
    """A folder or a URL, from what the user named.

    Raises:
        BadInputError: it looks like a URL and can't be used as one.
    """
    if isinstance(place, Url):
        return place
    if is_collapsed(place):
        raise BadInputError(f"{place} is a URL that became a path: give it as text")
    if isinstance(place, Path):
        return place
    if "://" not in place:
        return Path(place)
    scheme, _, rest = place.partition("://")
    if scheme not in SCHEMES:
        known = ", ".join(f"{known}://" for known in SCHEMES)
        raise BadInputError(f"{place} is no URL that saeflow knows: give a folder, or {known}...")
    if not rest.strip("/") or rest.startswith("/"):
        what = "bucket" if scheme in ("s3", "gs") else "host"
        raise BadInputError(f"{place} names no {what}: give {scheme}://{what.upper()}/STORE")
    if set(rest) & set("?#") or "@" in rest.partition("/")[0]:
        raise BadInputError(
            f"the {scheme}:// URL of the store holds a '?', a '#' or credentials: "
            "give the plain URL, and credentials in the environment"
        )
    return Url(f"{scheme}://{re.sub('/+', '/', rest).rstrip('/')}")
