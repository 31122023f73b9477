"""Datasets of every kind, read as documents."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from datasets import Dataset, DatasetDict

from saeflow.errors import BadInputError
from saeflow.harvest.documents import Document, open_documents

TEXTS = ["one fish", "two fish\nin two lines", "Zürich, 3.14 €"]


def read(dataset: Path, **options: str) -> list[Any]:
    """The documents' contents, after a check that they are numbered from 0."""
    documents = list(open_documents(str(dataset), **options))
    assert [d.index for d in documents] == list(range(len(documents)))
    return [d.text for d in documents]


def jsonl(file: Path, texts: Sequence[object], field: str = "text") -> Path:
    file.write_text("".join(json.dumps({field: text}) + "\n" for text in texts), encoding="utf-8")
    return file


def table(texts: Sequence[object], field: str = "text") -> Dataset:
    return Dataset.from_dict({field: list(texts)})


def test_blank_lines_separate_the_documents_of_a_txt_file(tmp_path: Path) -> None:
    file = tmp_path / "a.txt"
    file.write_text("\n\n".join(TEXTS), encoding="utf-8")
    assert read(file) == TEXTS


def test_a_jsonl_file(tmp_path: Path) -> None:
    assert read(jsonl(tmp_path / "a.jsonl", TEXTS)) == TEXTS


def test_a_csv_file(tmp_path: Path) -> None:
    table(TEXTS).to_csv(tmp_path / "a.csv")
    assert read(tmp_path / "a.csv") == TEXTS


def test_a_parquet_file(tmp_path: Path) -> None:
    table(TEXTS).to_parquet(tmp_path / "a.parquet")
    assert read(tmp_path / "a.parquet") == TEXTS


def test_a_folder_is_read_in_the_order_of_its_names(tmp_path: Path) -> None:
    jsonl(tmp_path / "b.jsonl", ["third"])
    jsonl(tmp_path / "a.jsonl", ["first", "second"])
    jsonl(tmp_path / ".hidden.jsonl", ["never"])
    (tmp_path / "README.md").write_text("not data")
    assert read(tmp_path) == ["first", "second", "third"]


def test_a_saved_dataset(tmp_path: Path) -> None:
    table(TEXTS).save_to_disk(tmp_path / "saved")
    assert read(tmp_path / "saved") == TEXTS


def test_a_split_of_a_saved_dataset_dict(tmp_path: Path) -> None:
    DatasetDict({"train": table(["a"]), "test": table(["b"])}).save_to_disk(tmp_path / "saved")
    assert read(tmp_path / "saved") == ["a"]
    assert read(tmp_path / "saved", split="test") == ["b"]
    with pytest.raises(BadInputError, match="no split 'dev': it has train, test"):
        open_documents(str(tmp_path / "saved"), split="dev")


def test_tokenised_rows_are_taken_where_there_is_no_text(tmp_path: Path) -> None:
    tokens = [[3, 4, 5], [], [6]]
    table(tokens, "input_ids").save_to_disk(tmp_path / "saved")
    assert read(tmp_path / "saved") == tokens


def test_tokenised_rows_saved_in_a_tensor_format(tmp_path: Path) -> None:
    table([[3, 4, 5], [6]], "input_ids").with_format("numpy").save_to_disk(tmp_path / "saved")
    assert read(tmp_path / "saved") == [[3, 4, 5], [6]]


def test_the_text_field_can_be_another_one(tmp_path: Path) -> None:
    assert read(jsonl(tmp_path / "a.jsonl", TEXTS, "body"), text_field="body") == TEXTS


def test_the_builtin_text_is_the_same_each_time() -> None:
    documents = open_documents("builtin")
    first = [next(documents) for _ in range(5)]
    again = open_documents("builtin")
    assert first == [next(again) for _ in range(5)]
    assert [d.index for d in first] == [0, 1, 2, 3, 4]
    assert all(len(d.text) > 100 for d in first)


def test_nothing_and_white_space_are_empty_documents(tmp_path: Path) -> None:
    file = jsonl(tmp_path / "a.jsonl", ["a", None, " \n\t ", ""])
    assert read(file) == ["a", "", "", ""]


@pytest.mark.parametrize("wrong", [12, {"a": 1}, ["words"], [1, -2], b"bytes"])
def test_what_is_no_text_is_refused_by_its_number(tmp_path: Path, wrong: object) -> None:
    table([wrong]).save_to_disk(tmp_path / "saved")
    with pytest.raises(BadInputError, match=r"document 0 of dataset .*field 'text' holds"):
        read(tmp_path / "saved")


def test_a_missing_field_names_the_fields_there_are(tmp_path: Path) -> None:
    file = jsonl(tmp_path / "a.jsonl", TEXTS, "body")
    with pytest.raises(BadInputError, match=r"no field 'text'.*\(body\) with --text-field"):
        read(file)


def test_a_broken_line_is_refused_by_its_number(tmp_path: Path) -> None:
    file = tmp_path / "a.jsonl"
    file.write_text('{"text": "a"}\n{"text": ')
    with pytest.raises(BadInputError, match=r"document 1 of .*: line 2 of a\.jsonl is not JSON"):
        read(file)


def test_a_folder_of_two_kinds_is_refused(tmp_path: Path) -> None:
    jsonl(tmp_path / "a.jsonl", TEXTS)
    (tmp_path / "b.txt").write_text("text")
    with pytest.raises(BadInputError, match=r"files of 2 kinds \(json, text\)"):
        open_documents(str(tmp_path))


def test_a_folder_without_any_text_is_refused(tmp_path: Path) -> None:
    (tmp_path / "photo.png").write_bytes(b"")
    with pytest.raises(BadInputError, match="holds no files to read"):
        open_documents(str(tmp_path))


@pytest.mark.parametrize("name", ["/no/such/file.jsonl", "./folder", "missing.txt", "a/b/c"])
def test_a_missing_path_is_not_looked_for_on_the_hub(name: str) -> None:
    with pytest.raises(BadInputError, match="does not exist: check the path"):
        open_documents(name)


def test_a_hub_name_that_cannot_be_had_is_bad_input() -> None:
    with pytest.raises(BadInputError, match="nobody/nothing can't be opened"):
        open_documents("nobody/nothing")


def test_the_content_key_of_tokens_does_not_depend_on_their_container() -> None:
    keys = {Document(i, t).content_key() for i, t in enumerate([[1, 2], (1, 2)])}
    assert len(keys) == 1
    assert Document(0, "ü").content_key() == "ü".encode()
