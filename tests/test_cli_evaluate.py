"""`saeflow evaluate` as its users meet it: results, and one line for every kind of bad input."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from transformers import LlamaConfig, LlamaForCausalLM

from saeflow.train.config import TrainConfig
from saeflow.train.run import train_sae

HOOK = "blocks.0.hook_resid_post"
Run = Callable[..., Any]


@pytest.fixture(scope="module")
def trained_run(tiny_store: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run. Don't write to it: `sae` is a copy."""
    out = tmp_path_factory.mktemp("trained") / "run"
    train_sae(
        TrainConfig(
            store=tiny_store, out=out, hook=(HOOK,), d_sae=48, k=8, tokens=4096, device="cpu"
        )
    )
    return out


@pytest.fixture
def sae(trained_run: Path, tmp_path: Path) -> Path:
    (folder,) = (trained_run / "sae").iterdir()
    return Path(shutil.copytree(folder, tmp_path / "sae"))


@pytest.fixture
def evaluate(run_cli: Run, sae: Path) -> Run:
    """Run `saeflow evaluate` on `sae`; keywords are flags, None leaves one out."""

    def run(*more: object, sae: object = sae, **flags: object) -> Any:
        given = {"tokens": 320, "device": "cpu", "latents": "0-3", **flags}
        return run_cli("evaluate", sae, *more, **given)

    return run


@pytest.fixture
def run_of_two(trained_run: Path, tmp_path: Path) -> Path:
    """A run folder with two SAEs, `a` and `b`."""
    (folder,) = (trained_run / "sae").iterdir()
    for name in ("a", "b"):
        shutil.copytree(folder, tmp_path / "run" / "sae" / name)
    return tmp_path / "run"


def change_cfg(sae: Path, **changed: Any) -> None:
    cfg = json.loads((sae / "cfg.json").read_text())
    (sae / "cfg.json").write_text(json.dumps({**cfg, **changed}))


def change_provenance(sae: Path, **changed: Any) -> None:
    """Let an SAE say something else of what it was made from; None: nothing."""
    cfg = json.loads((sae / "cfg.json").read_text())
    provenance = cfg["metadata"]["saeflow"]["store"]["provenance"]
    model = changed.pop("model", {})
    provenance |= changed
    provenance["model"] |= model
    (sae / "cfg.json").write_text(json.dumps(cfg))


def files(folder: Path) -> list[Path]:
    return sorted(folder.rglob("*"))


# Results.


def test_a_table_and_one_line_of_verdict(evaluate: Run, sae: Path) -> None:
    outcome = evaluate()
    assert outcome.code == 0
    table, verdict = outcome.out.splitlines()[:-1], outcome.out.splitlines()[-1]
    for label in ("reconstruction score", "KL divergence", "FVU per row", "dead latents"):
        assert sum(label in line for line in table) == 1
    assert verdict == json.loads((sae / "scores.json").read_text())["verdict"]


def test_json_is_one_object_the_content_of_scores_json(evaluate: Run, sae: Path) -> None:
    shown = json.loads(evaluate("--json").out)
    assert shown == json.loads((sae / "scores.json").read_text())
    assert shown["text"]["sequences"] == 20
    assert shown["options"]["tokens"] == 320


def test_a_run_folder_is_taken_for_its_sae(
    evaluate: Run, trained_run: Path, tmp_path: Path
) -> None:
    copy = shutil.copytree(trained_run, tmp_path / "run")
    assert evaluate(sae=copy).code == 0
    assert len(list(copy.glob("sae/*/scores.json"))) == 1


def test_json_of_several_is_one_object_with_all(evaluate: Run, run_of_two: Path) -> None:
    outcome = evaluate("--json", sae=run_of_two)
    shown = json.loads(outcome.out)
    assert list(shown) == ["saes"]
    assert shown["saes"] == [
        json.loads((run_of_two / "sae" / name / "scores.json").read_text()) for name in ("a", "b")
    ]
    assert (run_of_two / "report.html").is_file()


def test_several_are_one_table_and_a_verdict_each(evaluate: Run, run_of_two: Path) -> None:
    outcome = evaluate(sae=run_of_two)
    *table, first, second = outcome.out.splitlines()
    verdicts = [
        json.loads((run_of_two / "sae" / name / "scores.json").read_text())["verdict"]
        for name in ("a", "b")
    ]
    assert [first, second] == verdicts
    assert sum("KL divergence" in line for line in table) == 1


def test_what_is_written_may_be_less(evaluate: Run, sae: Path) -> None:
    assert evaluate("--no-report", latents="none").code == 0
    assert (sae / "scores.json").is_file()
    assert not (sae / "report.html").exists()
    assert not (sae / "latents.safetensors").exists()


def test_positions_ablation_and_precision_are_options(evaluate: Run) -> None:
    outcome = evaluate(
        *("--json", "--resample", "--no-report"),
        replace="all",
        score="no-first",
        dtype="bfloat16",
        seed=3,
    )
    shown = json.loads(outcome.out)
    assert list(shown["scores"]) == ["zero", "mean", "resample"]
    assert shown["text"]["rows_replaced"] == 20 * 17
    assert shown["text"]["tokens_scored"] == 20 * 15
    assert [mismatch["field"] for mismatch in shown["mismatches"]] == ["dtype"]
    assert shown["options"]["seed"] == 3


def test_again_says_that_it_is_complete_already(evaluate: Run) -> None:
    first = evaluate()
    again = evaluate()
    assert (again.code, again.out) == (0, first.out)
    assert "is complete already" in again.err


def test_overwrite_scores_again(evaluate: Run) -> None:
    evaluate()
    assert json.loads(evaluate("--json", "--overwrite", tokens=160).out)["text"]["sequences"] == 10


def test_out_takes_the_scores(evaluate: Run, sae: Path, tmp_path: Path) -> None:
    assert evaluate(out=tmp_path / "scores").code == 0
    assert (tmp_path / "scores" / "scores.json").is_file()
    assert not (sae / "scores.json").exists()


def test_a_dry_run_writes_nothing(evaluate: Run, sae: Path) -> None:
    before = sorted(sae.iterdir())
    outcome = evaluate("--dry-run")
    assert outcome.code == 0
    assert "tokens = 320" in outcome.out
    assert "# clean_passes: 1" in outcome.out
    assert f"['{HOOK}']" in outcome.out
    assert sorted(sae.iterdir()) == before
    assert json.loads(evaluate("--dry-run", "--json").out)["cost"]["saes"][0]["d_sae"] == 48


def test_text_and_model_may_be_named(evaluate: Run, tiny_model: Path, tiny_text: Path) -> None:
    shown = json.loads(evaluate("--json", model=tiny_model, dataset=tiny_text).out)
    assert shown["text"]["source"] == str(tiny_text)
    assert shown["model"] == str(tiny_model)


# Bad input.


def test_a_missing_sae_folder(evaluate: Run) -> None:
    line = evaluate(sae="/no/such/sae").refusal()
    assert line == "saeflow: SAE folder /no/such/sae does not exist: check the path"


def test_a_folder_without_an_sae(evaluate: Run, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    assert (
        "holds no SAE: give an SAE folder, or a run" in evaluate(sae=tmp_path / "empty").refusal()
    )


def test_a_run_that_was_not_finished(evaluate: Run, tmp_path: Path) -> None:
    unfinished = tmp_path / "run" / "sae" / "one.partial"
    unfinished.mkdir(parents=True)
    (unfinished / "cfg.json").write_text("{}")
    assert "holds no SAE" in evaluate(sae=tmp_path / "run").refusal()


def test_an_sae_of_another_width_than_the_models(
    evaluate: Run, sae: Path, tiny_model: Path, tmp_path: Path
) -> None:
    wider = shutil.copytree(tiny_model, tmp_path / "wider")
    config = LlamaConfig.from_pretrained(str(tiny_model))
    config.hidden_size, config.head_dim = 64, 16
    LlamaForCausalLM(config).save_pretrained(wider)
    allowed = ("--allow-mismatch", "model", "--allow-mismatch", "model-config")
    line = evaluate(*allowed, model=wider).refusal()
    assert f"width differs: SAE sae has d_in 32, but {HOOK} of {wider} has 64" in line
    assert "evaluate it on the model that it was trained on" in line
    assert not (sae / "scores.json").exists()


@pytest.mark.parametrize("what", ["missing", "without weights"])
def test_a_model_that_is_not_there(evaluate: Run, sae: Path, tmp_path: Path, what: str) -> None:
    folder = tmp_path / "model"
    if what == "without weights":
        folder.mkdir()
        (folder / "config.json").write_text("{}")
    line = evaluate(model=folder).refusal()
    assert f"model folder {folder} " in line
    assert not (sae / "scores.json").exists()


def test_a_dataset_that_is_not_there(evaluate: Run, sae: Path) -> None:
    line = evaluate(dataset="/no/such/text.jsonl").refusal()
    told = "does not exist: check the path, or say with --dataset where it is"
    assert line == f"saeflow: dataset /no/such/text.jsonl {told}"
    assert not (sae / "scores.json").exists()


def test_a_dataset_without_the_text_field(evaluate: Run, tiny_text: Path) -> None:
    line = evaluate(dataset=tiny_text, text_field="content").refusal()
    assert "has no field 'content': name one of its fields (text) with --text-field" in line


@pytest.mark.parametrize("content", ["", '{"text": ""}\n', '{"text": "one short document"}\n'])
def test_a_dataset_with_nothing_to_evaluate_on(
    evaluate: Run, sae: Path, tmp_path: Path, content: str
) -> None:
    (tmp_path / "text.jsonl").write_text(content)
    line = evaluate(dataset=tmp_path / "text.jsonl").refusal()
    assert "dataset" in line
    assert "--context-size" not in line  # `saeflow evaluate` has no such option
    assert not (sae / "scores.json").exists()


def test_weights_that_were_damaged(evaluate: Run, sae: Path) -> None:
    weights = sae / "sae_weights.safetensors"
    content = weights.read_bytes()
    weights.write_bytes(content[:-4000] + bytes(4000))
    outcome = evaluate()
    assert outcome.code == 1
    assert "fails its self-test" in outcome.err.splitlines()[-1]
    assert not (sae / "scores.json").exists()


def test_an_architecture_that_saeflow_does_not_know(evaluate: Run, sae: Path) -> None:
    change_cfg(sae, architecture="temporal")
    assert "holds an SAE of architecture temporal: known are topk" in evaluate().refusal()


def test_an_architecture_whose_tensors_are_not_there(evaluate: Run, sae: Path) -> None:
    change_cfg(sae, architecture="gated")
    assert "b_gate has shape None, its cfg.json says (" in evaluate().refusal()


def test_an_sae_that_does_not_say_its_model(evaluate: Run, sae: Path) -> None:
    change_cfg(sae, metadata={"sae_lens_version": "6.0.0", "hook_name": HOOK})
    assert "does not say its source model: give --model" in evaluate().refusal()


@pytest.mark.parametrize("metadata", [None, []])
def test_metadata_that_is_none(evaluate: Run, sae: Path, metadata: Any) -> None:
    change_cfg(sae, metadata=metadata)
    assert str(sae) in evaluate().refusal()


def test_other_options_are_refused_by_name(evaluate: Run) -> None:
    evaluate()
    line = evaluate(tokens=160, seed=3, batch_size=3).refusal()
    assert "tokens: 320 there, 160 now" in line
    assert "seed: 0 there, 3 now" in line
    assert "batch_size" not in line  # on which no figure hangs
    assert "--overwrite" in line


@pytest.mark.parametrize(
    ("flag", "value"), [("tokens", 0), ("tokens", -5), ("batch_size", 0), ("device", "gpu")]
)
def test_a_value_that_makes_no_sense(evaluate: Run, sae: Path, flag: str, value: object) -> None:
    assert f"--{flag.replace('_', '-')} " in evaluate(**{flag: value}).refusal()
    assert not (sae / "scores.json").exists()


def test_out_is_a_file(evaluate: Run, tmp_path: Path) -> None:
    (tmp_path / "scores").write_text("x")
    assert f"--out {tmp_path / 'scores'} is a file" in evaluate(out=tmp_path / "scores").refusal()
    assert (tmp_path / "scores").read_text() == "x"


MISMATCHES: dict[str, dict[str, Any]] = {
    "model": {"model": {"weights_sha256": "0" * 64}},
    "model-config": {"model": {"config_sha256": "0" * 64}},
    "tokenizer": {"model": {"tokenizer_sha256": "0" * 64}},
    "hook-point": {"hook": ["blocks.1.hook_resid_post"]},
    "context-size": {"context_size": 9},
    "packing": {"pack": False},
}


@pytest.mark.parametrize("field", MISMATCHES)
def test_a_mismatch_is_one_line_and_leaves_no_file(evaluate: Run, sae: Path, field: str) -> None:
    change_provenance(sae, **MISMATCHES[field])
    before = files(sae)
    line = evaluate().refusal()
    assert line.startswith(f"saeflow: {field} differs: SAE sae was made from ")
    assert line.endswith(f"--allow-mismatch {field}")
    assert files(sae) == before
    assert evaluate("--allow-mismatch", field, "--json").code == 0
    (mismatch,) = json.loads((sae / "scores.json").read_text())["mismatches"]
    assert mismatch["field"] == field


def test_a_mismatch_of_width_can_not_be_allowed(evaluate: Run) -> None:
    line = evaluate("--allow-mismatch", "width").refusal()
    assert "--allow-mismatch width: an SAE reads rows of its own width only" in line


def test_text_that_was_trained_on(evaluate: Run, sae: Path) -> None:
    change_provenance(sae, held_out=0.0)
    before = files(sae)
    line = evaluate().refusal()
    assert "was trained on all of" in line
    assert "--allow-training-text" in line
    assert files(sae) == before
    shown = json.loads(evaluate("--allow-training-text", "--json", "--no-report").out)
    assert shown["text"]["trained_on"] is True


@pytest.mark.parametrize(
    ("value", "told"),
    [("48", "there is no latent 48"), ("five", "five is no latent"), ("9-3", "9-3 is empty")],
)
def test_latents_that_are_none(evaluate: Run, sae: Path, value: str, told: str) -> None:
    before = files(sae)
    assert f"--latents {value}: {told}" in evaluate(latents=value).refusal()
    assert files(sae) == before


@pytest.mark.parametrize(("flag", "value"), [("replace", "words"), ("score", "last")])
def test_positions_that_are_none(evaluate: Run, flag: str, value: str) -> None:
    outcome = evaluate(**{flag: value})
    assert outcome.code == 2
    assert value in outcome.err
    assert "no-first" in outcome.err


@pytest.mark.parametrize("content", ["{}", '{"schema": 1}', "not JSON"])
def test_scores_of_something_else(evaluate: Run, sae: Path, content: str) -> None:
    (sae / "scores.json").write_text(content)
    line = evaluate().refusal()
    assert f"{sae / 'scores.json'} is no scores.json of this saeflow: move it, or give" in line
    assert (sae / "scores.json").read_text() == content


def test_a_report_of_something_else(evaluate: Run, sae: Path) -> None:
    (sae / "report.html").write_text("<p>mine")
    line = evaluate().refusal()
    assert f"{sae / 'report.html'} is no page of saeflow's" in line
    assert not (sae / "scores.json").exists()
    assert evaluate("--no-report").code == 0
    assert (sae / "report.html").read_text() == "<p>mine"
    assert evaluate("--overwrite").code == 0
    assert "mine" not in (sae / "report.html").read_text()


def test_out_is_below_a_file(evaluate: Run, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    line = evaluate(out=tmp_path / "file" / "out").refusal()
    assert "can't be written to (Not a directory): name another folder with --out" in line
