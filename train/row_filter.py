"""`rows where`: what a row must be to be trained on, as options of the run.

A filter is recorded with the run that asked for it; the store keeps all its rows.
"""

from dataclasses import dataclass

from saeflow.config import require
from saeflow.errors import BadInputError

SPECIAL = "special"
"""The name for a store's BOS and separator tokens, which only the store knows."""


@dataclass(frozen=True)
class RowFilter:
    """What a row must be to be trained on.

    Attributes:
        tokens: token ids whose rows are dropped.
        special: whether those of the store's BOS and separator tokens are dropped too.
        massive: whether massive rows are dropped: their norm is more than ten times
            the median of their shard's.
        first_position, last_position: the positions in their sequence that are kept,
            the last one included; None for no end.
    """

    tokens: tuple[int, ...] = ()
    special: bool = False
    massive: bool = False
    first_position: int = 0
    last_position: int | None = None

    @staticmethod
    def parse(drop_tokens: str | None, positions: str | None, *, massive: bool) -> "RowFilter":
        """From the options of `saeflow train`.

        Raises:
            BadInputError: they can't be read.
        """
        words = [word.strip() for word in drop_tokens.split(",")] if drop_tokens else []
        ids = [word for word in words if word != SPECIAL]
        require(
            all(word.isdecimal() for word in ids) and drop_tokens != "",
            f"--drop-tokens is {drop_tokens!r}: give token ids and the word {SPECIAL}, "
            f"with commas between them, like {SPECIAL},13,198",
        )
        first, last = _parse_positions(positions)
        return RowFilter(tuple(map(int, ids)), SPECIAL in words, massive, first, last)

    @property
    def keeps_all(self) -> bool:
        """Whether it asks nothing of a row."""
        return self == RowFilter()


def _parse_positions(positions: str | None) -> tuple[int, int | None]:
    if positions is None:
        return 0, None
    first, dash, last = (part.strip() for part in positions.partition("-"))
    if not (dash and (first or "0").isdecimal() and (last or "0").isdecimal() and first + last):
        raise BadInputError(
            f"--positions is {positions!r}: give the first and the last one, like 10-100, or 10-"
        )
    begin, end = int(first or 0), int(last) if last else None
    require(end is None or begin <= end, f"--positions {positions} holds none: turn it round")
    return begin, end
