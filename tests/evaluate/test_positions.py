"""Which positions are replaced, and which predictions scored."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from saeflow.errors import BadInputError
from saeflow.evaluate.config import PositionChoice
from saeflow.evaluate.positions import chosen_positions, scored_predictions

SPECIAL = (0, 1, 2)
TOKENS = torch.tensor([[0, 5, 1, 7, 9], [8, 8, 2, 8, 2]])
OWN = torch.tensor([[1, 1, 1, 1, 1], [1, 1, 1, 1, 0]]).bool()


@pytest.mark.parametrize(
    ("which", "expected"),
    [
        ("text", [[0, 1, 0, 1, 1], [0, 1, 0, 1, 0]]),
        ("no-first", [[0, 1, 1, 1, 1], [0, 1, 1, 1, 0]]),
        ("all", [[1, 1, 1, 1, 1], [1, 1, 1, 1, 0]]),
    ],
)
def test_the_choices_by_hand(which: PositionChoice, expected: list[list[int]]) -> None:
    assert chosen_positions(TOKENS, OWN, SPECIAL, which).int().tolist() == expected


def test_a_prediction_counts_from_a_chosen_position_of_a_chosen_position() -> None:
    chosen = torch.tensor([[0, 1, 0, 1, 1], [1, 1, 1, 0, 1]]).bool()
    assert scored_predictions(chosen).int().tolist() == [[0, 0, 0, 1], [1, 1, 0, 0]]


def test_the_first_position_is_behind_padding_on_the_left() -> None:
    own = torch.tensor([[0, 0, 1, 1]]).bool()
    tokens = torch.tensor([[2, 2, 8, 8]])
    assert chosen_positions(tokens, own, SPECIAL, "no-first").int().tolist() == [[0, 0, 0, 1]]


def test_without_special_tokens_text_is_all_but_the_first() -> None:
    own = torch.ones(2, 4, dtype=torch.bool)
    assert chosen_positions(torch.zeros(2, 4).long(), own, []).int().tolist() == [[0, 1, 1, 1]] * 2


@given(st.lists(st.integers(0, 9), min_size=1, max_size=12), st.integers(0, 12))
def test_choices_are_nested_and_padding_is_never_chosen(tokens: list[int], length: int) -> None:
    own = (torch.arange(len(tokens)) < length)[None]
    text, no_first, everything = (
        chosen_positions(torch.tensor([tokens]), own, SPECIAL, which)
        for which in ("text", "no-first", "all")
    )
    assert torch.equal(everything, own)
    assert not (text & ~no_first).any()
    assert not (no_first & ~everything).any()
    assert int((everything & ~no_first).sum()) == min(length, 1)


@pytest.mark.usefixtures("unchecked")
def test_another_choice_is_refused() -> None:
    with pytest.raises(BadInputError, match="one of text, no-first, all"):
        chosen_positions(TOKENS, OWN, SPECIAL, "last")  # type: ignore[arg-type]
