"""What an evaluation found, and how it says so."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

SCHEMA = 1
"""The version of scores.json."""

_MANY_DEAD = 0.1


@dataclass(frozen=True, kw_only=True)
class EvaluationResult:
    """The scores of one SAE.

    Attributes:
        name: of the SAE folder.
        options: what was asked for, resolved.
        model, hook_point: what was spliced.
        text: where the held-out text is from, and how much of it there was.
        positions: which positions were replaced, and which predictions scored.
        losses: mean next-token loss of the clean, spliced and zero-ablated pass.
        reconstruction_score: None where ablation costs next to nothing.
        fvu: fraction of variance unexplained, sums over all rows.
        row_fvu: the mean of each row's own fraction.
        l0: mean active latents of a row.
        dead: latents active in none of the rows.
        d_sae: latents.
        versions: of the libraries that computed this.
    """

    name: str
    options: Mapping[str, Any]
    model: str
    hook_point: str
    text: Mapping[str, Any]
    positions: Mapping[str, str]
    losses: Mapping[str, float]
    reconstruction_score: float | None
    fvu: float
    row_fvu: float
    l0: float
    dead: int
    d_sae: int
    versions: Mapping[str, str]

    @property
    def dead_share(self) -> float:
        """Dead latents over all latents."""
        return self.dead / self.d_sae

    @property
    def verdict(self) -> str:
        """One line for people."""
        if self.reconstruction_score is None:
            return (
                f"No score: zero ablation at {self.hook_point} costs the model next to nothing, "
                "so there is no loss to give back."
            )
        line = (
            f"With the SAE in its place, {self.model} keeps {self.reconstruction_score:.1%} of "
            f"what zero ablation at {self.hook_point} takes away, over "
            f"{self.text['tokens_scored']:,} held-out tokens"
        )
        if self.dead_share > _MANY_DEAD:
            line += f"; {self.dead_share:.0%} of its latents are never active"
        return line + "."

    def to_json(self) -> dict[str, Any]:
        """The content of scores.json."""
        fields = asdict(self)
        return {"schema": SCHEMA, **fields, "dead_share": self.dead_share, "verdict": self.verdict}

    @staticmethod
    def from_json(scores: Mapping[str, Any]) -> "EvaluationResult":
        """The inverse of `to_json`.

        Raises:
            KeyError: it is no scores.json of this schema.
        """
        names = EvaluationResult.__dataclass_fields__
        return EvaluationResult(**{name: scores[name] for name in names})
