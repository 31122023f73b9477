"""A splice that does anything but put rows in their place is found out."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from saeflow.errors import SaeflowError
from saeflow.evaluate.batches import Setting
from saeflow.evaluate.config import EvaluateConfig
from saeflow.evaluate.measure import begin, measure
from saeflow.evaluate.opening import open_saes
from saeflow.evaluate.origin import origin_of
from saeflow.evaluate.positions import chosen_positions, scored_predictions
from saeflow.evaluate.predictions import prediction_losses
from saeflow.evaluate.reference import Reference
from saeflow.evaluate.replay import CleanPass, Replay
from saeflow.evaluate.self_check import SelfCheck, check_splice
from saeflow.evaluate.text import held_out_text
from saeflow.evaluate.text_source import find_text
from saeflow.harvest.models import SourceModel

HOOK = "blocks.0.hook_resid_post"


class Batch:
    """A clean pass, where rows are replaced in it, and the losses of the ablated pass."""

    def __init__(self, model: SourceModel, tokens: Tensor) -> None:
        self.replay = Replay(model, [HOOK])
        self.clean = self.replay.clean(tokens)
        own = torch.ones_like(tokens, dtype=torch.bool)
        self.replaced = chosen_positions(tokens, own, (0, 1, 2))
        self.scored = scored_predictions(self.replaced)
        rows = {HOOK: torch.zeros_like(self.clean.rows(HOOK, self.replaced))}
        logits = self.replay.spliced(self.clean, self.replaced, rows)
        self.ablated = prediction_losses(logits, tokens, self.scored)

    def check(self, replay: Replay | None = None) -> SelfCheck:
        return check_splice(
            replay or self.replay, self.clean, self.replaced, self.scored, (HOOK,), self.ablated
        )


@pytest.fixture
def batch(source_model: SourceModel) -> Batch:
    tokens = torch.randint(3, 300, (3, 9), generator=torch.Generator().manual_seed(0))
    tokens[:, 0] = 0
    return Batch(source_model, tokens)


class Off(Replay):
    """A replay that adds something to one logit of those that another gives."""

    def __init__(self, replay: Replay, add: float, *, to_zeros: bool) -> None:
        self._replay, self._add, self._to_zeros = replay, add, to_zeros

    def spliced(self, clean: CleanPass, replaced: Tensor, rows: Mapping[str, Tensor]) -> Tensor:
        logits = self._replay.spliced(clean, replaced, rows).clone()
        if self._to_zeros == (not rows[HOOK].any()):
            logits[0, 3, clean.tokens[0, 4]] += self._add
        return logits


def test_of_a_good_splice_all_is_exact(batch: Batch) -> None:
    assert batch.check() == SelfCheck(1.0, True, 0.0)


@pytest.mark.parametrize(("to_zeros", "told"), [(False, "rows back as they are"), (True, "zeros")])
def test_one_logit_that_is_off_is_an_error(batch: Batch, to_zeros: bool, told: str) -> None:
    with pytest.raises(SaeflowError, match=rf"splice at {HOOK} can't be trusted: .* gives {told}"):
        batch.check(Off(batch.replay, 0.01, to_zeros=to_zeros))
    assert SaeflowError.exit_code == 1


def test_not_a_number_is_an_error(batch: Batch) -> None:
    with pytest.raises(SaeflowError, match="can't be trusted"):
        batch.check(Off(batch.replay, float("nan"), to_zeros=False))


def test_rounding_is_none_but_is_told(batch: Batch) -> None:
    found = batch.check(Off(batch.replay, 5e-5, to_zeros=False))
    assert not found.identity_exact
    assert found.identity_score == pytest.approx(1, abs=1e-4)


def test_where_nothing_is_scored_nothing_is_known(source_model: SourceModel) -> None:
    found = Batch(source_model, torch.tensor([[0, 5, 1, 6, 1]])).check()
    assert found.identity_exact
    assert found.identity_score != found.identity_score  # it is not a number
    assert found.zero_score != found.zero_score


def test_the_first_batch_with_something_to_score_is_checked(
    source_model: SourceModel, sae: Path
) -> None:
    """A first sequence without two words in a row says nothing of the splice."""
    saes = open_saes(sae)
    config = EvaluateConfig(sae=sae, tokens=48, device="cpu")
    origin = origin_of(saes[0].sae)
    text = held_out_text(find_text(config, origin), config, origin, source_model)
    sequences = text.sequences.copy()
    sequences[0, 2::2] = 1
    setting = Setting(
        source_model,
        replace(text, sequences=sequences),
        "text",
        "text",
        1,
        {HOOK: Reference(torch.zeros(32), 1.0)},
        None,
    )
    measured = begin(setting, saes, [np.arange(0)])
    measure(setting, measured)
    assert measured.checks[HOOK,] == SelfCheck(1.0, True, 0.0)
