"""The text in batches: what is replaced and scored in each, and text that has nothing of it."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from saeflow.errors import BadInputError
from saeflow.evaluate.batches import Setting, batches, check_text
from saeflow.evaluate.text import HeldOutText
from saeflow.harvest.models import SourceModel
from saeflow.harvest.tokens import Packing

TOKENS = [[0, 5, 6, 1, 7, 8], [0, 9, 1, 1, 1, 1], [0, 1, 5, 5, 5, 1]]
LENGTHS = [6, 2, 6]


@pytest.fixture
def text() -> HeldOutText:
    """Three sequences; the second one is padded after two tokens."""
    documents = np.array(TOKENS) * 0 + 4
    documents[0, 4:], documents[:, 0], documents[1, 2:] = 7, -1, -1
    return HeldOutText(
        source="here",
        sequences=np.array(TOKENS, np.uint32),
        available=3,
        documents=documents,
        lengths=np.array(LENGTHS),
        frequency=np.full(300, 1 / 300),
        trained_on=False,
        packing=Packing(context_size=6, bos=0, separator=1),
        dataset=None,
        dataset_sha256=None,
        store_identity=None,
    )


@pytest.fixture
def setting(source_model: SourceModel, text: HeldOutText) -> Setting:
    return Setting(source_model, text, "text", "no-first", 2, {}, None)


def test_every_sequence_is_in_one_batch(setting: Setting) -> None:
    first, second = batches(setting)
    assert torch.cat([first.numbers, second.numbers]).tolist() == [0, 1, 2]
    assert torch.cat([first.tokens, second.tokens]).tolist() == TOKENS
    assert torch.cat([first.own, second.own]).sum(1).tolist() == LENGTHS


def test_what_is_replaced_and_scored(setting: Setting) -> None:
    first, second = batches(setting)
    assert first.replaced.int().tolist() == [[0, 1, 1, 0, 1, 1], [0, 1, 0, 0, 0, 0]]
    assert second.replaced.int().tolist() == [[0, 0, 1, 1, 1, 0]]
    assert first.scored.int().tolist() == [[0, 1, 1, 1, 1], [0, 0, 0, 0, 0]]
    assert second.scored.int().tolist() == [[0, 1, 1, 1, 1]]
    assert first.predictions.documents.tolist() == [4, 4, 7, 7]  # of the predicted token
    labels = setting.binning.positions.labels
    assert [labels[place] for place in first.predictions.positions] == ["1", "2-3", "2-3", "4"]


def test_a_token_of_the_padding_is_no_text(setting: Setting) -> None:
    every = replace(setting, replace="all", score="all")
    assert sum(int(batch.replaced.sum()) for batch in batches(every)) == sum(LENGTHS)
    assert sum(int(batch.scored.sum()) for batch in batches(every)) == sum(LENGTHS) - 3


def test_text_with_nothing_to_score_is_refused(setting: Setting, text: HeldOutText) -> None:
    check_text(setting)
    apart = np.array([[0, 5, 1, 5, 1, 5]] * 3, np.uint32)
    alternating = replace(setting, text=replace(text, sequences=apart), score="text")
    with pytest.raises(BadInputError, match=r"text of here has no prediction to score in its 3 "):
        check_text(alternating)
    special = np.array([[0, 1, 1, 2, 1, 0]] * 3, np.uint32)
    without_text = replace(setting, text=replace(text, sequences=special))
    with pytest.raises(BadInputError, match=r"no position to replace in its 3 sequences of up to"):
        check_text(without_text)
    check_text(replace(without_text, replace="all"))
