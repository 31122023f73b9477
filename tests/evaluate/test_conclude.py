"""From what was measured to a result: three tokens by hand, and figures that are none."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from saeflow.errors import BadInputError
from saeflow.evaluate.ablation import Resampler
from saeflow.evaluate.batches import Setting
from saeflow.evaluate.conclude import Asked, conclude
from saeflow.evaluate.measure import Measured, Subject, begin
from saeflow.evaluate.opening import open_saes
from saeflow.evaluate.reference import Reference
from saeflow.evaluate.result import EvaluationResult
from saeflow.evaluate.self_check import SelfCheck
from saeflow.evaluate.text import HeldOutText
from saeflow.harvest.models import SourceModel
from saeflow.harvest.tokens import Packing

HOOK = "blocks.0.hook_resid_post"
ASKED = Asked({"sae": "/here"}, (), 0)


@pytest.fixture
def setting(source_model: SourceModel) -> Setting:
    """Four tokens, and three predictions of them; two are of document 5, the last of 9."""
    frequency = np.zeros(300)
    frequency[[10, 11, 12]] = 0.5, 0.45, 0.05
    text = HeldOutText(
        source="by hand",
        sequences=np.array([[0, 10, 11, 10, 12]], np.uint32),
        available=7,
        documents=np.array([[-1, 5, 5, 5, 9]]),
        lengths=np.array([5]),
        frequency=frequency,
        trained_on=False,
        packing=Packing(context_size=5, bos=0, separator=1),
        dataset=None,
        dataset_sha256=None,
        store_identity=None,
    )
    reference = Reference(torch.zeros(32), 1.0)
    return Setting(source_model, text, "text", "no-first", 4, {HOOK: reference}, None)


@pytest.fixture
def measured(setting: Setting, sae: Path) -> Measured:
    """Nothing yet."""
    return begin(setting, open_saes(sae), [np.arange(0)])


def add(
    setting: Setting,
    measured: Measured,
    *,
    clean: list[float],
    spliced: list[float],
    zero: list[float],
    mean: list[float],
    rows: Tensor,
    kl: tuple[float, float, float] = (0.5, 0.25, 0.0),
) -> Subject:
    """Losses of the three predictions in each pass, as a batch gives them."""
    (subject,) = measured.subjects
    tokens = torch.from_numpy(setting.text.sequences.astype(np.int64))
    scored = torch.tensor([[False, True, True, True]])
    documents = torch.from_numpy(setting.text.documents)
    predictions = setting.binning.place(tokens, documents, scored)
    measured.clean.add(predictions, {"clean": torch.tensor(clean)})
    measured.ablated[subject.targets].add(
        predictions, {"zero_ablated": torch.tensor(zero), "mean_ablated": torch.tensor(mean)}
    )
    subject.tally.add(
        predictions,
        {"spliced": torch.tensor(spliced)},
        kl=torch.tensor(kl),
        agrees=torch.tensor([True, False, True]),
    )
    subject.active.update(torch.eye(4, 64))
    subject.reconstructions[HOOK].update(torch.ones(4, 32), rows, torch.zeros(4))
    measured.rows += 4
    measured.checks[subject.targets] = SelfCheck(1.0, True, float("nan"))
    return subject


@pytest.fixture
def result(setting: Setting, measured: Measured) -> EvaluationResult:
    subject = add(
        setting,
        measured,
        clean=[1.0, 2.0, 3.0],
        spliced=[1.5, 2.5, 3.0],
        zero=[5.0, 6.0, 3.0],
        mean=[3.0, 2.0, 7.0],
        rows=torch.zeros(4, 32),
    )
    return conclude(setting, measured, subject, ASKED)


def test_three_tokens_by_hand(result: EvaluationResult) -> None:
    losses = {name: loss.value for name, loss in result.losses.items()}
    assert losses == {
        "clean": 2.0,
        "spliced": pytest.approx(7 / 3),
        "zero_ablated": pytest.approx(14 / 3),
        "mean_ablated": 4.0,
    }
    zero, mean = result.scores["zero"], result.scores["mean"]
    assert zero.ratio_of_sums.value == 7 / 8  # (14 - 7) / (14 - 6)
    assert zero.mean_of_ratios.value == 7 / 8  # of document 5 alone: (11 - 4) / (11 - 3)
    assert (zero.items, zero.left_out) == (1, 1)  # in document 9 it costs nothing
    assert mean.ratio_of_sums.value == 5 / 6  # (12 - 7) / (12 - 6)
    assert mean.mean_of_ratios.value == 0.75  # (5 - 4) / (5 - 3), and 1
    assert (mean.items, mean.left_out) == (2, 0)
    assert result.loss_increase.value == pytest.approx(1 / 3)
    assert result.kl.value == 0.25
    assert result.top1_agreement.value == pytest.approx(2 / 3)
    assert result.reconstruction_score == 7 / 8


def test_each_prediction_is_in_its_bins(result: EvaluationResult) -> None:
    positions = dict(zip(result.by_position.labels, result.by_position.count, strict=True))
    assert positions == {"0": 0, "1": 1, "2-3": 2}
    assert result.by_position.losses["spliced"] == (None, 1.5, 2.75)
    by_frequency = result.by_frequency
    assert dict(zip(by_frequency.labels, by_frequency.count, strict=True))["over 1e-2"] == 3
    assert list(by_frequency.losses) == ["clean", "zero_ablated", "mean_ablated", "spliced"]


def test_what_it_says_of_text_and_positions(result: EvaluationResult) -> None:
    assert len(result.text["sha256"]) == 64
    assert {key: value for key, value in result.text.items() if key != "sha256"} == {
        "source": "by hand",
        "held_out_only": True,
        "trained_on": False,
        "documents": 2,
        "sequences": 1,
        "sequences_available": 7,
        "context_size": 5,
        "tokens_scored": 3,
        "rows_replaced": 4,
    }
    assert result.positions["replaced"].startswith("all but position 0 and special tokens")
    assert result.positions["scored"].endswith(": all but position 0")
    assert result.checks == {"identity_score": 1.0, "identity_exact": True, "zero_score": None}
    assert result.options == {"sae": "/here"}
    assert set(result.versions) == {"saeflow", "torch", "transformers", "transformer-lens"}


def test_a_loss_that_is_not_finite_is_named_with_its_sae(
    setting: Setting, measured: Measured
) -> None:
    subject = add(
        setting,
        measured,
        clean=[1.0, 2.0, 3.0],
        spliced=[1.5, float("nan"), 3.0],
        zero=[5.0, 6.0, 3.0],
        mean=[3.0, 2.0, 7.0],
        rows=torch.zeros(4, 32),
    )
    with pytest.raises(BadInputError, match=r"SAE sae: spliced is not finite in 1 of 2 documents"):
        conclude(setting, measured, subject, ASKED)


def test_a_row_that_is_not_finite_is_named_even_where_nothing_is_predicted_from_it(
    setting: Setting, measured: Measured
) -> None:
    rows = torch.zeros(4, 32)
    rows[3, 0] = torch.inf
    subject = add(
        setting,
        measured,
        clean=[1.0, 2.0, 3.0],
        spliced=[1.5, 2.5, 3.0],
        zero=[5.0, 6.0, 3.0],
        mean=[3.0, 2.0, 7.0],
        rows=rows,
    )
    with pytest.raises(BadInputError, match=r"SAE sae: reconstructions\.0\.mse is not finite: eva"):
        conclude(setting, measured, subject, ASKED)


def test_resample_ablation_is_another_pass(setting: Setting, sae: Path) -> None:
    pool = Resampler({HOOK: torch.ones(2, 32)}, torch.arange(2), torch.arange(2), 0)
    measured = begin(replace(setting, resampler=pool), open_saes(sae), [np.arange(3)])
    (subject,) = measured.subjects
    assert measured.ablated[subject.targets].documents.columns == (
        "zero_ablated",
        "mean_ablated",
        "resample_ablated",
    )
    assert subject.latents is not None
