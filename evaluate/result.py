"""What an evaluation found, and how it says so. The schema of scores.json: docs/evaluation.md."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import cache
from typing import Any

from pydantic import TypeAdapter

from saeflow.evaluate.figures import Breakdown, Estimate, Reconstruction, Score, Sparsity

SCHEMA = 2
"""The version of scores.json."""

_MANY_DEAD = 0.1

_TEXTS = {
    True: "tokens that it was trained on",
    False: "held-out tokens",
    None: "tokens that it may have been trained on",
}
"""What the verdict calls the text, by whether the SAE was trained on it."""


@dataclass(frozen=True, kw_only=True)
class EvaluationResult:
    """The scores of one SAE.

    Attributes:
        name: of the SAE folder.
        architecture, kind, d_in, d_sae: of the SAE (kind: sae, transcoder, crosscoder).
        options: what was asked for, resolved.
        model: name of what was spliced into.
        reads, replaces: hook points.
        text: source, sha256, held_out_only, trained_on, documents, sequences, sequences_available,
            context_size, tokens_scored, rows_replaced.
        positions: which positions were replaced, and which predictions scored, in words.
        mismatches: what was allowed to differ from the SAE's provenance: field, sae, here.
        checks: of the first batch: identity_score, identity_exact, zero_score.
        losses: of each pass (clean, spliced, zero_ablated, mean_ablated, resample_ablated),
            nats a token.
        scores: against each ablation (zero, mean, resample).
        kl: of clean to spliced predictions, nats a token.
        top1_agreement: share of predictions whose most likely token is the same.
        loss_increase: spliced less clean, nats a token.
        by_position, by_frequency: of the passes.
        reconstructions: one a replaced hook point.
        sparsity: of the latents.
        versions: of the libraries that computed this.
    """

    name: str
    architecture: str
    kind: str
    d_in: int
    d_sae: int
    options: Mapping[str, Any]
    model: str
    reads: tuple[str, ...]
    replaces: tuple[str, ...]
    text: Mapping[str, Any]
    positions: Mapping[str, str]
    mismatches: tuple[Mapping[str, Any], ...]
    checks: Mapping[str, Any]
    losses: Mapping[str, Estimate]
    scores: Mapping[str, Score]
    kl: Estimate
    top1_agreement: Estimate
    loss_increase: Estimate
    by_position: Breakdown
    by_frequency: Breakdown
    reconstructions: tuple[Reconstruction, ...]
    sparsity: Sparsity
    versions: Mapping[str, str]

    @property
    def reconstruction_score(self) -> float | None:
        """Against zero ablation, the ratio of sums; None where that costs next to nothing."""
        return self.scores["zero"].ratio_of_sums.value

    @property
    def reconstruction(self) -> Reconstruction:
        """Of the hook point that is replaced; of a crosscoder's, the first."""
        return self.reconstructions[0]

    @property
    def fvu(self) -> float | None:
        """Fraction of variance unexplained, sums over all rows; None where there is none."""
        return self.reconstruction.fvu

    @property
    def row_fvu(self) -> float | None:
        """Mean of each row's own fraction; None where one has no variance."""
        return self.reconstruction.row_fvu

    @property
    def l0(self) -> float:
        """Mean active latents of a row."""
        return self.sparsity.l0

    @property
    def dead(self) -> int:
        """Latents active in none of the rows."""
        return self.sparsity.dead

    @property
    def dead_share(self) -> float:
        """Dead latents over all latents."""
        return self.dead / self.d_sae

    @property
    def where(self) -> str:
        """What is replaced, in words."""
        return " and ".join(self.replaces)

    @property
    def verdict(self) -> str:
        """One line for people."""
        score = self.scores["zero"].ratio_of_sums
        if score.value is None:
            return (
                f"No score: zero ablation at {self.where} costs the model next to nothing, "
                "so there is no loss to give back."
            )
        interval = (
            "" if score.low is None else f" (95% interval {score.low:.1%} to {score.high:.1%})"
        )
        text = _TEXTS[self.text["trained_on"]]
        line = (
            f"With the SAE in its place, {self.model} keeps {score.value:.1%}{interval} of what "
            f"zero ablation at {self.where} takes away, over {self.text['tokens_scored']:,} {text}"
        )
        if self.dead_share > _MANY_DEAD:
            line += f"; {self.dead_share:.0%} of its latents are never active"
        return line + "."

    def to_json(self) -> dict[str, Any]:
        """The content of scores.json."""
        return {
            "schema": SCHEMA,
            "verdict": self.verdict,
            "reconstruction_score": self.reconstruction_score,
            "dead_share": self.dead_share,
            **asdict(self),
        }

    @staticmethod
    def from_json(scores: Mapping[str, Any]) -> "EvaluationResult":
        """The inverse of `to_json`.

        Raises:
            KeyError, TypeError, ValueError: it is no scores.json of this schema.
        """
        if scores["schema"] != SCHEMA:
            raise ValueError(f"its schema is {scores['schema']}, not {SCHEMA}")
        names = EvaluationResult.__dataclass_fields__
        result: EvaluationResult = _adapter().validate_python({n: scores[n] for n in names})
        return result


@cache
def _adapter() -> Any:
    return TypeAdapter(EvaluationResult)
