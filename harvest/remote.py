"""Objects behind a URL, read and written through obstore; an optional extra of saeflow.

Objects are written whole or not at all, and once: that is what commits are made of
here, instead of renames. Reading asks only for objects whose names are known, since
a web server has no list of them. Credentials, region and endpoint come from the
environment, under the names that everybody's tools use (`AWS_*`, `GOOGLE_*`).
"""

import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Any

from saeflow.errors import BadInputError, SaeflowError
from saeflow.location import Url

_CLIENT = {"timeout": timedelta(hours=1), "read_timeout": timedelta(minutes=2)}
"""A large object may take its time; a server that has stopped answering may not."""

_RETRY = {"max_retries": 10, "retry_timeout": timedelta(minutes=3)}

_ENDPOINTS = ("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL", "AWS_ENDPOINT")
_METADATA_SERVICE = "169.254.169.254"
"""Where a cloud's own machines find credentials: asked only if there are no others."""

_BEYOND_END = "416 Range Not Satisfiable"
_NOT_FOUND = "404 Not Found"


Version = Any
"""What obstore tells versions of an object apart by: an entity tag, or GCS's generation."""


@dataclass
class RemoteFile:
    """An object that is read in parts.

    Attributes:
        path: its URL.
        size: its length in bytes.
    """

    path: str
    size: int
    _remote: "Remote" = field(repr=False)
    _name: str = field(repr=False)
    chunks: Any = None
    """Where its chunks are, once a reader has looked."""

    def read(self, offset: int, length: int) -> bytes:
        """Some of its bytes.

        Raises:
            SaeflowError: it ends before that, or the server fails.
        """
        return self._remote.read_range(self._name, offset, length)


@dataclass(frozen=True)
class Remote:
    """The objects below a URL, by name. Every failure is one line that names the URL.

    Attributes:
        url: what their names are relative to.
        store: obstore's own handle, an `obstore.store.ObjectStore`.
    """

    url: Url
    store: Any = field(repr=False, compare=False)

    def read(self, name: str) -> bytes | None:
        """An object's content; None if it does not exist.

        Raises:
            BadInputError: it may not be read.
            SaeflowError: the server can't be reached, or fails.
        """
        import obstore

        with self.told(name):
            try:
                return bytes(obstore.get(self.store, name).bytes())
            except FileNotFoundError:
                return None

    def read_range(self, name: str, start: int, length: int) -> bytes:
        """Some bytes of an object.

        Raises:
            BadInputError: it may not be read.
            SaeflowError: it does not exist, or ends before that, or the server fails.
        """
        import obstore
        from obstore.exceptions import BaseError

        if length == 0:
            return b""
        found = b""
        with self.told(name):
            try:
                found = bytes(obstore.get_range(self.store, name, start=start, length=length))
            except BaseError as error:
                if _BEYOND_END not in str(error):
                    raise
        if len(found) != length:
            raise SaeflowError(
                f"{self.url}/{name} ends before byte {start + length}: "
                "check the store with saeflow verify"
            )
        return found

    def size(self, name: str) -> int:
        """Bytes of an object.

        Raises:
            BadInputError: it may not be read.
            SaeflowError: it does not exist, or the server fails.
        """
        import obstore

        with self.told(name):
            return int(obstore.head(self.store, name)["size"])

    def file(self, name: str) -> RemoteFile:
        """An object that is to be read in parts.

        Raises:
            BadInputError: it may not be read.
            SaeflowError: it does not exist, or the server fails.
        """
        return RemoteFile(f"{self.url}/{name}", self.size(name), self, name)

    def put(self, name: str, content: bytes | Path) -> None:
        """Write an object, in the place of another of that name.

        Args:
            name: relative to the URL.
            content: bytes, or the file that holds them.

        Raises:
            BadInputError: it may not be written.
            SaeflowError: the bucket does not exist, or the server fails.
        """
        import obstore

        with self.told(name, doing="written"):
            obstore.put(self.store, name, content)

    def create(self, name: str, content: bytes) -> bool:
        """Write an object that nobody else has written; whether that was so.

        Raises:
            BadInputError: it may not be written.
            SaeflowError: the bucket does not exist, or the server fails.
        """
        import obstore
        from obstore.exceptions import AlreadyExistsError

        with self.told(name, doing="written"):
            try:
                obstore.put(self.store, name, content, mode="create")
            except AlreadyExistsError:
                return False
        return True

    def read_version(self, name: str) -> tuple[bytes, Version] | None:
        """An object's content and which version it is; None if it does not exist.

        Raises:
            BadInputError: it may not be read.
            SaeflowError: the server can't be reached, or fails.
        """
        import obstore

        with self.told(name):
            try:
                found = obstore.get(self.store, name)
                told = {"e_tag": found.meta["e_tag"], "version": found.meta["version"]}
                version = {name: tag for name, tag in told.items() if tag is not None}
                return bytes(found.bytes()), version
            except FileNotFoundError:
                return None

    def replace(self, name: str, content: bytes, version: Version) -> bool:
        """Write an object in the place of one version of it; whether that still was there.

        Raises:
            BadInputError: it may not be written.
            SaeflowError: the bucket does not exist, or the server fails.
        """
        import obstore
        from obstore.exceptions import PreconditionError

        with self.told(name, doing="written"):
            try:
                obstore.put(self.store, name, content, mode=version)
            except (PreconditionError, FileNotFoundError):
                return False
        return True

    def names(self, folder: str | None = None) -> Iterator[str]:
        """The names of the objects in a folder, those of its folders too; of all, if not given.

        Raises:
            BadInputError: they may not be listed.
            SaeflowError: the bucket does not exist, or the server fails.
        """
        import obstore

        with self.told(folder or "", doing="listed"):
            for part in obstore.list(self.store, prefix=folder):
                yield from (found["path"] for found in part)

    def delete(self, names: Iterable[str]) -> None:
        """Remove objects; those that don't exist are no error.

        Raises:
            BadInputError: they may not be removed.
            SaeflowError: the server fails.
        """
        import obstore

        listed = list(names)
        with self.told(listed[0] if listed else "", doing="removed"):
            try:
                if listed:
                    obstore.delete(self.store, listed)
            except FileNotFoundError:  # S3 does not mind; GCS does, and leaves the others
                for name in listed:
                    with suppress(FileNotFoundError):
                        obstore.delete(self.store, name)

    @contextmanager
    def told(self, name: str, *, doing: str = "read") -> Iterator[None]:
        """Tell in saeflow's words what obstore failed at."""
        from obstore import exceptions

        url = self.url / name if name else self.url
        try:
            yield
        except FileNotFoundError as error:
            what = "the bucket" if doing != "read" else "the object"
            raise SaeflowError(f"{url} can't be {doing}: {what} does not exist") from error
        except (exceptions.PermissionDeniedError, exceptions.UnauthenticatedError) as error:
            raise BadInputError(
                f"{url} can't be {doing}: access is denied; check {_credentials(self.url)}"
            ) from error
        except exceptions.NotSupportedError as error:
            raise SaeflowError(
                f"{url} can't be {doing}: its server does not do what that needs "
                f"({_short(error)}): copy the store to another one"
            ) from error
        except exceptions.BaseError as error:
            if doing == "listed" and _NOT_FOUND in str(error):
                raise SaeflowError(f"{url} can't be listed: the bucket does not exist") from error
            if _METADATA_SERVICE in str(error):
                raise BadInputError(
                    f"{url} can't be {doing}: there are no credentials; "
                    f"set {_credentials(self.url)}"
                ) from error
            raise SaeflowError(
                f"{url} can't be {doing}: {_short(error)}: check the network and the URL, "
                "then run again"
            ) from error


def connect(url: Url) -> Remote:
    """The objects below a URL; no request is made yet.

    Raises:
        BadInputError: obstore is not installed, or does not take the URL or what the
            environment says of it.
    """
    try:
        from obstore.exceptions import BaseError
        from obstore.store import GCSStore, HTTPStore, S3Store
    except ImportError as error:
        raise BadInputError(
            f"{url.scheme}:// needs the extra: pip install 'saeflow[remote]'"
        ) from error
    kind: Any = {"s3": S3Store, "gs": GCSStore}.get(url.scheme, HTTPStore)
    client = {**_CLIENT, "allow_http": _unencrypted(url)}
    try:
        return Remote(url, kind.from_url(str(url), client_options=client, retry_config=_RETRY))
    except (BaseError, ValueError) as error:
        raise BadInputError(f"{url} can't be used: {_short(error)}") from error


def _unencrypted(url: Url) -> bool:
    """Whether the user has said that plain http will do."""
    if url.scheme == "s3":
        endpoints = [os.environ.get(name, "") for name in _ENDPOINTS]
        return any(e.startswith("http://") for e in endpoints) or _is_set("AWS_ALLOW_HTTP")
    return _is_set("GOOGLE_ALLOW_HTTP") if url.scheme == "gs" else url.scheme == "http"


def _is_set(variable: str) -> bool:
    return os.environ.get(variable, "").lower() in ("1", "true", "yes")


def _credentials(url: Url) -> str:
    """What to look at when a server does not let us in."""
    return {
        "s3": "AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY and AWS_REGION, or for a public "
        "bucket AWS_SKIP_SIGNATURE=true",
        "gs": "GOOGLE_APPLICATION_CREDENTIALS, or for a public bucket GOOGLE_SKIP_SIGNATURE=true",
    }.get(url.scheme, "the URL, saeflow sends no credentials to web servers")


def _short(error: Exception) -> str:
    """The end of the first line of what obstore says, without times and the answer's body."""
    first = str(error).partition("\n")[0].partition(": <")[0]
    return first.rpartition(" - ")[2].strip().rstrip(".:")[:200]
