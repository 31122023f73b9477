"""The passes of an evaluation against plain transformers, and answers that are known."""

import json
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from made_saes import identity, nothing, random, save_made
from safetensors.torch import load_file
from torch import Tensor
from torch.nn import functional as F
from transformers import AutoModelForCausalLM

from saeflow.evaluate.config import EvaluateConfig
from saeflow.evaluate.result import EvaluationResult
from saeflow.evaluate.run import evaluate_sae, evaluate_saes
from saeflow.harvest.store import open_store

Make = Callable[..., EvaluateConfig]
POST0, POST1 = "blocks.0.hook_resid_post", "blocks.1.hook_resid_post"
PRE1, MID1 = "blocks.1.hook_resid_pre", "blocks.1.hook_resid_mid"
HEADS, NORMED, MLP = (
    "blocks.1.attn.hook_z",
    "blocks.1.ln2.hook_normalized",
    "blocks.1.hook_mlp_out",
)
WIDTH = 32


class Plain:
    """The model and the text without anything of saeflow: all held-out sequences at once."""

    def __init__(self, model: Path, store: Path) -> None:
        self.model = AutoModelForCausalLM.from_pretrained(str(model)).eval()
        opened = open_store(store)
        found = opened.sequences(opened.held_out, 0, opened.held_out.n_sequences)
        self.tokens = torch.from_numpy(found.astype(np.int64))
        self.text = self.tokens > 2  # bos, eos and padding are 0, 1 and 2
        self.text[:, 0] = False
        self.scored = self.text[:, :-1] & self.text[:, 1:]
        self.rows: dict[str, Tensor] = {}
        self.losses({}, self.rows)

    @torch.no_grad()
    def losses(self, put: Mapping[str, Tensor], seen: dict[str, Tensor] | None = None) -> Tensor:
        """Of the scored predictions, with other rows at the text's positions."""
        keep = {} if seen is None else seen

        def changed(name: str, activation: Tensor) -> Tensor:
            keep[name] = activation[self.text].clone()
            if name not in put:
                return activation
            after = activation.clone()
            after[self.text] = put[name]
            return after

        first, second = self.model.model.layers
        mid: list[Tensor] = []
        scale = second.post_attention_layernorm.weight

        def first_out(module: Any, args: Any, out: Tensor) -> Tensor:
            return changed(POST0, out)

        def second_norm(module: Any, args: Any, out: Tensor) -> Tensor:
            mid.append(changed(MID1, args[0]))
            normed = module.forward(mid[0]) / scale
            found: Tensor = changed(NORMED, normed) * scale
            return found

        def second_out(module: Any, args: Any, out: Tensor) -> Tensor:
            return changed(POST1, mid[0] + written[0])

        written: list[Tensor] = []

        def mlp_out(module: Any, args: Any, out: Tensor) -> None:
            written.append(changed(MLP, out))

        handles = [
            first.register_forward_hook(first_out),
            second.self_attn.o_proj.register_forward_pre_hook(
                lambda module, args: changed(HEADS, args[0])
            ),
            second.post_attention_layernorm.register_forward_hook(second_norm),
            second.mlp.register_forward_hook(mlp_out),
            second.register_forward_hook(second_out),
        ]
        try:
            logits = self.model(self.tokens).logits
        finally:
            for handle in handles:
                handle.remove()
        keep[PRE1] = keep[POST0]
        found = F.cross_entropy(
            logits[:, :-1].transpose(1, 2), self.tokens[:, 1:], reduction="none"
        )
        return found[self.scored]


@pytest.fixture(scope="module")
def plain(taught_model: Path, taught_store: Path) -> Plain:
    return Plain(taught_model, taught_store)


@pytest.fixture
def evaluated(config: Make, sae: Path, tmp_path: Path) -> Callable[..., EvaluationResult]:
    """Evaluate an SAE of these tensors on all of the held-out text."""

    def evaluate(*given: Any, **options: Any) -> EvaluationResult:
        made = save_made(tmp_path / "made", given[0], sae, *given[1:])
        return evaluate_sae(config(sae=made, **{"tokens": 10**6, "latents": "0-2", **options}))

    return evaluate


def mean(losses: Tensor) -> float:
    return float(losses.double().mean())


KINDS: dict[str, tuple[str, tuple[str, ...], str | None]] = {
    "SAE": ("standard", (POST0,), None),
    "SAE of the last layer": ("standard", (POST1,), None),
    "SAE of heads": ("standard", (HEADS,), None),
    "SAE between attention and MLP": ("standard", (MID1,), None),
    "transcoder": ("transcoder", (NORMED,), MLP),
    "skip transcoder": ("skip_transcoder", (MID1,), MLP),
    "crosscoder": ("crosscoder", (POST0, POST1), None),
}


@pytest.mark.parametrize("kind", KINDS)
def test_every_loss_is_that_of_plain_transformers(
    kind: str, plain: Plain, evaluated: Callable[..., EvaluationResult], taught_store: Path
) -> None:
    architecture, reads, target = KINDS[kind]
    w = random(WIDTH * len(reads), WIDTH * len(reads), skip=architecture == "skip_transcoder")
    result = evaluated(w, reads, target, architecture)

    targets = (target,) if target else reads
    x = torch.cat([plain.rows[name] for name in reads], 1)
    made = (x @ w["W_enc"] + w["b_enc"]).relu() @ w["W_dec"] + w["b_dec"]
    if "W_skip" in w:
        made = made + x @ w["W_skip"].T
    put = dict(zip(targets, made.split(WIDTH, 1), strict=True))
    expected = {
        "clean": plain.losses({}),
        "spliced": plain.losses(put),
        "zero_ablated": plain.losses({name: torch.zeros(WIDTH) for name in targets}),
        "mean_ablated": plain.losses({n: mean_of(n, plain, taught_store) for n in targets}),
    }
    assert {name: loss.value for name, loss in result.losses.items()} == pytest.approx(
        {name: mean(losses) for name, losses in expected.items()}, abs=1e-5
    )
    clean, spliced = mean(expected["clean"]), mean(expected["spliced"])
    for ablation, score in result.scores.items():
        ablated = mean(expected[f"{ablation}_ablated"])
        assert score.ratio_of_sums.value == pytest.approx(
            (ablated - spliced) / (ablated - clean), rel=1e-4
        )
    assert result.loss_increase.value == pytest.approx(spliced - clean, abs=1e-5)
    assert (result.reads, result.replaces) == (reads, targets)
    assert result.text["tokens_scored"] == int(plain.scored.sum())
    assert result.text["rows_replaced"] == int(plain.text.sum())
    assert [found.hook_point for found in result.reconstructions] == list(targets)
    for found in result.reconstructions:
        error = (plain.rows[found.hook_point] - put[found.hook_point]).square().sum(1)
        assert found.mse == pytest.approx(mean(error), rel=1e-5)


def mean_of(name: str, plain: Plain, store: Path) -> Tensor:
    """The store's mean where it has the hook point; else that of 64 sequences, evenly spread."""
    opened = open_store(store)
    if name in [one.name for one in opened.layout.hook_points]:
        return torch.as_tensor(opened.statistics(opened.hook_point(name))["mean"]).float()
    count = len(plain.tokens)
    some = torch.zeros(count, dtype=torch.bool)
    some[torch.arange(64) * count // 64] = True
    return plain.rows[name][some[plain.text.nonzero()[:, 0]]].mean(0)


@pytest.mark.parametrize(
    ("architecture", "reads", "target"),
    [
        ("standard", (POST0,), None),
        ("standard", (HEADS,), None),
        ("transcoder", (PRE1,), POST0),  # the same rows under two names
        ("crosscoder", (POST0, HEADS), None),
    ],
)
def test_rows_given_back_as_they_are_score_exactly_one(
    architecture: str,
    reads: tuple[str, ...],
    target: str | None,
    evaluated: Callable[..., EvaluationResult],
) -> None:
    weights = identity(WIDTH * len(reads))
    result = evaluated(weights, reads, target, architecture, tokens=640)
    assert result.losses["spliced"] == result.losses["clean"]
    assert result.kl.value == 0
    assert result.top1_agreement.value == 1
    assert result.loss_increase.value == 0
    for score in result.scores.values():
        assert score.ratio_of_sums.value == 1.0
        assert score.mean_of_ratios.value == 1.0
    assert result.reconstruction.fvu == 0
    assert result.reconstruction.explained_variance == 1
    assert result.checks == {"identity_score": 1.0, "identity_exact": True, "zero_score": 0.0}


def test_latents_that_are_never_active_score_exactly_zero(
    evaluated: Callable[..., EvaluationResult],
) -> None:
    """All latents are dead, and what they decode to is zeros."""
    result = evaluated(nothing(WIDTH), (POST0,), tokens=640, latents="all")
    assert result.losses["spliced"] == result.losses["zero_ablated"]
    assert result.reconstruction_score == 0.0
    assert (result.dead_share, result.l0, result.sparsity.l1) == (1.0, 0.0, 0.0)
    assert result.reconstruction.cosine == 0
    assert result.reconstruction.relative_bias is None
    assert "100% of its latents are never active" in result.verdict


def test_one_latent_alone(evaluated: Callable[..., EvaluationResult]) -> None:
    result = evaluated(random(WIDTH, WIDTH, 1), (POST0,), tokens=640, latents="all")
    assert result.d_sae == 1
    assert result.sparsity.decoder_cosine_quantiles == {}
    assert result.sparsity.decoder_cosine_latents == 0


def test_batch_size_makes_no_difference(config: Make, tmp_path: Path) -> None:
    folders = {size: tmp_path / str(size) for size in (1, 7, 64)}
    found = {}
    for size, folder in folders.items():
        evaluate_sae(config(batch_size=size, out=folder, resample=True, tokens=320, report=False))
        result = json.loads((folder / "scores.json").read_text())
        del result["options"]
        found[size] = result
    assert "resample" in found[1]["scores"]
    for size in (7, 64):
        assert_close(found[size], found[1])
        latents, others = (load_file(folders[n] / "latents.safetensors") for n in (size, 1))
        assert latents.keys() == others.keys()
        for name, tensor in latents.items():
            torch.testing.assert_close(tensor, others[name], rtol=1e-5, atol=1e-6)


def assert_close(found: Any, expected: Any) -> None:
    """Numbers differ by a millionth at most; all else is equal."""
    if isinstance(expected, dict):
        assert found.keys() == expected.keys()
        for key, value in expected.items():
            assert_close(found[key], value)
    elif isinstance(expected, list):
        assert len(found) == len(expected)
        for one, other in zip(found, expected, strict=True):
            assert_close(one, other)
    elif isinstance(expected, float):
        assert found == pytest.approx(expected, rel=1e-6, abs=1e-6)
    else:
        assert found == expected


def test_several_saes_share_one_clean_pass_and_change_nothing_of_each_other(
    config: Make, sae: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run" / "sae"
    shutil.copytree(sae, run / "a")
    save_made(run / "b", random(WIDTH, WIDTH), sae, (HEADS,))
    save_made(run / "c", random(WIDTH, WIDTH), sae, (POST0,))
    save_made(run / "d", random(2 * WIDTH, 2 * WIDTH), sae, (POST0, POST1), None, "crosscoder")
    together = evaluate_saes(config(sae=run.parent, latents="none", resample=True))
    assert list(together) == ["a", "b", "c", "d"]
    for name, result in together.items():
        alone = evaluate_sae(
            config(sae=run / name, out=tmp_path / name, latents="none", resample=True)
        )
        assert result.to_json() == alone.to_json()
    assert together["a"].losses["clean"] == together["d"].losses["clean"]
    page = (tmp_path / "run" / "report.html").read_text()
    assert all(f'"name":"{name}"' in page for name in together)
