"""What an SAE was made from against what is used now: one difference, refused or allowed."""

from collections.abc import Collection
from dataclasses import asdict, dataclass

from saeflow.errors import BadInputError


@dataclass(frozen=True)
class Mismatch:
    """A thing that is not what the SAE was made from.

    Attributes:
        field: one of `MISMATCH_FIELDS`.
        sae: what the SAE says.
        here: what is used.
        remedy: what would make them the same.
    """

    field: str
    sae: str
    here: str
    remedy: str

    def to_json(self) -> dict[str, str]:
        """What a result says of it."""
        return {name: value for name, value in asdict(self).items() if name != "remedy"}


def settle(sae: str, mismatch: Mismatch, allow: Collection[str]) -> None:
    """Refuse a mismatch that is not allowed; both sides are told.

    Args:
        sae: the SAE's name.
        mismatch: what differs.
        allow: fields that may.

    Raises:
        BadInputError: this one may not.
    """
    if mismatch.field not in allow:
        raise BadInputError(
            f"{mismatch.field} differs: SAE {sae} was made from {mismatch.sae}, here is "
            f"{mismatch.here}: {mismatch.remedy}, or add --allow-mismatch {mismatch.field}"
        )
