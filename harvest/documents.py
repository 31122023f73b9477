"""Where the text comes from: files, folders, Hugging Face datasets, or the built-in text."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np

from saeflow.errors import BadInputError, one_line
from saeflow.harvest import builtin
from saeflow.harvest.text_files import READERS

TOKEN_FIELD = "input_ids"  # noqa: S105  # no password
"""The field that holds token ids in an already tokenised dataset."""

_KINDS = {
    ".txt": "text",
    ".jsonl": "json",
    ".json": "json",
    ".csv": "csv",
    ".parquet": "parquet",
}
_SAVED_DATASET_FILES = ("dataset_info.json", "dataset_dict.json")

_SHOWN = 40
"""Characters of something wrong that a message shows."""


@dataclass(frozen=True)
class Document:
    """One document: its place in the dataset, and its text or its token ids."""

    index: int
    text: str | Sequence[int]

    def content_key(self) -> bytes:
        """What is hashed for the held-out choice: the text, or the token ids as uint32."""
        if isinstance(self.text, str):
            return self.text.encode("utf-8", "surrogatepass")
        return np.asarray(self.text, "<u4").tobytes()


def open_documents(
    dataset: str, *, split: str = "train", text_field: str = "text"
) -> Iterator[Document]:
    """Stream the documents of a dataset, in its own order.

    Args:
        dataset: `builtin`; a `.txt`, `.jsonl`, `.json`, `.csv` or `.parquet` file
            (in a `.txt` file, blank lines separate documents); a folder of such
            files, read in the order of their names, hidden ones left out; a folder
            written by `Dataset.save_to_disk`; or a name on the Hugging Face hub,
            streamed.
        split: which split of a saved or hub dataset.
        text_field: the field with the text. Where it is missing and `input_ids`
            is there, the rows are taken as already tokenised.

    Raises:
        BadInputError: there is no such dataset, it can't be read, or it has no
            such field.
    """
    if dataset == builtin.NAME:
        return (Document(i, text) for i, text in enumerate(builtin.builtin_documents()))
    return _documents(_open_rows(dataset, split), dataset, text_field)


def _documents(
    rows: Iterator[Mapping[str, Any]], dataset: str, text_field: str
) -> Iterator[Document]:
    index = -1
    while True:
        try:
            row = next(rows, None)
        except BadInputError as error:
            raise BadInputError(f"document {index + 1} of dataset {dataset}: {error}") from error
        except Exception as error:  # each file format has errors of its own
            raise BadInputError(
                f"dataset {dataset} can't be read from document {index + 1} on: {one_line(error)}"
            ) from error
        if row is None:
            return
        index += 1
        yield Document(index, _content(row, index, dataset, text_field))


def _content(
    row: Mapping[str, Any], index: int, dataset: str, text_field: str
) -> str | Sequence[int]:
    field = text_field if text_field in row or TOKEN_FIELD not in row else TOKEN_FIELD
    if field not in row:
        where = f"document {index} of dataset {dataset}" if index else f"dataset {dataset}"
        raise BadInputError(
            f"{where} has no field '{text_field}': name one of its fields "
            f"({', '.join(map(str, row))}) with --text-field"
        )
    content = row[field]
    if content is None:
        return ""
    wrong = _wrong_with(content)
    if wrong is not None:
        raise BadInputError(
            f"document {index} of dataset {dataset}: field '{field}' holds {wrong}: "
            "give text, or token ids from 0"
        )
    return "" if isinstance(content, str) and content.isspace() else content


def _wrong_with(content: Any) -> str | None:
    """Why something is neither text nor token ids, or None."""
    if isinstance(content, str):
        try:
            content.encode()
        except UnicodeEncodeError as error:
            half = ascii(content[error.start])
            return f"half a surrogate pair, {half} at character {error.start}"
        return None
    if not isinstance(content, list):
        return _shown(content)
    wrong = [i for i, token in enumerate(content) if type(token) is not int or token < 0]
    return f"{_shown(content[wrong[0]])} at place {wrong[0]} of a list" if wrong else None


def _shown(value: Any) -> str:
    told = repr(value)
    return f"{type(value).__name__} {told if len(told) <= _SHOWN else told[:_SHOWN] + '...'}"


def _open_rows(dataset: str, split: str) -> Iterator[Mapping[str, Any]]:
    path = Path(dataset).expanduser()
    saved = any((path / name).is_file() for name in _SAVED_DATASET_FILES)
    if not path.exists() and _looks_like_a_path(dataset):
        raise BadInputError(
            f"dataset {dataset} does not exist: check the path, or say with --dataset where it is"
        )
    if not path.exists() or saved:
        return _open_with_datasets(dataset, split, [])
    kind, files = _files_of_one_kind(path)
    if kind in READERS:
        return chain.from_iterable(map(READERS[kind], files))
    return _open_with_datasets(dataset, split, files)


def _open_with_datasets(
    dataset: str, split: str, parquet: Sequence[Path]
) -> Iterator[Mapping[str, Any]]:
    """Rows of Parquet files, or else of a saved dataset or one on the hub."""
    # Imported here: `datasets` takes a second, and text files don't need it.
    from datasets import Dataset, DatasetDict, load_dataset, load_from_disk, logging

    logging.set_verbosity(logging.CRITICAL)  # an error is told in one line, ours
    try:
        if parquet:
            names = [str(file) for file in parquet]
            return iter(load_dataset("parquet", data_files=names, split="train", streaming=True))
        if not Path(dataset).expanduser().exists():
            return iter(load_dataset(dataset, split=split, streaming=True))
        saved = load_from_disk(str(Path(dataset).expanduser()))
        if isinstance(saved, DatasetDict):
            if split not in saved:
                raise BadInputError(
                    f"dataset {dataset} has no split '{split}': it has {', '.join(saved)}"
                )
            saved = saved[split]
        assert isinstance(saved, Dataset)
        return iter(saved.with_format(None))  # plain lists, whatever format it was saved in
    except BadInputError:
        raise
    except Exception as error:  # the hub, the network, or the files' own errors
        raise BadInputError(f"dataset {dataset} can't be opened: {one_line(error)}") from error


def _files_of_one_kind(path: Path) -> tuple[str, list[Path]]:
    files = [path] if path.is_file() else sorted(p for p in path.rglob("*") if p.is_file())
    files = [p for p in files if p.suffix.lower() in _KINDS and not _is_hidden(p, path)]
    kinds = sorted({_KINDS[p.suffix.lower()] for p in files})
    if len(kinds) != 1:
        found = f"files of {len(kinds)} kinds ({', '.join(kinds)})" if kinds else "no files"
        raise BadInputError(
            f"dataset {path} holds {found} to read: give one of {', '.join(_KINDS)}, "
            "or a folder of one kind"
        )
    return kinds[0], files


def _is_hidden(file: Path, folder: Path) -> bool:
    """Whether a file in a folder, or any folder on the way to it, has a name with a dot first."""
    return any(part.startswith(".") for part in file.relative_to(folder).parts)


def _looks_like_a_path(name: str) -> bool:
    suffix = Path(name).suffix.lower()
    return name.startswith((".", "/", "~")) or name.count("/") > 1 or suffix in _KINDS
