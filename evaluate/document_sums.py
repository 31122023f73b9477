"""Sums of each document, which everything that is said of a run's predictions is made from."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float, Float64, Int, Int64
from torch import Tensor

from saeflow.errors import BadInputError

_Ids = Int64[np.ndarray, " documents"]
_Sums = Float64[np.ndarray, " documents columns"]

_PENDING = 2**16
"""Rows of a table that wait to be merged, at least: merging costs a sort of all of it."""


@dataclass(frozen=True)
class DocumentSums:
    """What each document adds up to, in the order of the documents' ids.

    Attributes:
        documents: ids, (documents,).
        count: predictions of each.
        columns: by name, the sum of each document's values, float64.
    """

    documents: Int64[np.ndarray, " documents"]
    count: Int64[np.ndarray, " documents"]
    columns: Mapping[str, Float64[np.ndarray, " documents"]]

    def joined(self, other: "DocumentSums") -> "DocumentSums":
        """The columns of both: what all SAEs share, and what is one SAE's own.

        Raises:
            BadInputError: they are not of the same predictions, or a column is in both.
        """
        for name in ("documents", "count"):
            if not np.array_equal(getattr(self, name), getattr(other, name)):
                raise BadInputError(
                    f"sums of {len(self.documents):,} documents with {self.count.sum():,} "
                    f"predictions and of {len(other.documents):,} with {other.count.sum():,} "
                    "are not of the same predictions: add the same ones to both tables"
                )
        if both := sorted(self.columns.keys() & other.columns.keys()):
            raise BadInputError(f"both tables have {', '.join(both)}: give each its own names")
        return DocumentSums(self.documents, self.count, {**self.columns, **other.columns})


class DocumentTable:
    """Adds up values of predictions by document, in float64, a batch at a time.

    Memory grows with the number of documents and not with that of predictions.

    Args:
        columns: names of what is added up.
    """

    def __init__(self, *columns: str) -> None:
        self.columns = columns
        self._ids = np.empty(0, np.int64)
        self._sums = np.empty((0, len(columns) + 1))
        self._pending: list[tuple[_Ids, _Sums]] = []
        self._rows_pending = 0

    def add(
        self,
        document: Int[Tensor, " predictions"],
        **values: Float[Tensor, " predictions"] | Bool[Tensor, " predictions"],
    ) -> None:
        """Add predictions.

        Args:
            document: the id of each one's document, any integer.
            values: one for each column; true counts one, false nothing.

        Raises:
            BadInputError: the names are not those of the columns.
        """
        if set(values) != set(self.columns):
            raise BadInputError(
                f"values for {', '.join(values)} in a table of {', '.join(self.columns)}: "
                "give one for each column"
            )
        ids, rows = document.cpu().numpy().astype(np.int64), np.ones((len(document), 1))
        if values:  # one transfer from the device for all columns
            stacked = torch.stack([values[name] for name in self.columns], 1)
            rows = np.concatenate([rows, stacked.cpu().double().numpy()], 1)
        self._pending.append(_grouped(ids, rows))
        self._rows_pending += len(self._pending[-1][0])
        if self._rows_pending > max(_PENDING, len(self._ids)):
            self._merge()

    def sums(self) -> DocumentSums:
        """What has been added so far.

        Raises:
            BadInputError: a sum is not finite.
        """
        self._merge()
        columns = dict(zip(self.columns, self._sums[:, 1:].T, strict=True))
        for name, column in columns.items():
            if bad := int((~np.isfinite(column)).sum()):
                raise BadInputError(
                    f"{name} is not finite in {bad:,} of {len(column):,} documents: "
                    "evaluate in float32"
                )
        return DocumentSums(self._ids, self._sums[:, 0].astype(np.int64), columns)

    def _merge(self) -> None:
        parts = [(self._ids, self._sums), *self._pending]
        self._ids, self._sums = _grouped(
            np.concatenate([ids for ids, _ in parts]), np.concatenate([rows for _, rows in parts])
        )
        self._pending, self._rows_pending = [], 0


def _grouped(
    ids: Int64[np.ndarray, " rows"], rows: Float64[np.ndarray, "rows columns"]
) -> tuple[_Ids, _Sums]:
    """The ids that there are, in order, and the sum of each one's rows."""
    found, group = np.unique(ids, return_inverse=True)
    sums = [np.bincount(group, weights=column, minlength=len(found)) for column in rows.T]
    return found, np.stack(sums, 1).astype(np.float64)  # bincount of nothing is of integers
