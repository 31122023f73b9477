"""`saeflow compare` as its users meet it: a table, a page, and one line for bad input."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from made_results import made_result

Run = Callable[..., Any]


@pytest.fixture
def saved(tmp_path: Path) -> Callable[..., Path]:
    """Write a scores.json into a folder of a name; the folder."""

    def save(name: str, **other: Any) -> Path:
        folder = tmp_path / name
        folder.mkdir(parents=True)
        (folder / "scores.json").write_text(json.dumps(made_result(name, **other)))
        return folder

    return save


@pytest.fixture
def compare(run_cli: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    """Run `saeflow compare`, in a folder of its own."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "150")
    return lambda *paths, **flags: run_cli("compare", *paths, **flags)


def test_one_table_and_one_page(compare: Run, saved: Callable[..., Path], tmp_path: Path) -> None:
    outcome = compare(saved("one", quality=0.93), saved("two", quality=0.5))
    assert outcome.code == 0
    lines = outcome.out.splitlines()
    assert any("one" in line and "two" in line for line in lines)
    assert sum("reconstruction score" in line for line in lines) == 1
    assert "not like for like" not in outcome.out
    page = (tmp_path / "comparison.html").read_text()
    assert '"name":"one"' in page
    assert '"name":"two"' in page


def test_what_is_not_like_for_like_is_said(compare: Run, saved: Callable[..., Path]) -> None:
    outcome = compare(saved("one"), saved("two", model="another"))
    (note,) = [line for line in outcome.out.splitlines() if line.startswith("not like for like")]
    assert "model differs: " in note
    assert "another (two)" in note


def test_json_is_one_object(compare: Run, saved: Callable[..., Path], tmp_path: Path) -> None:
    one, two = saved("one"), saved("two")
    shown = json.loads(compare(one, two / "scores.json", "--json", out=tmp_path / "page.html").out)
    assert set(shown) == {"notes", "results"}
    assert [result["name"] for result in shown["results"]] == ["one", "two"]
    assert shown["results"][0] == json.loads((one / "scores.json").read_text())
    assert (tmp_path / "page.html").is_file()
    assert not (tmp_path / "comparison.html").exists()


def test_a_page_of_ours_is_replaced(compare: Run, saved: Callable[..., Path]) -> None:
    one, two = saved("one"), saved("two")
    assert compare(one).code == 0
    assert compare(one, two).code == 0
    assert '"name":"two"' in Path("comparison.html").read_text()


def test_another_file_is_replaced_only_when_asked_to(
    compare: Run, saved: Callable[..., Path]
) -> None:
    one = saved("one")
    Path("notes.html").write_text("mine")
    line = compare(one, out="notes.html").refusal()
    assert line.endswith(
        "notes.html is no page of saeflow's: name another --out, or replace it with --overwrite"
    )
    assert Path("notes.html").read_text() == "mine"
    assert compare(one, "--overwrite", out="notes.html").code == 0
    assert '"name":"one"' in Path("notes.html").read_text()


@pytest.mark.parametrize("more", [[], ["--overwrite"]])
def test_a_folder_is_no_page(compare: Run, saved: Callable[..., Path], more: list[str]) -> None:
    one = saved("one")
    assert "one is a folder: name a file" in compare(one, *more, out=one).refusal()


def test_a_page_below_a_file(compare: Run, saved: Callable[..., Path]) -> None:
    one = saved("one")
    line = compare(one, out=one / "scores.json" / "page.html").refusal()
    assert "page.html can't be written (" in line
    assert "name another file" in line


def test_nothing_to_compare(compare: Run, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    line = compare(tmp_path / "empty").refusal()
    assert "empty holds no scores.json: run saeflow evaluate on it first" in line
    assert "nowhere does not exist: check the path" in compare(tmp_path / "nowhere").refusal()
    assert compare().code == 2
    assert not (tmp_path / "comparison.html").exists()


@pytest.mark.parametrize(
    ("content", "told"),
    [
        ("not JSON", "is no scores.json"),
        ('{"schema": 1}', "has schema 1, and this saeflow reads 2"),
        ('{"schema": 2}', "is damaged"),
    ],
)
def test_a_file_of_something_else(
    compare: Run, saved: Callable[..., Path], content: str, told: str
) -> None:
    one, two = saved("one"), saved("two")
    (two / "scores.json").write_text(content)
    assert told in compare(one, two).refusal()
    assert not Path("comparison.html").exists()


def test_one_result_given_twice(compare: Run, saved: Callable[..., Path]) -> None:
    one = saved("one")
    assert "is given more than once" in compare(one, one / "scores.json").refusal()
