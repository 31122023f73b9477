"""`saeflow verify`: every byte of a store is read, and what is not as it was written is named.

The manifest says what each file holds, and it and the root say what the other one
has to be. Nothing is opened that the walk over the store's own folders did not find.
"""

import errno
import json
import os
import stat
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from itertools import islice
from pathlib import Path
from threading import Lock
from typing import Any

import google_crc32c

from saeflow import console
from saeflow.errors import BadInputError
from saeflow.files import PARTIAL
from saeflow.harvest.commits import FOLDER, MANIFEST
from saeflow.harvest.damage import Problem, find_chunks, problem
from saeflow.harvest.locks import LOCK
from saeflow.harvest.manifest import ROOT, FileRecord, Manifest, read_manifest
from saeflow.harvest.store import open_store, unreadable
from saeflow.location import Place, Url, locate

_BLOCK = 4 * 2**20
"""Bytes that are read at once."""

_THREADS = 4
"""Files that are read at once: a disk is at its fastest with several requests in flight."""

_QUEUED = 1024
"""Files that wait for their turn at once."""


@dataclass(frozen=True)
class Verification:
    """What reading a whole store brought to light.

    Attributes:
        store: its folder.
        files: files that it has to have.
        bytes: of them together.
        problems: what is wrong, in the order of the files' names; empty if it is whole.
    """

    store: Path
    files: int
    bytes: int
    problems: tuple[Problem, ...]

    @property
    def whole(self) -> bool:
        """Whether the store is what was written, byte for byte."""
        return not self.problems

    def summary(self, repaired: int = 0) -> str:
        """One line for people.

        Args:
            repaired: how many files were made again before.
        """
        after = f", {repaired:,} repaired" if repaired else ""
        if self.whole:
            return f"store {self.store} is whole: {self.files:,} files, {self.bytes:,} bytes{after}"
        strange = [found for found in self.problems if found.kind == "foreign"]
        advice = ["take away what is foreign"] if strange else []
        if len(strange) < len(self.problems):
            advice.insert(0, f"run saeflow verify {self.store} --repair")
        n = len(self.problems)
        count = "one problem" if n == 1 else f"{n:,} problems"
        return f"store {self.store} has {count}: {', and '.join(advice)}"

    def to_json(self) -> dict[str, Any]:
        """What `--json` prints."""
        return {
            "store": str(self.store),
            "whole": self.whole,
            "files": self.files,
            "bytes": self.bytes,
            "problems": [found.to_json() for found in self.problems],
        }


def verify_store(place: Place) -> Verification:
    """Read a complete store and hold every byte of it against what was written.

    Args:
        place: its folder.

    Raises:
        BadInputError: there is no store, it may not be read, is incomplete, of a newer format,
            or its manifest is none that saeflow writes; or it is not on a file system.
    """
    path = locate(place)
    if isinstance(path, Url):
        raise BadInputError(f"store {path} is remote: copy it to a folder, then verify that")
    manifest, problems = examine_manifest(path)
    if manifest is None:
        return Verification(path, 0, 0, tuple(problems))
    walked = walk(path, manifest)
    problems += walked.problems
    total = sum(record.bytes for record in manifest.files.values())
    lock = Lock()
    with console.meter("verifying", total, "bytes") as meter, ThreadPoolExecutor(_THREADS) as pool:

        def advance(count: int) -> None:
            with lock:
                meter.advance(count)

        check = partial(check_file, path, manifest, walked.blocked, on_bytes=advance)
        for files in _batches(manifest.files.values()):
            for found in pool.map(check, files):
                problems += found
    own = sum(len(_read(path / file) or b"") for file in (ROOT, MANIFEST))
    problems.sort(key=lambda found: (found.file, found.chunks or (-1, -1)))
    return Verification(path, len(manifest.files) + 2, total + own, tuple(problems))


def examine_manifest(path: Path) -> tuple[Manifest | None, list[Problem]]:
    """A store's manifest, and what is wrong with it and with the root.

    Without a manifest nothing else can be checked.

    Raises:
        BadInputError: as `verify_store`.
    """
    _check_permission(path)
    manifest = read_manifest(path)
    root = _read(path / ROOT)
    if manifest is not None and manifest.fits(root):
        return manifest, []
    state = _state(root)
    if state in ("tokenizing", "writing") or (manifest is None and state is not None):
        open_store(path)  # refuses what is incomplete, or newer
    problems = []
    if manifest is None or manifest.found != manifest.encoded:
        detail = "" if manifest else "without it nothing else can be checked"
        problems.append(_own(path, MANIFEST, detail))
    if (root != manifest.encoded_root) if manifest else state is None:
        problems.append(_own(path, ROOT))
    if manifest is None and not os.path.lexists(path / MANIFEST) and state is None:
        open_store(path)  # refuses what is no store at all
    return manifest, problems


def _check_permission(path: Path) -> None:
    """Two files say what the store is: who may not read them can tell nothing of it."""
    for file in (ROOT, MANIFEST):
        try:
            with _opened(path / file):
                pass
        except PermissionError as error:
            raise unreadable(path, file, error) from error
        except OSError:
            continue  # which is a problem with the store


def _batches(records: Iterable[FileRecord]) -> Iterator[list[FileRecord]]:
    """As many files as are queued at once: a store may have a million."""
    left = iter(records)
    while batch := list(islice(left, _QUEUED)):
        yield batch


def _own(path: Path, file: str, detail: str = "") -> Problem:
    """The problem with one of the two files that vouch for the rest."""
    try:
        (path / file).read_bytes()
    except FileNotFoundError:
        return Problem(file=file, kind="missing", detail=detail)
    except OSError as error:
        return Problem(file=file, kind="unreadable", detail=_reason(error))
    return Problem(file=file, kind="damaged", detail=detail)


@dataclass(frozen=True)
class Walked:
    """What stands in a store's folders.

    Attributes:
        problems: what does not belong there, or stands where something else should be.
        blocked: folders of the store that can't be entered, and why.
    """

    problems: list[Problem] = field(default_factory=list)
    blocked: dict[str, Problem] = field(default_factory=dict)


def walk(path: Path, manifest: Manifest) -> Walked:
    """Look for what a store should not hold; links are never followed."""
    own = {ROOT, MANIFEST, f"{FOLDER}/{LOCK}"}
    files = {*manifest.files, *own}
    folders = _folders(files)
    walked = Walked()
    queue = ["."]
    while queue:
        folder = queue.pop()
        for name, mode in _entries(path, folder, walked):
            if name in folders:
                if stat.S_ISDIR(mode):
                    queue.append(name)
                else:
                    detail = f"a {_what(mode)} where a folder should be"
                    walked.blocked[name] = Problem(file=name, kind="not a file", detail=detail)
            elif name in own and not stat.S_ISREG(mode):
                detail = f"a {_what(mode)} where a file should be"
                walked.problems.append(Problem(file=name, kind="not a file", detail=detail))
            elif name not in files:
                walked.problems.append(_stranger(name, mode, files))
    walked.problems.extend(walked.blocked.values())
    return walked


def _folders(files: Iterable[str]) -> set[str]:
    """Every folder on the way to some files."""
    folders: set[str] = set()
    left = {file.rpartition("/")[0] for file in files} - {""}
    while left:
        folders |= left
        left = {folder.rpartition("/")[0] for folder in left} - folders - {""}
    return folders


def _stranger(name: str, mode: int, files: set[str]) -> Problem:
    """Something in a store's folder that the store does not have."""
    temporary = stat.S_ISREG(mode) and name.endswith(PARTIAL)
    ours = name.removesuffix(PARTIAL) in files or name.startswith(f"{FOLDER}/")
    if temporary and ours:
        return Problem(file=name, kind="left over", detail="a writer was interrupted")
    return Problem(file=name, kind="foreign", detail="" if stat.S_ISREG(mode) else _what(mode))


def check_file(
    path: Path,
    manifest: Manifest,
    blocked: Mapping[str, Problem],
    record: FileRecord,
    *,
    on_bytes: Callable[[int], None] = lambda _: None,
) -> list[Problem]:
    """Read one file and hold it against its record.

    Args:
        path: the store's folder.
        manifest: its manifest.
        blocked: folders that can't be entered.
        record: which file, and what it was.
        on_bytes: told how many bytes were read.
    """
    report = partial(problem, manifest, record)
    behind = [folder for folder in blocked if record.path.startswith(f"{folder}/")]
    if behind:
        return [report("unreadable", f"behind {behind[0]}")]
    try:
        with _opened(path / record.path) as descriptor:
            mode, size = os.fstat(descriptor).st_mode, os.fstat(descriptor).st_size
            if not stat.S_ISREG(mode):
                return [report("not a file", f"a {_what(mode)} where a file should be")]
            # A file of a length that no file of the store has is no other file, and may be huge.
            known = size in manifest.lengths
            content = (size, _crc32c(descriptor, on_bytes) if known else None)
    except FileNotFoundError:
        return [report("missing")]
    except OSError as error:
        if error.errno == errno.ELOOP:
            return [report("not a file", "a link where a file should be")]
        return [report("unreadable", _reason(error))]
    if content == (record.bytes, record.crc32c):
        return []
    other = manifest.by_content.get(content)
    if other is not None:
        return [report("swapped", f"it holds what {other} should")]
    sizes = f"{size:,} bytes of {record.bytes:,}"
    if size < record.bytes:
        whole = report("truncated", sizes)
    else:
        whole = report("too long", sizes) if size > record.bytes else report("damaged")
    return find_chunks(path, manifest, whole)


@contextmanager
def _opened(file: Path) -> Iterator[int]:
    """A descriptor, unless the file is a link; a pipe is not waited for."""
    descriptor = os.open(file, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def _crc32c(descriptor: int, on_bytes: Callable[[int], None]) -> int:
    crc = 0
    while block := os.read(descriptor, _BLOCK):
        crc = google_crc32c.extend(crc, block)
        on_bytes(len(block))
    return crc


def _entries(path: Path, folder: str, walked: Walked) -> Iterator[tuple[str, int]]:
    """What stands in a folder: paths relative to the store, and modes."""
    try:
        with os.scandir(path / folder) as found:
            entries = sorted(found, key=lambda entry: entry.name)
    except OSError as error:
        walked.blocked[folder] = Problem(file=folder, kind="unreadable", detail=_reason(error))
        return
    for entry in entries:
        name = entry.name if folder == "." else f"{folder}/{entry.name}"
        yield name, entry.stat(follow_symlinks=False).st_mode


def _what(mode: int) -> str:
    if stat.S_ISLNK(mode):
        return "link"
    if stat.S_ISDIR(mode):
        return "folder"
    return "file" if stat.S_ISREG(mode) else "special file"


def _reason(error: OSError) -> str:
    return error.strerror or type(error).__name__


def _read(path: Path) -> bytes | None:
    try:
        return path.read_bytes()
    except OSError:
        return None


def _state(root: bytes | None) -> str | None:
    """The state that a root's metadata claims, if it can be read at all."""
    try:
        return str(json.loads(root or b"")["attributes"]["saeflow"]["state"])
    except (ValueError, KeyError, TypeError, RecursionError):
        return None
