"""What an evaluation says: to machines, as JSON that comes back, and to people."""

import json
from dataclasses import replace

import pytest

from saeflow.evaluate.result import EvaluationResult
from saeflow.evaluate.table import print_table


@pytest.fixture
def result() -> EvaluationResult:
    return EvaluationResult(
        name="mine",
        options={"sae": "/saes/mine", "tokens": 1000},
        model="tiny",
        hook_point="blocks.0.hook_resid_post",
        text={"source": "/store", "held_out_only": True, "tokens_scored": 12_345},
        positions={"replaced": "all but position 0"},
        losses={"clean": 3.0, "spliced": 3.25, "zero_ablated": 8.0},
        reconstruction_score=0.95,
        fvu=0.1,
        row_fvu=0.2,
        l0=31.5,
        dead=5,
        d_sae=100,
        versions={"saeflow": "0.1.0"},
    )


def test_json_round_trip(result: EvaluationResult) -> None:
    text = json.dumps(result.to_json(), allow_nan=False)
    assert EvaluationResult.from_json(json.loads(text)) == result


def test_json_says_its_schema_and_the_verdict(result: EvaluationResult) -> None:
    scores = result.to_json()
    assert scores["schema"] == 1
    assert scores["dead_share"] == 0.05
    assert scores["verdict"] == result.verdict


def test_other_json_is_refused(result: EvaluationResult) -> None:
    scores = result.to_json()
    del scores["l0"]
    with pytest.raises(KeyError, match="l0"):
        EvaluationResult.from_json(scores)


def test_the_verdict_is_one_line_with_the_score(result: EvaluationResult) -> None:
    assert "keeps 95.0% of what zero ablation" in result.verdict
    assert "12,345 held-out tokens" in result.verdict
    assert "never active" not in result.verdict
    assert "\n" not in result.verdict


def test_the_verdict_names_many_dead_latents(result: EvaluationResult) -> None:
    assert "30% of its latents are never active" in replace(result, dead=30).verdict


def test_the_verdict_says_that_there_is_no_score(result: EvaluationResult) -> None:
    without = replace(result, reconstruction_score=None)
    assert without.verdict.startswith("No score: zero ablation at blocks.0.hook_resid_post costs")
    assert without.to_json()["reconstruction_score"] is None


def test_the_table_has_a_column_a_result(
    result: EvaluationResult, capsys: pytest.CaptureFixture[str]
) -> None:
    print_table({"trained": result, "untrained": replace(result, reconstruction_score=None)})
    lines = capsys.readouterr().out.splitlines()
    cells = {line.split("│")[1].strip(): line.split("│")[2:4] for line in lines if "│" in line}
    assert [cell.strip() for cell in cells["reconstruction score"]] == ["0.9500", "-"]
    assert cells["dead latents"][0].strip() == "5 of 100 (5.0%)"
    assert cells["FVU per row"][0].strip() == "0.2000"
