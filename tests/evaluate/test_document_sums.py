"""Sums by document against a dictionary: any ids, any batches, any order."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from saeflow.errors import BadInputError
from saeflow.evaluate.document_sums import DocumentTable


def test_values_of_a_document_are_added_up() -> None:
    table = DocumentTable("clean", "agrees")
    table.add(torch.tensor([7, -3, 7]), clean=torch.tensor([1.0, 5.0, 2.0]), agrees=BOOLS)
    table.add(torch.tensor([7]), clean=torch.tensor([4.0]), agrees=torch.tensor([True]))
    sums = table.sums()
    assert sums.documents.tolist() == [-3, 7]
    assert sums.count.tolist() == [1, 3]
    assert sums.columns["clean"].tolist() == [5.0, 7.0]
    assert sums.columns["agrees"].tolist() == [0.0, 3.0]


BOOLS = torch.tensor([True, False, True])


def draw(n: int, seed: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(-(2**62), 2**62, (9,), generator=generator)
    document = ids[torch.randint(9, (n,), generator=generator)]
    return document, torch.randn(n, generator=generator) + 5


@given(cuts=st.lists(st.integers(0, 80), max_size=8), seed=st.integers(0, 2**20))
def test_batches_and_order_make_no_difference(cuts: list[int], seed: int) -> None:
    document, loss = draw(80, seed)
    expected: dict[int, float] = {}
    for each, value in zip(document.tolist(), loss.tolist(), strict=True):
        expected[each] = expected.get(each, 0.0) + value
    shuffled = torch.randperm(80, generator=torch.Generator().manual_seed(seed))
    table = DocumentTable("clean")
    for first, stop in zip([0, *sorted(cuts)], [*sorted(cuts), 80], strict=True):
        rows = shuffled[first:stop]
        table.add(document[rows], clean=loss[rows])
    sums = table.sums()
    assert sums.documents.tolist() == sorted(expected)
    np.testing.assert_allclose(
        sums.columns["clean"], [expected[each] for each in sorted(expected)], rtol=1e-9
    )


def test_a_million_predictions_of_one_document_lose_no_digits() -> None:
    """In float32 the sum would stop growing properly at 2 ** 24."""
    table = DocumentTable("clean")
    for _ in range(20):
        table.add(torch.zeros(50_000, dtype=torch.long), clean=torch.full((50_000,), 33.0))
    assert table.sums().columns["clean"].tolist() == [33e6]


def test_many_documents_are_merged_on_the_way() -> None:
    table = DocumentTable("clean")
    for _ in range(3):
        table.add(torch.arange(100_000), clean=torch.ones(100_000))
        assert sum(len(ids) for ids, _ in table._pending) <= 100_000
    assert set(table.sums().columns["clean"].tolist()) == {3.0}


def test_shared_and_own_columns_are_joined_by_document() -> None:
    shared, own = DocumentTable("clean"), DocumentTable("spliced")
    shared.add(torch.tensor([4, 2]), clean=torch.tensor([1.0, 2.0]))
    own.add(torch.tensor([2, 4]), spliced=torch.tensor([3.0, 5.0]))
    joined = shared.sums().joined(own.sums())
    assert {name: column.tolist() for name, column in joined.columns.items()} == {
        "clean": [2.0, 1.0],
        "spliced": [3.0, 5.0],
    }


@pytest.mark.parametrize("document", [[2, 2, 4], [2, 5], [2]])
def test_sums_of_other_predictions_are_not_joined(document: list[int]) -> None:
    shared, own = DocumentTable("clean"), DocumentTable("spliced")
    shared.add(torch.tensor([4, 2]), clean=torch.tensor([1.0, 2.0]))
    own.add(torch.tensor(document), spliced=torch.ones(len(document)))
    with pytest.raises(BadInputError, match="not of the same predictions"):
        shared.sums().joined(own.sums())
    with pytest.raises(BadInputError, match="both tables have clean"):
        shared.sums().joined(shared.sums())


def test_losses_that_are_not_finite_are_refused() -> None:
    table = DocumentTable("clean", "spliced")
    values = torch.tensor([1.0, torch.inf, torch.nan])
    table.add(torch.tensor([1, 1, 2]), clean=torch.ones(3), spliced=values)
    with pytest.raises(BadInputError, match="spliced is not finite in 2 of 2 documents"):
        table.sums()


def test_a_column_without_values_is_refused() -> None:
    with pytest.raises(BadInputError, match="values for kl in a table of clean"):
        DocumentTable("clean").add(torch.tensor([1]), kl=torch.ones(1))
