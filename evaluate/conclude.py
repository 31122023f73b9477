"""From what was measured to results."""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import version
from typing import Any

from saeflow.errors import BadInputError
from saeflow.evaluate.batches import Setting
from saeflow.evaluate.breakdown import joined
from saeflow.evaluate.config import PositionChoice
from saeflow.evaluate.decoder_cosines import largest_cosines
from saeflow.evaluate.document_sums import DocumentSums
from saeflow.evaluate.estimates import difference_estimate, mean_estimate, score_estimate
from saeflow.evaluate.figures import Breakdown
from saeflow.evaluate.measure import Measured, Subject, ablations_of
from saeflow.evaluate.mismatch import Mismatch
from saeflow.evaluate.resamples import Resamples
from saeflow.evaluate.result import EvaluationResult
from saeflow.evaluate.self_check import SelfCheck

_LIBRARIES = ("saeflow", "torch", "transformers", "transformer-lens")
_WHERE: Mapping[PositionChoice, str] = {
    "text": "all but position 0 and special tokens",
    "no-first": "all but position 0",
    "all": "all",
}


@dataclass(frozen=True)
class Asked:
    """What a result repeats of the SAE's evaluation.

    Attributes:
        options: resolved.
        mismatches: that were allowed.
        seed: of the intervals' draws.
    """

    options: Mapping[str, Any]
    mismatches: Sequence[Mismatch]
    seed: int


def conclude(
    setting: Setting, measured: Measured, subject: Subject, asked: Asked
) -> EvaluationResult:
    """The result of one SAE.

    Raises:
        BadInputError: a figure is not finite.
    """
    try:
        result = _result(setting, measured, subject, asked)
    except BadInputError as error:
        raise BadInputError(f"SAE {subject.opened.name}: {error}") from error
    if wrong := next(_not_finite(asdict(result)), None):
        raise BadInputError(
            f"SAE {subject.opened.name}: {wrong} is not finite: evaluate in float32"
        )
    return result


def _result(
    setting: Setting, measured: Measured, subject: Subject, asked: Asked
) -> EvaluationResult:
    sae, ablated = subject.opened.sae, measured.ablated[subject.targets]
    sums = measured.clean.documents.sums().joined(ablated.documents.sums())
    sums = sums.joined(subject.tally.documents.sums())
    resamples = Resamples(len(sums.documents), seed=asked.seed)
    kinds = ablations_of(setting)
    passes = ("clean", "spliced", *(f"{kind}_ablated" for kind in kinds))
    return EvaluationResult(
        name=subject.opened.name,
        architecture=str(sae.cfg["architecture"]),
        kind=sae.kind,
        d_in=sae.d_in,
        d_sae=sae.d_sae,
        options=asked.options,
        model=setting.model.spec.name,
        reads=tuple(sae.hook_points),
        replaces=subject.targets,
        text=_text(setting, measured, sums),
        positions=_positions(setting),
        mismatches=tuple(mismatch.to_json() for mismatch in asked.mismatches),
        checks=_checks(measured.checks[subject.targets]),
        losses={name: mean_estimate(sums, resamples, name) for name in passes},
        scores={kind: score_estimate(sums, resamples, f"{kind}_ablated") for kind in kinds},
        kl=mean_estimate(sums, resamples, "kl"),
        top1_agreement=mean_estimate(sums, resamples, "agrees"),
        loss_increase=difference_estimate(sums, resamples, "spliced", "clean"),
        by_position=_broken_down(measured, subject, "by_position"),
        by_frequency=_broken_down(measured, subject, "by_frequency"),
        reconstructions=tuple(m.compute(name) for name, m in subject.reconstructions.items()),
        sparsity=subject.active.sparsity(largest_cosines(sae.parameters.W_dec)),
        versions={library: version(library) for library in _LIBRARIES},
    )


def _text(setting: Setting, measured: Measured, sums: DocumentSums) -> dict[str, Any]:
    text = setting.text
    return {
        "source": text.source,
        "sha256": text.sha256,
        "held_out_only": None if text.trained_on is None else not text.trained_on,
        "trained_on": text.trained_on,
        "documents": len(sums.documents),
        "sequences": len(text.sequences),
        "sequences_available": text.available,
        "context_size": text.sequences.shape[1],
        "tokens_scored": int(sums.count.sum()),
        "rows_replaced": measured.rows,
    }


def _positions(setting: Setting) -> dict[str, str]:
    return {
        "replaced": f"{_WHERE[setting.replace]}, the same in every pass",
        "scored": f"next-token predictions with both tokens among: {_WHERE[setting.score]}",
    }


def _checks(check: SelfCheck) -> dict[str, Any]:
    found = asdict(check)
    return {k: None if isinstance(v, float) and math.isnan(v) else v for k, v in found.items()}


def _not_finite(found: Any, name: str = "") -> Iterator[str]:
    """The names of figures that JSON has no number for."""
    if isinstance(found, float) and not math.isfinite(found):
        yield name.removeprefix(".")
    elif isinstance(found, Mapping):
        for key, value in found.items():
            yield from _not_finite(value, f"{name}.{key}")
    elif isinstance(found, list | tuple):
        for number, value in enumerate(found):
            yield from _not_finite(value, f"{name}.{number}")


def _broken_down(measured: Measured, subject: Subject, which: str) -> Breakdown:
    tallies = (measured.clean, measured.ablated[subject.targets], subject.tally)
    clean, ablated, own = (getattr(tally, which).breakdown() for tally in tallies)
    return joined(joined(clean, ablated), own)
