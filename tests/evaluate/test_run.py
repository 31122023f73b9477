"""`evaluate_sae` from end to end: its figures, what it keeps, and what it refuses."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from transformer_lens.model_bridge import TransformerBridge

from saeflow.errors import BadInputError
from saeflow.evaluate.config import EvaluateConfig
from saeflow.evaluate.result import EvaluationResult
from saeflow.evaluate.run import evaluate_sae, plan_evaluation
from saeflow.evaluate.splice import token_losses
from saeflow.harvest.config import HarvestConfig
from saeflow.harvest.run import harvest_activations
from saeflow.harvest.store import open_store
from saeflow.train.config import TrainConfig
from saeflow.train.folder import load_sae, metadata
from saeflow.train.run import train_sae
from saeflow.train.sae import SAE

Make = Callable[..., EvaluateConfig]
Change = Callable[..., None]
HOOK = "blocks.0.hook_resid_post"


def figures(result: EvaluationResult) -> dict[str, Any]:
    return {
        **result.losses,
        "score": result.reconstruction_score,
        "fvu": result.fvu,
        "row_fvu": result.row_fvu,
        "l0": result.l0,
        "dead": result.dead,
    }


def test_a_trained_sae_gives_most_of_the_loss_back(config: Make, sae: Path) -> None:
    result = evaluate_sae(config(tokens=3000))
    assert result.reconstruction_score is not None
    assert 0.7 < result.reconstruction_score < 1
    assert result.losses["clean"] < result.losses["spliced"] < result.losses["zero_ablated"]
    assert 0 < result.l0 <= 8
    assert result.text["held_out_only"] is True
    scores = json.loads((sae / "scores.json").read_text())
    assert EvaluationResult.from_json(scores) == result


def test_the_figures_are_those_of_the_stored_held_out_rows(config: Make, sae: Path) -> None:
    """FVU, L0 and dead latents again, from the store instead of from the model."""
    result = evaluate_sae(config(tokens=10**6))
    loaded = load_sae(sae)
    store = open_store(Path(loaded.cfg["metadata"]["saeflow"]["store"]["path"]))
    split = store.held_out
    shards = [split.shard(i) for i in range(split.n_shards)]
    rows = store.rows(store.hook_point(HOOK), split, shards).float()
    special = np.isin(np.asarray(store.array("heldout/token")[:]), [0, 1, 2])
    rows = rows[torch.from_numpy(~special)]
    latents = loaded.encode(rows)
    error = (loaded.decode(latents) - rows).square().sum(1)
    assert loaded.mean is not None

    assert result.text["rows_replaced"] == len(rows)
    assert result.l0 == pytest.approx((latents > 0).sum(1).float().mean().item(), rel=1e-3)
    assert result.dead == int(((latents > 0).sum(0) == 0).sum())
    fvu = error.sum() / (rows - rows.mean(0)).square().sum()
    assert result.fvu == pytest.approx(fvu.item(), rel=1e-2)  # the store is in bfloat16
    row_fvu = (error / (rows - loaded.mean).square().sum(1)).mean()
    assert result.row_fvu == pytest.approx(row_fvu.item(), rel=1e-2)


def test_batch_size_makes_no_difference(config: Make, tmp_path: Path) -> None:
    found = [
        figures(evaluate_sae(config(batch_size=size, out=tmp_path / str(size))))
        for size in (1, 7, 64)
    ]
    assert found[1] == pytest.approx(found[0], rel=1e-6)
    assert found[2] == pytest.approx(found[0], rel=1e-6)


def with_replacement(
    monkeypatch: pytest.MonkeyPatch, replacement: Callable[[Tensor], Tensor]
) -> None:
    """Let every SAE reconstruct as `replacement` does."""

    def patched(model: Any, tokens: Any, hook: str, mask: Any, given: Any, *rest: Any) -> Tensor:
        ours = replacement if isinstance(given, SAE) else given
        return token_losses(model, tokens, hook, mask, ours, *rest)

    monkeypatch.setattr("saeflow.evaluate.run.token_losses", patched)


def test_a_perfect_reconstruction_scores_exactly_one(
    config: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    with_replacement(monkeypatch, lambda rows: rows)
    result = evaluate_sae(config())
    assert result.losses["spliced"] == result.losses["clean"]
    assert result.reconstruction_score == 1.0


def test_a_reconstruction_of_zeros_scores_exactly_zero(
    config: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    with_replacement(monkeypatch, torch.zeros_like)
    result = evaluate_sae(config())
    assert result.losses["spliced"] == result.losses["zero_ablated"]
    assert result.reconstruction_score == 0.0


def test_a_hook_point_with_a_head_axis(config: Make, sae_of_heads: Path) -> None:
    result = evaluate_sae(config(sae=sae_of_heads))
    assert result.hook_point == "blocks.1.attn.hook_z"
    assert result.row_fvu < 0.5
    assert abs(result.losses["spliced"] - result.losses["clean"]) < 0.5


def test_where_ablation_costs_nothing_there_is_no_score(tiny_store: Path, tmp_path: Path) -> None:
    """The weights of `tiny_model` are random: it has nothing to lose."""
    train = TrainConfig(
        store=tiny_store, out=tmp_path, hook=(HOOK,), d_sae=40, tokens=0, device="cpu"
    )
    result = evaluate_sae(EvaluateConfig(sae=train_sae(train).folder, tokens=640, device="cpu"))
    assert result.reconstruction_score is None
    assert result.verdict.startswith("No score")


def test_again_it_returns_what_it_found(config: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    first = evaluate_sae(config())
    monkeypatch.setattr(TransformerBridge, "boot_transformers", None)  # it is not needed again
    assert evaluate_sae(config()) == first


def test_other_options_are_refused_by_name(config: Make, sae: Path) -> None:
    evaluate_sae(config())
    before = (sae / "scores.json").read_bytes()
    with pytest.raises(BadInputError, match=r"tokens: 640 there, 320 now.*--overwrite"):
        evaluate_sae(config(tokens=320))
    assert (sae / "scores.json").read_bytes() == before


def test_overwrite_replaces_scores(config: Make, sae: Path) -> None:
    evaluate_sae(config())
    evaluate_sae(config(tokens=320), overwrite=True)
    assert json.loads((sae / "scores.json").read_text())["text"]["sequences"] == 20


def test_out_takes_the_scores(config: Make, sae: Path, tmp_path: Path) -> None:
    evaluate_sae(config(out=tmp_path / "scores"))
    assert (tmp_path / "scores" / "scores.json").is_file()
    assert not (sae / "scores.json").exists()


def test_scores_of_an_sae_that_was_changed_since_are_refused(config: Make, sae: Path) -> None:
    evaluate_sae(config())
    weights = sae / "sae_weights.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    (sae / "self_test.safetensors").unlink()
    with pytest.raises(BadInputError, match="sae_weights_sha256"):
        evaluate_sae(config())


@pytest.mark.parametrize("content", ["[]", "{}", "not JSON", '{"schema": 1}'])
def test_a_scores_file_of_something_else_is_refused(config: Make, sae: Path, content: str) -> None:
    (sae / "scores.json").write_text(content)
    with pytest.raises(BadInputError, match=r"is no scores\.json of this saeflow"):
        evaluate_sae(config())
    assert (sae / "scores.json").read_text() == content


def test_changed_model_weights_are_refused(config: Make, sae: Path, change_cfg: Change) -> None:
    where = ("metadata", "saeflow", "store", "provenance", "model")
    change_cfg(sae, *where, "weights_sha256", "0" * 64)
    with pytest.raises(BadInputError, match="model differs: SAE sae was made from weights 0000"):
        evaluate_sae(config())


def test_a_model_that_is_named_may_have_other_weights_if_allowed(
    config: Make, tiny_model: Path
) -> None:
    with pytest.raises(BadInputError, match=r"add --allow-mismatch model$"):
        evaluate_sae(config(model=str(tiny_model)))
    result = evaluate_sae(config(model=str(tiny_model), allow_mismatch=("model",)))
    assert result.model == str(tiny_model)


def test_the_same_model_elsewhere_is_the_same(
    config: Make, taught_model: Path, tmp_path: Path
) -> None:
    moved = shutil.copytree(taught_model, tmp_path / "moved")
    assert evaluate_sae(config(model=str(moved))).model == str(moved)


def test_resid_mid_is_refused(config: Make, sae: Path, change_cfg: Change) -> None:
    change_cfg(sae, "metadata", "hook_name", "blocks.0.hook_resid_mid")
    with pytest.raises(BadInputError, match="hook_resid_mid can't be spliced"):
        evaluate_sae(config())


def test_a_hook_point_that_the_model_lacks_is_refused(
    config: Make, sae: Path, change_cfg: Change
) -> None:
    change_cfg(sae, "metadata", "hook_name", "blocks.7.hook_resid_post")
    with pytest.raises(BadInputError, match=r"blocks\.7\.hook_resid_post does not exist in"):
        evaluate_sae(config(allow_mismatch=("hook-point",)))


def test_an_sae_without_a_hook_point_is_refused(
    config: Make, sae: Path, change_cfg: Change
) -> None:
    change_cfg(sae, "metadata", "hook_name", None)
    with pytest.raises(BadInputError, match="does not say its hook point"):
        evaluate_sae(config())


def test_a_foreign_sae_is_evaluated_on_the_text_given(
    config: Make, sae: Path, change_cfg: Change, tiny_text: Path, taught_model: Path
) -> None:
    """As SAELens writes them: no provenance of ours, no self-test."""
    ours = evaluate_sae(config(tokens=10**6))
    (sae / "scores.json").unlink()
    (sae / "self_test.safetensors").unlink()
    change_cfg(sae, "metadata", metadata(hook_name=HOOK, model_name=str(taught_model)))
    foreign = evaluate_sae(config(dataset=str(tiny_text), tokens=10**6))
    assert foreign.reconstruction_score == pytest.approx(ours.reconstruction_score, abs=0.05)
    assert foreign.row_fvu == pytest.approx(ours.row_fvu, rel=0.2)


def test_a_store_without_held_out_text_is_refused(
    taught_model: Path, tiny_text: Path, tmp_path: Path
) -> None:
    harvest = HarvestConfig(
        model=str(taught_model),
        dataset=str(tiny_text),
        hook=(HOOK,),
        out=tmp_path / "store",
        tokens=800,
        context_size=17,
        held_out=0.0,
        device="cpu",
    )
    harvest_activations(harvest)
    train = TrainConfig(
        store=harvest.out, out=tmp_path / "run", d_sae=40, batch_size=64, tokens=0, device="cpu"
    )
    folder = train_sae(train).folder
    with pytest.raises(BadInputError, match="was trained on all of"):
        evaluate_sae(EvaluateConfig(sae=folder, device="cpu"))
    assert not (folder / "scores.json").exists()


def test_a_plan_loads_no_model(config: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(TransformerBridge, "boot_transformers", None)
    plan = plan_evaluation(config())
    assert (plan["d_in"], plan["d_sae"], plan["hook_point"]) == (32, 64, HOOK)
