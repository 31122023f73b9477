"""Losses added up by document, by position and by frequency, from the same predictions."""

import pytest
import torch

from saeflow.errors import BadInputError
from saeflow.evaluate.tally import Binning, Tally

CPU = torch.device("cpu")
TOKENS = torch.tensor([[0, 3, 4, 3], [0, 4, 5, 5]])
DOCUMENTS = torch.tensor([[-1, 7, 7, 8], [-1, 8, 8, 8]])
SCORED = torch.tensor([[True, True, True], [False, True, True]])
LOSSES = torch.tensor([1.0, 2.0, 4.0, 8.0, 16.0])


@pytest.fixture
def binning() -> Binning:
    frequency = torch.tensor([0, 0, 0, 0.9, 0.099, 0.001], dtype=torch.float64)
    return Binning.of(4, frequency)


def test_a_prediction_is_of_the_token_that_it_predicts(binning: Binning) -> None:
    found = binning.place(TOKENS, DOCUMENTS, SCORED)
    assert found.documents.tolist() == [7, 7, 8, 8, 8]
    assert [binning.positions.labels[at] for at in found.positions] == ["0", "1", "2", "1", "2"]
    labels = [binning.frequencies.labels[at] for at in found.frequencies]
    assert labels == ["over 1e-2", "over 1e-2", "over 1e-2", "1e-3 to 1e-2", "1e-3 to 1e-2"]


def test_sums_are_of_all_batches(binning: Binning) -> None:
    tally = Tally(("clean",), binning, CPU, ("agrees",))
    for row in (0, 1):
        rows = slice(row, row + 1)
        placed = binning.place(TOKENS[rows], DOCUMENTS[rows], SCORED[rows])
        losses = LOSSES[:3] if row == 0 else LOSSES[3:]
        tally.add(placed, {"clean": losses}, agrees=losses < 4)
    sums = tally.documents.sums()
    assert sums.documents.tolist() == [7, 8]
    assert sums.count.tolist() == [2, 3]
    assert sums.columns["clean"].tolist() == [3.0, 28.0]
    assert sums.columns["agrees"].tolist() == [2.0, 0.0]
    assert tally.by_position.breakdown().losses["clean"] == (1.0, 5.0, 10.0)
    assert tally.by_frequency.breakdown().count[-2:] == (2, 3)


def test_contexts_of_two_tokens_have_one_bin(binning: Binning) -> None:
    smallest = Binning.of(2, binning.frequency)
    tally = Tally(("clean",), smallest, CPU)
    placed = smallest.place(TOKENS[:, :2], DOCUMENTS[:, :2], torch.ones(2, 1, dtype=torch.bool))
    tally.add(placed, {"clean": LOSSES[:2]})
    found = tally.by_position.breakdown()
    assert (found.labels, found.count, found.losses["clean"]) == (("0",), (2,), (1.5,))


def test_columns_that_were_not_announced_are_refused(binning: Binning) -> None:
    placed = binning.place(TOKENS, DOCUMENTS, SCORED)
    with pytest.raises(BadInputError, match="give one for each column"):
        Tally(("clean",), binning, CPU).add(placed, {"clean": LOSSES}, kl=LOSSES)
