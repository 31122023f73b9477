"""`evaluate_saes` from end to end: its figures, its options, and what it refuses."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from made_saes import random, save_made
from transformer_lens.model_bridge import TransformerBridge

from saeflow.errors import BadInputError
from saeflow.evaluate.config import EvaluateConfig
from saeflow.evaluate.latents.files import read_latents
from saeflow.evaluate.result import EvaluationResult
from saeflow.evaluate.run import evaluate_sae, evaluate_saes, plan_evaluation
from saeflow.harvest.config import HarvestConfig
from saeflow.harvest.run import harvest_activations
from saeflow.harvest.store import open_store
from saeflow.train.config import TrainConfig
from saeflow.train.folder import load_sae, metadata
from saeflow.train.run import train_sae

Make = Callable[..., EvaluateConfig]
Change = Callable[..., None]
HOOK, HEADS = "blocks.0.hook_resid_post", "blocks.1.attn.hook_z"
SEPARATOR = 1


def value(figure: float | None) -> float:
    assert figure is not None
    return figure


# Figures.


def test_a_trained_sae_gives_most_of_the_loss_back(config: Make, sae: Path) -> None:
    result = evaluate_sae(config(tokens=3000))
    score = result.scores["zero"].ratio_of_sums
    assert 0.7 < value(score.low) < value(score.value) < value(score.high) < 1
    clean, spliced, zero, mean = (value(loss.value) for loss in result.losses.values())
    assert clean < spliced < min(zero, mean)
    assert value(result.loss_increase.value) == pytest.approx(spliced - clean)
    assert 0 < value(result.kl.value) < 0.1
    assert 0.9 < value(result.top1_agreement.value) < 1
    assert 0 < result.l0 <= 8
    assert result.text["held_out_only"] is True
    scores = json.loads((sae / "scores.json").read_text())
    assert EvaluationResult.from_json(scores) == result
    assert read_latents(sae / "latents.safetensors").rows == result.text["rows_replaced"]
    assert result.verdict in (sae / "report.html").read_text()


def test_the_figures_are_those_of_the_stored_held_out_rows(config: Make, sae: Path) -> None:
    """FVU, L0 and dead latents again, from the store instead of from the model."""
    result = evaluate_sae(config(tokens=10**6, report=False))
    loaded = load_sae(sae)
    store = open_store(Path(loaded.cfg["metadata"]["saeflow"]["store"]["path"]))
    split = store.held_out
    shards = [split.shard(i) for i in range(split.n_shards)]
    rows = store.rows(store.hook_point(HOOK), split, shards).float()
    special = np.isin(np.asarray(store.array("heldout/token")[:]), [0, 1, 2])
    rows = rows[torch.from_numpy(~special)]
    latents = loaded.encode(rows)
    given_back = loaded.decode(latents)
    error = (given_back - rows).square().sum(1)
    assert loaded.mean is not None

    assert result.text["rows_replaced"] == result.reconstruction.rows == len(rows)
    assert result.l0 == pytest.approx((latents > 0).sum(1).float().mean().item(), rel=1e-3)
    assert result.sparsity.l1 == pytest.approx(latents.sum(1).mean().item(), rel=1e-2)
    assert result.dead == int(((latents > 0).sum(0) == 0).sum())
    assert result.fvu is not None  # the store is in bfloat16
    assert result.reconstruction.explained_variance is not None
    fvu = error.sum() / (rows - rows.mean(0)).square().sum()
    assert result.fvu == pytest.approx(fvu.item(), rel=1e-2)
    row_fvu = (error / (rows - loaded.mean).square().sum(1)).mean()
    assert result.row_fvu == pytest.approx(row_fvu.item(), rel=1e-2)
    left = (rows - given_back).var(0).sum() / rows.var(0).sum()
    assert 1 - result.reconstruction.explained_variance == pytest.approx(left.item(), rel=1e-2)
    assert result.reconstruction.mse == pytest.approx(error.mean().item(), rel=1e-2)
    cosine = torch.nn.functional.cosine_similarity(rows, given_back).mean()
    assert result.reconstruction.cosine == pytest.approx(cosine.item(), rel=1e-3)


def test_where_ablation_costs_nothing_there_is_no_score(tiny_store: Path, tmp_path: Path) -> None:
    """The weights of `tiny_model` are random: it has nothing to lose."""
    train = TrainConfig(
        store=tiny_store, out=tmp_path, hook=(HOOK,), d_sae=40, tokens=0, device="cpu"
    )
    result = evaluate_sae(EvaluateConfig(sae=train_sae(train).folder, tokens=640, device="cpu"))
    assert result.reconstruction_score is None
    assert result.verdict.startswith("No score")


def test_one_document_alone_has_no_interval(config: Make) -> None:
    result = evaluate_sae(config(tokens=1, report=False))
    assert result.text["sequences"] == 1
    assert result.text["documents"] == 1
    for estimate in (result.kl, result.losses["clean"], result.scores["zero"].ratio_of_sums):
        assert estimate.value is not None
        assert (estimate.low, estimate.high) == (None, None)
    assert "interval" not in result.verdict


# Options.


@pytest.mark.parametrize(
    ("replace", "score"),
    [("text", "text"), ("no-first", "text"), ("all", "no-first"), ("text", "all"), ("all", "all")],
)
def test_what_is_replaced_and_what_is_scored_is_chosen(
    config: Make, taught_store: Path, replace: str, score: str
) -> None:
    result = evaluate_sae(
        config(replace=replace, score=score, tokens=10**6, latents="none", report=False)
    )
    store = open_store(taught_store)
    tokens = store.sequences(store.held_out, 0, store.held_out.n_sequences)
    every = np.ones_like(tokens, bool)
    no_first = every & (np.arange(tokens.shape[1]) > 0)
    chosen = {"all": every, "no-first": no_first, "text": no_first & (tokens > 2)}
    assert result.text["rows_replaced"] == chosen[replace].sum()
    expected = (chosen[score][:, :-1] & chosen[score][:, 1:]).sum()
    assert result.text["tokens_scored"] == sum(result.by_position.count) == expected
    assert sum(result.by_frequency.count) == expected
    assert result.checks["identity_exact"] is True
    assert (result.options["replace"], result.options["score"]) == (replace, score)
    assert result.positions["replaced"].startswith("all")


def test_resample_ablation_costs_more_than_the_mean(config: Make) -> None:
    result = evaluate_sae(config(resample=True, latents="none", report=False))
    assert list(result.scores) == ["zero", "mean", "resample"]
    assert value(result.losses["resample_ablated"].value) > value(result.losses["clean"].value) + 1
    other = evaluate_sae(
        config(resample=True, latents="none", report=False, seed=1), overwrite=True
    )
    assert other.losses["clean"].value == result.losses["clean"].value
    assert other.losses["resample_ablated"].value != result.losses["resample_ablated"].value


def test_a_bfloat16_model_scores_nearly_the_same(config: Make, tmp_path: Path) -> None:
    exact = evaluate_sae(config(latents="none", report=False))
    coarse = evaluate_sae(config(latents="none", dtype="bfloat16", out=tmp_path / "coarse"))
    assert coarse.reconstruction_score == pytest.approx(exact.reconstruction_score, abs=0.005)
    assert coarse.checks["identity_exact"] is True
    (mismatch,) = coarse.mismatches
    assert mismatch["field"] == "dtype"


def test_training_text_is_marked(config: Make, taught_store: Path) -> None:
    result = evaluate_sae(config(allow_training_text=True, report=False))
    assert (result.text["trained_on"], result.text["held_out_only"]) == (True, False)
    assert "tokens that it was trained on" in result.verdict
    assert result.text["sequences_available"] == open_store(taught_store).train.n_sequences


def test_latents_may_be_chosen(config: Make, sae: Path) -> None:
    evaluate_sae(config(latents="3,17,60-63"))
    latents = read_latents(sae / "latents.safetensors")
    assert latents.numbers.tolist() == [3, 17, 60, 61, 62, 63]
    with pytest.raises(BadInputError, match="there is no latent 64: this SAE's are 0 to 63"):
        evaluate_sae(config(latents="64"), overwrite=True)
    assert (sae / "scores.json").exists()


# Whose text.


def test_a_foreign_sae_is_evaluated_on_the_text_given(
    config: Make, sae: Path, change_cfg: Change, tiny_text: Path, taught_model: Path
) -> None:
    """As SAELens writes them: no provenance of ours, no self-test; means are of the text."""
    ours = evaluate_sae(config(tokens=10**6, report=False))
    for name in ("scores.json", "self_test.safetensors"):
        (sae / name).unlink()
    change_cfg(sae, "metadata", metadata(hook_name=HOOK, model_name=str(taught_model)))
    foreign = evaluate_sae(config(dataset=str(tiny_text), tokens=10**6, report=False))
    assert foreign.reconstruction_score == pytest.approx(ours.reconstruction_score, abs=0.05)
    assert foreign.row_fvu == pytest.approx(ours.row_fvu, rel=0.2)
    assert foreign.scores["mean"].ratio_of_sums.value == pytest.approx(
        ours.scores["mean"].ratio_of_sums.value, abs=0.05
    )
    assert foreign.text["source"] == str(tiny_text)


def test_a_store_that_is_gone_changes_no_figure(
    config: Make, sae: Path, change_cfg: Change, tmp_path: Path
) -> None:
    """The text comes from the dataset, and means are those that the SAE has with it."""
    ours = evaluate_sae(config(report=False)).to_json()
    change_cfg(sae, "metadata", "saeflow", "store", "path", str(tmp_path / "gone"))
    found = evaluate_sae(config(report=False, out=tmp_path / "out")).to_json()
    assert found["text"].pop("source") != ours["text"].pop("source")
    for result in (found, ours):
        del result["options"], result["by_frequency"]  # of a store, training tokens are counted
    assert found == ours


def test_padding_is_neither_replaced_nor_scored(
    taught_model: Path, tiny_options: Callable[..., HarvestConfig], tmp_path: Path
) -> None:
    out = tmp_path / "store"
    harvest_activations(
        tiny_options(model=str(taught_model), out=out, tokens=None, pack=False, context_size=24)
    )
    trained = train_sae(
        TrainConfig(store=out, out=tmp_path / "run", d_sae=40, k=8, tokens=0, device="cpu")
    )
    options = EvaluateConfig(
        sae=trained.folder, replace="all", score="all", resample=True, latents="0-9", device="cpu"
    )
    result = evaluate_sae(options)
    store = open_store(out)
    tokens = store.sequences(store.held_out, 0, store.held_out.n_sequences)
    own = tokens != SEPARATOR  # which pads where sequences end with their documents
    assert not own.all()
    assert result.text["rows_replaced"] == own.sum()
    assert result.text["tokens_scored"] == own[:, 1:].sum()
    other = {"batch_size": 5, "latents": "none", "out": tmp_path / "other"}
    by_five = evaluate_sae(EvaluateConfig(**{**vars(options), **other}))
    assert by_five.text == result.text
    for name, loss in result.losses.items():
        assert by_five.losses[name].value == pytest.approx(loss.value, rel=1e-6)
    shown = read_latents(trained.folder / "latents.safetensors").contexts.tokens
    assert SEPARATOR not in shown


def test_a_store_without_held_out_text_is_refused(
    taught_model: Path, tiny_options: Callable[..., HarvestConfig], tmp_path: Path
) -> None:
    out = tmp_path / "store"
    harvest_activations(tiny_options(model=str(taught_model), out=out, tokens=800, held_out=0.0))
    folder = train_sae(
        TrainConfig(
            store=out, out=tmp_path / "run", d_sae=40, batch_size=64, tokens=0, device="cpu"
        )
    ).folder
    with pytest.raises(BadInputError, match="was trained on all of"):
        evaluate_sae(EvaluateConfig(sae=folder, device="cpu"))
    assert not (folder / "scores.json").exists()


def test_contexts_of_two_tokens_have_nothing_to_score(
    config: Make, sae: Path, change_cfg: Change, tiny_text: Path, taught_model: Path
) -> None:
    """Unless what is predicted from the first position is: the smallest text there is."""
    (sae / "self_test.safetensors").unlink()
    change_cfg(
        sae, "metadata", metadata(hook_name=HOOK, model_name=str(taught_model), context_size=2)
    )
    with pytest.raises(BadInputError, match=r"has no prediction to score in its .* of up to 2"):
        evaluate_sae(config(dataset=str(tiny_text), tokens=40))
    assert not (sae / "scores.json").exists()
    result = evaluate_sae(
        config(dataset=str(tiny_text), replace="all", score="all", tokens=40, report=False)
    )
    assert result.text["tokens_scored"] == result.text["sequences"] == 40
    assert result.by_position.labels == ("0",)


# Whose model, and where.


def test_changed_model_weights_are_refused(config: Make, sae: Path, change_cfg: Change) -> None:
    where = ("metadata", "saeflow", "store", "provenance", "model")
    change_cfg(sae, *where, "weights_sha256", "0" * 64)
    with pytest.raises(BadInputError, match="model differs: SAE sae was made from weights 0000"):
        evaluate_sae(config())


def test_a_model_that_is_named_may_have_other_weights_if_allowed(
    config: Make, tiny_model: Path, sae: Path
) -> None:
    with pytest.raises(BadInputError, match=r"add --allow-mismatch model$"):
        evaluate_sae(config(model=str(tiny_model)))
    assert sorted(file.name for file in sae.iterdir()) == [
        "cfg.json",
        "sae_weights.safetensors",
        "self_test.safetensors",
    ]
    options = config(model=str(tiny_model), allow_mismatch=("model",))
    result = evaluate_sae(options)
    assert result.model == str(tiny_model)
    assert [mismatch["field"] for mismatch in result.mismatches] == ["model"]
    assert evaluate_sae(options) == result  # options with a list in them are the same ones, too


def test_the_same_model_elsewhere_is_the_same(
    config: Make, taught_model: Path, tmp_path: Path
) -> None:
    moved = shutil.copytree(taught_model, tmp_path / "moved")
    assert evaluate_sae(config(model=str(moved), report=False)).model == str(moved)


def test_a_hook_point_that_the_model_lacks_is_refused(
    config: Make, sae: Path, change_cfg: Change
) -> None:
    change_cfg(sae, "metadata", "hook_name", "blocks.7.hook_resid_post")
    with pytest.raises(BadInputError, match=r"blocks\.7\.hook_resid_post does not exist in"):
        evaluate_sae(config(allow_mismatch=("hook-point",)))


@pytest.mark.parametrize("run", [evaluate_sae, plan_evaluation])
def test_an_sae_without_a_hook_point_is_refused(
    config: Make, sae: Path, change_cfg: Change, run: Callable[[EvaluateConfig], object]
) -> None:
    change_cfg(sae, "metadata", "hook_name", None)
    with pytest.raises(BadInputError, match="does not say its hook point"):
        run(config())


# Several at once.


@pytest.fixture
def run_of_two(sae: Path, tmp_path: Path) -> Path:
    """A run folder with a good SAE and a random one at another hook point."""
    folder = tmp_path / "run"
    shutil.copytree(sae, folder / "sae" / "good")
    save_made(folder / "sae" / "poor", random(32, 32), sae, (HEADS,))
    return folder


def test_one_sae_is_asked_for_by_name(config: Make, run_of_two: Path) -> None:
    with pytest.raises(BadInputError, match=r"holds 2 SAEs \(good, poor\): choose one of its sae/"):
        evaluate_sae(config(sae=run_of_two))


def test_an_sae_that_gives_no_numbers_is_named_and_the_others_are_written(
    config: Make, run_of_two: Path, sae: Path
) -> None:
    weights = {**random(32, 32), "b_dec": torch.full((32,), torch.nan)}
    save_made(run_of_two / "sae" / "broken", weights, sae, (HOOK,))
    with pytest.raises(
        BadInputError, match=r"SAE broken: spliced is not finite in .* documents: evaluate in"
    ):
        evaluate_saes(config(sae=run_of_two, latents="none"))
    written = {file.parent.name for file in run_of_two.glob("sae/*/scores.json")}
    assert written == {"good", "poor"}


def test_a_plan_loads_no_model(
    config: Make, run_of_two: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(TransformerBridge, "boot_transformers", None)
    plan = plan_evaluation(config(sae=run_of_two, resample=True))
    assert (plan["clean_passes"], plan["passes_from_the_hook_point_on"]) == (1, 2 + 2 * 3)
    good, poor = plan["saes"]
    assert (good["d_in"], good["d_sae"], good["reads"]) == (32, 64, [HOOK])
    assert poor["replaces"] == [HEADS]
    with pytest.raises(BadInputError, match="there is no latent 30"):
        plan_evaluation(config(sae=run_of_two, latents="30"))
