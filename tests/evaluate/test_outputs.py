"""What an evaluation leaves behind: beside the SAEs or in `--out`, whole, and never stale."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from made_saes import random, save_made
from transformer_lens.model_bridge import TransformerBridge

from saeflow.errors import BadInputError
from saeflow.evaluate import run as module
from saeflow.evaluate.compare import compare_results, write_comparison
from saeflow.evaluate.config import EvaluateConfig
from saeflow.evaluate.latents.files import read_latents, write_latents
from saeflow.evaluate.opening import open_saes
from saeflow.evaluate.outputs import Outputs, make_folders, outputs_of
from saeflow.evaluate.run import evaluate_sae, evaluate_saes

Make = Callable[..., EvaluateConfig]
FILES = {"scores.json", "latents.safetensors", "report.html"}


@pytest.fixture
def quick(config: Make) -> Make:
    """A few tokens, of few latents."""
    return lambda **changed: config(**{"tokens": 80, "latents": "0-3", **changed})


@pytest.fixture
def run_of_two(sae: Path, tmp_path: Path) -> Path:
    folder = tmp_path / "run"
    for name in ("a", "b"):
        save_made(folder / "sae" / name, random(32, 32), sae, ("blocks.0.hook_resid_post",))
    return folder


@pytest.fixture
def no_model(monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    """From now on there is no model to be had."""
    return lambda: monkeypatch.setattr(TransformerBridge, "boot_transformers", None)


def new(folder: Path) -> set[str]:
    """The files that an evaluation has made."""
    known = {"cfg.json", "sae_weights.safetensors", "self_test.safetensors"}
    return {
        str(file.relative_to(folder))
        for file in folder.rglob("*")
        if file.is_file() and file.name not in known
    }


# Where.


def test_of_one_sae_all_is_beside_it(quick: Make, sae: Path) -> None:
    evaluate_sae(quick())
    assert new(sae) == FILES


def test_of_a_run_the_report_is_the_runs(quick: Make, run_of_two: Path) -> None:
    evaluate_saes(quick(sae=run_of_two))
    assert new(run_of_two) == {
        "report.html",
        *(f"sae/{name}/{file}" for name in "ab" for file in FILES - {"report.html"}),
    }


def test_out_takes_all_of_one_sae(quick: Make, sae: Path, tmp_path: Path) -> None:
    evaluate_sae(quick(out=tmp_path / "new" / "out"))
    assert new(tmp_path / "new" / "out") == FILES
    assert new(sae) == set()


def test_out_has_a_folder_for_each_of_several_saes(
    quick: Make, run_of_two: Path, tmp_path: Path
) -> None:
    evaluate_saes(quick(sae=run_of_two, out=tmp_path / "out", latents="none"))
    assert new(tmp_path / "out") == {"report.html", "a/scores.json", "b/scores.json"}
    assert new(run_of_two) == set()


def test_the_run_itself_as_out_is_no_other_place(run_of_two: Path, tmp_path: Path) -> None:
    opened = open_saes(run_of_two)
    expected = outputs_of(run_of_two, None, opened)
    assert outputs_of(run_of_two, run_of_two / "sae" / "..", opened) == expected
    assert expected.saes == {name: run_of_two / "sae" / name for name in "ab"}


def test_no_report_and_no_latents_leave_scores_alone(quick: Make, sae: Path) -> None:
    evaluate_sae(quick(report=False, latents="none"))
    assert new(sae) == {"scores.json"}


@pytest.mark.parametrize("name", ["<script>alert(1)</script>", "[bold]&amp;' \"x", "naïve k=8"])
def test_names_of_any_characters(quick: Make, sae: Path, tmp_path: Path, name: str) -> None:
    for place in (name.replace("/", "_"), "other"):
        shutil.copytree(sae, tmp_path / "run" / "sae" / place)
    results = evaluate_saes(quick(sae=tmp_path / "run", out=tmp_path / "out"))
    shown = name.replace("/", "_")
    assert shown in results
    assert (tmp_path / "out" / shown / "scores.json").is_file()
    assert "<script>alert" not in (tmp_path / "out" / "report.html").read_text()


def test_linked_saes_keep_the_names_that_they_have_there(sae: Path, tmp_path: Path) -> None:
    (tmp_path / "run" / "sae").mkdir(parents=True)
    for name in ("a", "b"):
        real = Path(shutil.copytree(sae, tmp_path / name / "same"))
        (tmp_path / "run" / "sae" / name).symlink_to(real)
    assert [one.name for one in open_saes(tmp_path / "run")] == ["a", "b"]


@pytest.mark.parametrize("inside", [".", "below"])
def test_a_place_that_can_not_be_written_to_is_refused_before_the_passes(
    quick: Make, tmp_path: Path, inside: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "measure", None)
    (tmp_path / "file").write_text("mine")
    with pytest.raises(BadInputError, match=r"--out .*file is a file|Not a directory.*--out"):
        evaluate_sae(quick(out=tmp_path / "file" / inside))
    assert (tmp_path / "file").read_text() == "mine"


def test_a_folder_is_tried_and_left_as_it_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    outputs = Outputs(tmp_path / "report.html", {"a": tmp_path / "a"})
    make_folders(outputs)
    assert list(tmp_path.rglob("*")) == [tmp_path / "a"]

    def refused(**options: Any) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("tempfile.TemporaryFile", refused)
    with pytest.raises(BadInputError, match=r"can't be written to \(Permission denied\): name"):
        make_folders(outputs)


# Again.


def test_again_it_returns_what_it_found(
    quick: Make, no_model: Callable[[], None], capsys: pytest.CaptureFixture[str]
) -> None:
    first = evaluate_sae(quick())
    no_model()
    assert evaluate_sae(quick()) == first
    assert "scores.json is complete already" in capsys.readouterr().err


def test_only_what_is_missing_is_evaluated(
    quick: Make, run_of_two: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    both = evaluate_saes(quick(sae=run_of_two))
    page = run_of_two / "report.html"
    before, expected = (run_of_two / "sae/a/scores.json").stat().st_mtime_ns, page.read_text()
    (run_of_two / "sae" / "b" / "scores.json").unlink()
    assert evaluate_saes(quick(sae=run_of_two)) == both
    assert (run_of_two / "sae/a/scores.json").stat().st_mtime_ns == before
    assert page.read_text() == expected
    told = capsys.readouterr().err
    assert "a/scores.json is complete already" in told
    assert "b/scores.json is" not in told


def test_an_evaluation_that_was_stopped_goes_on(
    quick: Make, run_of_two: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:

        def stopped(latents: Any, texts: Any, path: Path) -> None:
            if path.parent.name == "b":
                raise KeyboardInterrupt
            write_latents(latents, texts, path)

        patch.setattr(module, "write_latents", stopped)
        with pytest.raises(KeyboardInterrupt):
            evaluate_saes(quick(sae=run_of_two))
    assert new(run_of_two) == {"sae/a/scores.json", "sae/a/latents.safetensors"}
    results = evaluate_saes(quick(sae=run_of_two))
    assert results["b"].losses == results["a"].losses  # of the same weights
    assert '"name":"b"' in (run_of_two / "report.html").read_text()


def test_other_options_are_refused_by_name(quick: Make, sae: Path) -> None:
    evaluate_sae(quick())
    before = (sae / "scores.json").read_bytes()
    with pytest.raises(BadInputError, match=r"tokens: 80 there, 320 now.*--overwrite"):
        evaluate_sae(quick(tokens=320))
    with pytest.raises(BadInputError, match=r"dtype: 'float32' there, 'bfloat16' now"):
        evaluate_sae(quick(dtype="bfloat16"))
    assert (sae / "scores.json").read_bytes() == before


def test_nothing_of_earlier_scores_outlives_new_ones(quick: Make, sae: Path) -> None:
    evaluate_sae(quick())
    evaluate_sae(quick(tokens=160, latents="none", report=False), overwrite=True)
    assert json.loads((sae / "scores.json").read_text())["text"]["sequences"] == 10
    assert new(sae) == {"scores.json"}


def test_scores_are_there_only_with_all_that_belongs_to_them(
    quick: Make, sae: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Stopped while it replaces them, it leaves none that would count as complete."""
    evaluate_sae(quick())
    with monkeypatch.context() as patch:
        patch.setattr(module, "write_json", lambda path, value: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            evaluate_sae(quick(latents="5"), overwrite=True)
    assert new(sae) == {"latents.safetensors", "report.html"}
    evaluate_sae(quick())
    assert read_latents(sae / "latents.safetensors").numbers.tolist() == [0, 1, 2, 3]
    assert new(sae) == FILES


def test_scores_of_an_sae_that_was_changed_since_are_refused(quick: Make, sae: Path) -> None:
    evaluate_sae(quick())
    weights = sae / "sae_weights.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    (sae / "self_test.safetensors").unlink()
    with pytest.raises(BadInputError, match="sae_weights_sha256"):
        evaluate_sae(quick())


def test_scores_of_another_hook_point_are_refused(
    quick: Make, sae: Path, change_cfg: Callable[..., None]
) -> None:
    evaluate_sae(quick())
    change_cfg(sae, "metadata", "hook_name", "blocks.1.hook_resid_post")
    with pytest.raises(BadInputError, match=r"made with other options \(sae_cfg_sha256: "):
        evaluate_sae(quick())


@pytest.mark.parametrize("content", ["[]", "{}", "7", "not JSON", '{"schema": 1}', "damaged"])
def test_a_scores_file_of_something_else_is_refused(quick: Make, sae: Path, content: str) -> None:
    if content == "damaged":
        evaluate_sae(quick(report=False, latents="none"))
        scores = json.loads((sae / "scores.json").read_text())
        del scores["sparsity"]["l0"]
        content = json.dumps(scores)
    (sae / "scores.json").write_text(content)
    with pytest.raises(BadInputError, match=r"is no scores\.json of this saeflow"):
        evaluate_sae(quick())
    assert (sae / "scores.json").read_text() == content
    evaluate_sae(quick(), overwrite=True)
    assert new(sae) == FILES


# The page, of files that are there.


def test_the_page_is_there_until_the_next_one_is(
    quick: Make, sae: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It must not be lost to an evaluation that comes to nothing."""
    evaluate_sae(quick())
    page = (sae / "report.html").read_bytes()
    with monkeypatch.context() as patch:
        patch.setattr(module, "conclude", lambda *given: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            evaluate_sae(quick(tokens=160), overwrite=True)
    assert (sae / "report.html").read_bytes() == page


def test_a_page_that_was_not_renewed_is_renewed_later(
    quick: Make, sae: Path, no_model: Callable[[], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Stopped between the scores and the page, which is of earlier scores then."""
    evaluate_sae(quick())
    with monkeypatch.context() as patch:
        patch.setattr(module, "write_page", lambda *given: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            evaluate_sae(quick(tokens=160), overwrite=True)
    no_model()
    result = evaluate_sae(quick(tokens=160))
    assert result.verdict in (sae / "report.html").read_text()


def test_a_page_that_shows_all_of_it_is_left_alone(
    quick: Make, run_of_two: Path, no_model: Callable[[], None]
) -> None:
    evaluate_saes(quick(sae=run_of_two))
    page = run_of_two / "report.html"
    before = page.stat().st_mtime_ns
    no_model()
    evaluate_saes(quick(sae=run_of_two))
    assert page.stat().st_mtime_ns == before
    shutil.rmtree(run_of_two / "sae" / "b")
    evaluate_saes(quick(sae=run_of_two))
    assert '"name":"b"' not in page.read_text()


def test_without_a_page_of_its_own_it_leaves_the_one_that_is_there(
    quick: Make, run_of_two: Path, sae: Path
) -> None:
    """Unless it throws away what that page is of."""
    evaluate_saes(quick(sae=run_of_two))
    page = run_of_two / "report.html"
    before = page.read_bytes()
    shutil.copytree(sae, run_of_two / "sae" / "c")
    evaluate_saes(quick(sae=run_of_two, report=False))
    assert page.read_bytes() == before
    evaluate_saes(quick(sae=run_of_two, report=False), overwrite=True)
    assert not page.exists()


def test_the_page_of_a_comparison_is_not_replaced_unasked(
    quick: Make, sae: Path, tmp_path: Path
) -> None:
    evaluate_sae(quick(report=False))
    page = tmp_path / "out" / "report.html"
    page.parent.mkdir()
    write_comparison(compare_results([sae]), page)
    before = page.read_bytes()
    with pytest.raises(BadInputError, match=r"report\.html is a page of saeflow compare: name ano"):
        evaluate_sae(quick(out=page.parent))
    assert page.read_bytes() == before
    evaluate_sae(quick(out=page.parent), overwrite=True)
    with pytest.raises(
        BadInputError, match=r"report\.html is a page of saeflow evaluate: name ano"
    ):
        write_comparison(compare_results([sae]), page)
    write_comparison(compare_results([sae]), page, overwrite=True)


def test_scores_of_one_and_of_several_do_not_share_a_folder(
    quick: Make, sae: Path, run_of_two: Path, tmp_path: Path
) -> None:
    several, one = tmp_path / "several", tmp_path / "one"
    evaluate_saes(quick(sae=run_of_two, out=several, latents="none"))
    evaluate_sae(quick(out=one, latents="none"))
    for overwrite in (True, False):
        with pytest.raises(BadInputError, match=r"scores in folders of their own \(a, b\): name"):
            evaluate_sae(quick(out=several), overwrite=overwrite)
        with pytest.raises(BadInputError, match="holds the scores of one SAE, and here are 2"):
            evaluate_saes(quick(sae=run_of_two, out=one), overwrite=overwrite)
    assert new(several) == {"report.html", "a/scores.json", "b/scores.json"}
    evaluate_sae(quick(out=one / "another", latents="none"))
    evaluate_sae(quick(out=one, latents="none"))  # which was there first


def test_a_report_that_is_gone_is_made_again(
    quick: Make, sae: Path, no_model: Callable[[], None]
) -> None:
    evaluate_sae(quick())
    page = (sae / "report.html").read_text()
    (sae / "report.html").unlink()
    no_model()
    evaluate_sae(quick())
    assert (sae / "report.html").read_text() == page


def test_latents_that_are_gone_are_said_to_be(
    quick: Make, sae: Path, no_model: Callable[[], None], capsys: pytest.CaptureFixture[str]
) -> None:
    evaluate_sae(quick())
    for name in ("report.html", "latents.safetensors"):
        (sae / name).unlink()
    no_model()
    evaluate_sae(quick())
    assert (sae / "report.html").is_file()
    assert "latents.safetensors is gone" in capsys.readouterr().err


def test_latents_that_are_damaged_are_refused(quick: Make, sae: Path) -> None:
    evaluate_sae(quick())
    (sae / "report.html").unlink()
    (sae / "latents.safetensors").write_bytes(b"\x08\0\0\0\0\0\0\0no json!")
    with pytest.raises(BadInputError, match=r"latents\.safetensors can't be read: .*--overwrite"):
        evaluate_sae(quick())
    evaluate_sae(quick(), overwrite=True)
    assert new(sae) == FILES


def test_an_sae_that_has_moved_keeps_its_scores(
    quick: Make, sae: Path, no_model: Callable[[], None]
) -> None:
    found = evaluate_sae(quick())
    no_model()
    again = evaluate_sae(quick(sae=sae.rename(sae.with_name("moved"))))
    assert (again.name, again.scores) == ("moved", found.scores)
