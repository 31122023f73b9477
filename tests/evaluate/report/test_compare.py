import json
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
from made_results import TEXTS, made_latents, made_result, made_training
from rich.console import Console

from saeflow.errors import BadInputError
from saeflow.evaluate.compare import compare_results, write_comparison
from saeflow.evaluate.compare_table import comparison_table
from saeflow.evaluate.latents.files import write_latents
from saeflow.evaluate.like_for_like import differences


def scored(folder: Path, result: dict[str, Any] | None = None) -> Path:
    """A folder with a scores.json."""
    folder.mkdir(parents=True)
    (folder / "scores.json").write_text(json.dumps(result or made_result(folder.name)))
    return folder


def printed(results: list[dict[str, Any]]) -> str:
    console = Console(file=StringIO(), width=200)
    console.print(comparison_table(results))
    return console.file.getvalue()  # type: ignore[attr-defined,no-any-return]


def test_files_folders_and_runs_are_read(tmp_path: Path) -> None:
    run, alone = tmp_path / "run", scored(tmp_path / "alone")
    for name in ("a", "b"):
        scored(run / "sae" / name)
    comparison = compare_results([alone / "scores.json", run])
    assert [result["name"] for result in comparison.results] == ["alone", "a", "b"]
    assert comparison.notes == ()
    assert comparison.to_json()["results"][0] == made_result("alone")


def test_results_of_one_name_are_told_apart_by_their_paths(tmp_path: Path) -> None:
    first = scored(tmp_path / "first" / "sae" / "a")
    second = scored(tmp_path / "second" / "sae" / "a")
    other = scored(tmp_path / "b")
    names = [result["name"] for result in compare_results([first, second, other]).results]
    assert names == ["first/sae/a", "second/sae/a", "b"]


def test_curves_come_from_the_run(tmp_path: Path) -> None:
    run = tmp_path / "run"
    scored(run / "sae" / "a")
    lines = [{**line, "sae": name} for line in made_training(steps=40) for name in ("a", "mean")]
    (run / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    comparison = compare_results([run, scored(tmp_path / "b")])
    assert comparison.training == {"a": [line for line in lines if line["sae"] == "a"]}


def test_what_is_not_like_for_like_is_said() -> None:
    one, same = made_result("one"), made_result("same")
    other = made_result("other", model="gpt2", text={**one["text"], "tokens_scored": 1000})
    assert differences([one, same]) == []
    assert differences([one, same, other]) == [
        "not like for like, model differs: HuggingFaceTB/SmolLM2-135M (one, same); gpt2 (other)",
        "not like for like, tokens scored differs: 128,904 (one, same); 1,000 (other)",
    ]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "is no scores.json"),
        ("[]", "has schema None, and this saeflow reads 2"),
        (json.dumps(made_result(schema=1)), "has schema 1, and this saeflow reads 2"),
        (json.dumps(made_result(kl=3)), "is damaged, kl: "),
        (json.dumps({"schema": 2, "name": "a"}), "is damaged, it has no 'architecture'"),
    ],
)
def test_other_files_are_refused_in_one_line(tmp_path: Path, content: str, message: str) -> None:
    path = tmp_path / "scores.json"
    path.write_text(content)
    with pytest.raises(BadInputError, match=message) as refused:
        compare_results([path])
    assert str(path) in str(refused.value)
    assert "\n" not in str(refused.value)


def test_nothing_and_the_same_twice_are_refused(tmp_path: Path) -> None:
    with pytest.raises(BadInputError, match="nothing to compare"):
        compare_results([])
    with pytest.raises(BadInputError, match=r"holds no scores\.json"):
        compare_results([tmp_path])
    folder = scored(tmp_path / "a")
    with pytest.raises(BadInputError, match="given more than once"):
        compare_results([folder, folder / "scores.json"])


def test_a_folder_with_two_kinds_of_results_is_refused(tmp_path: Path) -> None:
    """Neither of them is to be left out without a word."""
    folder = scored(tmp_path / "all")
    for name in "abcd":
        scored(folder / name)
    with pytest.raises(BadInputError, match=r"own and those of a, b, c and 1 more: name the files"):
        compare_results([folder])
    assert len(compare_results([folder / "scores.json", folder / "a"]).results) == 2


def test_few_results_are_columns_and_many_are_rows() -> None:
    few = printed([made_result("one[bold]"), made_result("two", quality=0.5)])
    assert "one[bold]" in few.splitlines()[2]
    (score,) = [line for line in few.splitlines() if "reconstruction score" in line]
    assert "0.9300 (0.9260\N{EN DASH}0.9344)" in score
    assert "0.5000" in score
    many = printed([made_result(f"sae{at}", quality=0.9 - at / 100) for at in range(5)])
    (fourth,) = [line for line in many.splitlines() if "sae3" in line]
    assert "0.8700" in fourth


def test_a_score_that_is_missing_is_a_dash() -> None:
    none = {"value": None, "low": None, "high": None}
    score = {"ratio_of_sums": none, "mean_of_ratios": none, "items": 0, "left_out": 3}
    assert "-" in printed([made_result("one", scores={"zero": score})])


def test_the_page_of_a_comparison(tmp_path: Path) -> None:
    paths = [scored(tmp_path / "a"), scored(tmp_path / "b", made_result("b", model="gpt2"))]
    comparison = compare_results(paths)
    write_latents(made_latents(20), TEXTS, tmp_path / "a" / "latents.safetensors")
    write_comparison(comparison, tmp_path / "page.html")
    page = (tmp_path / "page.html").read_text()
    assert "<h1>2 results of HuggingFaceTB/SmolLM2-135M, gpt2</h1>" in page
    assert "not like for like, model differs" in page
    assert page.count('id="latents-') == 1
