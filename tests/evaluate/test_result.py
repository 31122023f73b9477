"""What an evaluation says: to machines, as JSON that comes back, and to people."""

import json
from dataclasses import replace
from typing import Any

import pytest
from made_results import made_result

from saeflow.evaluate.figures import Estimate
from saeflow.evaluate.report.schema import what_is_wrong
from saeflow.evaluate.result import EvaluationResult
from saeflow.evaluate.table import print_table

HOOK = "blocks.15.hook_resid_post"


@pytest.fixture
def result() -> EvaluationResult:
    return EvaluationResult.from_json(made_result("mine"))


@pytest.fixture
def without_score(result: EvaluationResult) -> EvaluationResult:
    nothing = Estimate(None, None, None)
    zero = replace(result.scores["zero"], ratio_of_sums=nothing, mean_of_ratios=nothing)
    return replace(result, name="untrained", scores={**result.scores, "zero": zero})


def with_dead(result: EvaluationResult, dead: int) -> EvaluationResult:
    return replace(result, sparsity=replace(result.sparsity, dead=dead))


def test_json_round_trip(result: EvaluationResult, without_score: EvaluationResult) -> None:
    for one in (result, without_score):
        text = json.dumps(one.to_json(), allow_nan=False)
        assert EvaluationResult.from_json(json.loads(text)) == one


def test_json_says_its_schema_and_the_verdict(result: EvaluationResult) -> None:
    scores = with_dead(result, 461).to_json()
    assert scores["schema"] == 2
    assert scores["dead_share"] == 461 / 4608
    assert scores["verdict"] == with_dead(result, 461).verdict
    assert scores["reconstruction_score"] == result.scores["zero"].ratio_of_sums.value


def test_a_page_takes_it(result: EvaluationResult) -> None:
    assert what_is_wrong(json.loads(json.dumps(result.to_json()))) is None


@pytest.mark.parametrize(
    ("path", "value", "told"),
    [
        (("schema",), 1, "its schema is 1, not 2"),
        (("sparsity", "l0"), None, "l0"),
        (("losses", "clean"), 2.9, "clean"),
        (("name",), 7, "name"),
        (("reconstructions",), [{}], "reconstructions"),
        (("reads",), "blocks.0.hook_resid_post", "reads"),
    ],
)
def test_other_json_is_refused(
    result: EvaluationResult, path: tuple[str, ...], value: Any, told: str
) -> None:
    scores = json.loads(json.dumps(result.to_json()))
    inner = scores
    for name in path[:-1]:
        inner = inner[name]
    inner[path[-1]] = value
    with pytest.raises(ValueError, match=told):
        EvaluationResult.from_json(scores)


def test_json_that_lacks_something_is_refused(result: EvaluationResult) -> None:
    scores = result.to_json()
    del scores["kl"]
    with pytest.raises(KeyError, match="kl"):
        EvaluationResult.from_json(scores)


def test_the_figures_most_asked_for_have_names(result: EvaluationResult) -> None:
    first = result.reconstructions[0]
    assert (result.fvu, result.row_fvu) == (first.fvu, first.row_fvu)
    assert (result.l0, result.dead) == (result.sparsity.l0, result.sparsity.dead)
    assert result.where == HOOK
    assert replace(result, replaces=("a", "b")).where == "a and b"


def test_the_verdict_is_one_line_with_the_score_and_its_interval(result: EvaluationResult) -> None:
    verdict = with_dead(result, 0).verdict
    score = result.scores["zero"].ratio_of_sums
    assert score.value is not None
    assert score.low is not None
    assert f"keeps {score.value:.1%} (95% interval {score.low:.1%} to " in verdict
    assert f"zero ablation at {HOOK} takes away" in verdict
    assert f"{result.text['tokens_scored']:,} held-out tokens" in verdict
    assert "never active" not in verdict
    assert "\n" not in verdict


def test_the_verdict_says_what_text_it_was(result: EvaluationResult) -> None:
    seen = replace(result, text={**result.text, "trained_on": True})
    assert "tokens that it was trained on" in seen.verdict
    assert "held-out" not in seen.verdict


def test_the_verdict_names_many_dead_latents(result: EvaluationResult) -> None:
    assert "30% of its latents are never active" in with_dead(result, 1382).verdict


def test_the_verdict_says_that_there_is_no_score(without_score: EvaluationResult) -> None:
    assert without_score.verdict.startswith(f"No score: zero ablation at {HOOK} costs")
    assert without_score.to_json()["reconstruction_score"] is None


def test_the_table_has_a_column_a_result(
    result: EvaluationResult,
    without_score: EvaluationResult,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("COLUMNS", "140")
    print_table({"trained": with_dead(result, 461), "[b]un&trained": without_score})
    lines = capsys.readouterr().out.splitlines()
    assert any("trained" in line and "[b]un&trained" in line for line in lines)
    rows = [line.replace("┃", "│").split("│") for line in lines]
    cells = {row[1].strip(): [cell.strip() for cell in row[2:4]] for row in rows if len(row) > 3}
    score = result.reconstruction_score
    assert cells["reconstruction score"][0].startswith(f"{score:.4f} (")
    assert cells["reconstruction score"][1] == "-"
    assert cells["dead latents"][0] == "461 of 4,608 (10.0%)"
    assert cells["FVU per row"][0] == f"{result.row_fvu:.4f}"
