"""Which kind of source a path is, told by its files, and the source opened."""

from collections.abc import Sequence
from pathlib import Path

from saeflow import console
from saeflow.errors import BadInputError
from saeflow.harvest.importing.array_files import open_array_files
from saeflow.harvest.importing.config import ImportConfig
from saeflow.harvest.importing.llamascopium import is_llamascopium, open_llamascopium
from saeflow.harvest.importing.saelens import INFO, STATE, open_saelens
from saeflow.harvest.importing.source import Source
from saeflow.harvest.importing.tensors import KINDS

_ENDINGS = ", ".join(KINDS)


def open_source(config: ImportConfig) -> Source:
    """Open what an import is from; reads its metadata, masks and shapes.

    Raises:
        BadInputError: it is not there, is of no kind that is known, or can't be read.
    """
    path = config.source.expanduser()
    if not path.exists():
        raise BadInputError(f"source {path} does not exist: check the path")
    if not (path.is_file() or path.is_dir()):
        raise BadInputError(f"source {path} is neither a file nor a folder: check the path")
    kind = config.format if config.format != "auto" else _kind(path)
    if kind in ("saelens", "llamascopium"):
        if not path.is_dir():
            raise BadInputError(f"--format {kind}: {path} is a file, and that is a folder")
        if config.key is not None:
            raise BadInputError(f"--key is not for --format {kind}: choose rows with --hook")
    if kind == "saelens":
        return _not_empty(open_saelens(path, hook=config.hook))
    if kind == "llamascopium":
        return _not_empty(open_llamascopium(path, hook=config.hook))
    files = _files(path, kind)
    return _not_empty(open_array_files(path, kind, files, hook=config.hook, key=config.key))


def _kind(path: Path) -> str:
    """The format of a source that nobody named."""
    if path.is_file():
        return _kind_of_file(path)
    if (path / "dataset_dict.json").is_file():
        raise BadInputError(f"{path} holds a dataset of several splits: give one of its folders")
    if (path / STATE).is_file() and (path / INFO).is_file():
        return "saelens"
    if (path / ".tmp_shards").is_dir():
        raise BadInputError(f"{path} holds only .tmp_shards: SAELens has not written it to the end")
    if is_llamascopium(path):
        return "llamascopium"
    files = [entry for entry in _entries(path) if entry.suffix.lower() in KINDS]
    kinds = sorted({KINDS[file.suffix.lower()] for file in files})
    if not kinds:
        raise BadInputError(
            f"{path} holds no activations: give {_ENDINGS} files, cached activations of SAELens, "
            "or chunks of llamascopium"
        )
    if len(kinds) > 1:
        raise BadInputError(
            f"{path} holds files of {len(kinds)} kinds ({', '.join(kinds)}): "
            "choose one with --format"
        )
    return kinds[0]


def _kind_of_file(path: Path) -> str:
    if path.suffix.lower() not in KINDS:
        raise BadInputError(f"{path} is none of {_ENDINGS}: convert it to one of them")
    return KINDS[path.suffix.lower()]


def _files(path: Path, kind: str) -> Sequence[Path]:
    """The files of one kind, in the order of their names; tells what else is there."""
    if path.is_file():
        if _kind_of_file(path) != kind:
            raise BadInputError(f"--format {kind}: {path} is a file of another kind")
        return [path]
    entries = _entries(path)
    files = [e for e in entries if e.is_file() and KINDS.get(e.suffix.lower()) == kind]
    if not files:
        raise BadInputError(f"{path} holds no file of --format {kind}: check the path")
    others = [entry.name for entry in entries if entry not in files]
    if others:
        told = ", ".join(others[:3]) + (", ..." if len(others) > 3 else "")
        console.warn(f"{path} holds {len(others)} more, not imported: {told}")
    return files


def _entries(path: Path) -> list[Path]:
    return sorted(entry for entry in path.iterdir() if not entry.name.startswith("."))


def _not_empty(source: Source) -> Source:
    if source.n_rows == 0:
        masked = f" but {source.masked:,} masked ones" if source.masked else ""
        raise BadInputError(f"{source.path} holds no rows{masked}: there is nothing to import")
    return source
