"""Text files into rows, one a document: exactly what a file says, or the line that is wrong.

Readers that guess types make a date of `"2020-01-01"` and nothing of `NA`, and name the
block that holds a broken line, not the line. These read text, and nothing else.
"""

import csv
import json
import sys
from collections.abc import Callable, Iterator, Mapping
from itertools import chain
from pathlib import Path
from typing import Any

from saeflow.errors import BadInputError

Row = Mapping[str, Any]
"""The fields of one document."""

_TEXT = "text"
"""The field of a document that comes without a field's name."""


def read_text(file: Path) -> Iterator[Row]:
    """The documents of a `.txt` file: lines without anything but spaces stand between them.

    Raises:
        BadInputError: a line is not UTF-8.
    """
    lines: list[str] = []
    for _, line in _lines(file):
        if line.strip(" \t\r\n"):
            lines.append(line)
        elif lines:
            yield {_TEXT: _without_last_line_end(lines)}
            lines = []
    if lines:
        yield {_TEXT: _without_last_line_end(lines)}


def read_json(file: Path) -> Iterator[Row]:
    """The rows of a file of JSON lines, or of a `.json` file that is one list or one object.

    Raises:
        BadInputError: a line is not JSON, or not UTF-8.
    """
    lines = ((number, line) for number, line in _lines(file) if line.strip())
    first = next(lines, None)
    if first is None:
        return
    if file.suffix.lower() == ".json" and not _is_an_object(first[1]):
        text = "".join(line for _, line in _lines(file))
        whole = _parse(text, 1, file)
        yield from map(_row, whole if isinstance(whole, list) else [whole])
        return
    for number, line in chain([first], lines):
        yield _row(_parse(line.rstrip(), number, file))


def read_csv(file: Path) -> Iterator[Row]:
    """The rows of a comma-separated file under its header, every field as text.

    Raises:
        BadInputError: a row is not as long as the header, quotes don't close, or a
            line is not UTF-8.
    """
    csv.field_size_limit(sys.maxsize)  # the library's own limit is 128 KiB, the process over
    reader = csv.reader((line for _, line in _lines(file)), strict=True)
    try:
        header = next(reader, [])
        for row in reader:
            if row and len(row) != len(header):
                raise BadInputError(
                    f"the number of fields on line {reader.line_num} of {file.name} is {len(row)}, "
                    f"and of its header {len(header)}: put text that holds commas into quotes"
                )
            if row:
                yield dict(zip(header, row, strict=True))
    except csv.Error as error:
        raise BadInputError(
            f"line {reader.line_num} of {file.name} is not CSV ({error}): mend its quotes"
        ) from error


READERS: Mapping[str, Callable[[Path], Iterator[Row]]] = {
    "text": read_text,
    "json": read_json,
    "csv": read_csv,
}
"""By the name that `datasets` has for the kind of file."""


def _lines(file: Path) -> Iterator[tuple[int, str]]:
    """Lines with their ends as they are, numbered from 1; a byte order mark is no text."""
    with file.open("rb") as opened:
        for number, line in enumerate(opened, start=1):
            try:
                yield number, line.decode("utf-8-sig" if number == 1 else "utf-8")
            except UnicodeDecodeError as error:
                raise BadInputError(
                    f"line {number} of {file.name} is not UTF-8 at its byte {error.start + 1}: "
                    "save the file as UTF-8"
                ) from error


def _without_last_line_end(lines: list[str]) -> str:
    return "".join(lines).removesuffix("\n").removesuffix("\r")


def _is_an_object(line: str) -> bool:
    try:
        return isinstance(json.loads(line), dict)
    except (ValueError, RecursionError):
        return False


def _parse(text: str, number: int, file: Path) -> Any:
    """JSON that begins in a line."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        why, line = str(error), number
        if isinstance(error, json.JSONDecodeError):
            why, line = f"{error.msg}, column {error.colno}", number + error.lineno - 1
        raise BadInputError(
            f"line {line} of {file.name} is not JSON ({why}): mend it, or take it out"
        ) from error


def _row(value: Any) -> Row:
    return value if isinstance(value, dict) else {_TEXT: value}
