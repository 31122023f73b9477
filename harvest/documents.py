"""Where the text comes from: files, folders, Hugging Face datasets, or the built-in text."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from saeflow.errors import BadInputError, one_line
from saeflow.harvest import builtin

TOKEN_FIELD = "input_ids"  # noqa: S105  # no password
"""The field that holds token ids in an already tokenised dataset."""

_BUILDERS = {
    ".txt": "text",
    ".jsonl": "json",
    ".json": "json",
    ".csv": "csv",
    ".parquet": "parquet",
}
_SAVED_DATASET_FILES = ("dataset_info.json", "dataset_dict.json")


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
            files, read in the order of their names; a folder written by
            `Dataset.save_to_disk`; or a name on the Hugging Face hub, streamed.
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
        raise BadInputError(
            f"dataset {dataset} has no field '{text_field}': name one of its fields "
            f"({', '.join(map(str, row))}) with --text-field"
        )
    content = row[field]
    if content is None:
        return ""
    if isinstance(content, str):
        return "" if content.isspace() else content
    if isinstance(content, list) and all(type(token) is int and token >= 0 for token in content):
        return content
    raise BadInputError(
        f"document {index} of dataset {dataset}: field '{field}' holds {type(content).__name__}, "
        "where text or token ids are needed"
    )


def _open_rows(dataset: str, split: str) -> Iterator[Mapping[str, Any]]:
    # Imported here: `datasets` takes a second, and the built-in text doesn't need it.
    from datasets import Dataset, DatasetDict, load_dataset, load_from_disk, logging

    logging.set_verbosity(logging.CRITICAL)  # an error is told in one line, ours
    path = Path(dataset).expanduser()
    try:
        if any((path / name).is_file() for name in _SAVED_DATASET_FILES):
            saved = load_from_disk(str(path))
            if isinstance(saved, DatasetDict):
                if split not in saved:
                    raise BadInputError(
                        f"dataset {dataset} has no split '{split}': it has {', '.join(saved)}"
                    )
                saved = saved[split]
            assert isinstance(saved, Dataset)
            return iter(saved.with_format(None))  # plain lists, whatever format it was saved in
        if path.exists():
            return iter(_open_files(path, load_dataset))
        if _looks_like_a_path(dataset):
            raise BadInputError(f"dataset {dataset} does not exist: check the path")
        return iter(load_dataset(dataset, split=split, streaming=True))
    except BadInputError:
        raise
    except Exception as error:  # the hub, the network, or the files' own errors
        raise BadInputError(f"dataset {dataset} can't be opened: {one_line(error)}") from error


def _open_files(path: Path, load_dataset: Any) -> Any:
    files = [path] if path.is_file() else sorted(p for p in path.rglob("*") if p.is_file())
    files = [p for p in files if p.suffix in _BUILDERS and not p.name.startswith(".")]
    kinds = sorted({_BUILDERS[p.suffix] for p in files})
    if len(kinds) != 1:
        found = f"files of {len(kinds)} kinds ({', '.join(kinds)})" if kinds else "no files"
        raise BadInputError(
            f"dataset {path} holds {found} to read: give one of {', '.join(_BUILDERS)}, "
            "or a folder of one kind"
        )
    files = [p for p in files if p.stat().st_size]
    if not files:  # the readers of jsonl and csv fail on an empty file
        return []
    options = {"sample_by": "paragraph"} if kinds == ["text"] else {}
    return load_dataset(
        kinds[0], data_files=[str(p) for p in files], split="train", streaming=True, **options
    )


def _looks_like_a_path(name: str) -> bool:
    return name.startswith((".", "/", "~")) or name.count("/") > 1 or Path(name).suffix in _BUILDERS
