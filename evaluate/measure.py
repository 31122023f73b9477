"""The passes of an evaluation: one clean pass a batch, and each other one from where it differs."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from jaxtyping import Float32, Int64
from torch import Tensor

from saeflow import console
from saeflow.evaluate.ablation import mean_rows, zero_rows
from saeflow.evaluate.batches import Batch, Setting, batches
from saeflow.evaluate.latents.collector import LatentCollector
from saeflow.evaluate.opening import OpenedSAE
from saeflow.evaluate.predictions import agreement, kl_divergence, prediction_losses
from saeflow.evaluate.reconstructing import make_in_parts
from saeflow.evaluate.reconstruction import ReconstructionMetrics
from saeflow.evaluate.replay import CleanPass, Replay
from saeflow.evaluate.self_check import SelfCheck, check_splice
from saeflow.evaluate.sparsity import ActiveLatents
from saeflow.evaluate.tally import Tally

Targets = tuple[str, ...]
"""The hook points that an SAE replaces."""

Rows = Mapping[str, Float32[Tensor, "rows _"]]
"""Rows of hook points, by name."""


@dataclass(frozen=True)
class Subject:
    """One SAE, and what has been found of it so far.

    Attributes:
        opened: the SAE.
        tally: of its spliced pass.
        reconstructions: of each hook point that it replaces.
        active: counts of its latents.
        latents: what each latent does; None if that was not asked for.
    """

    opened: OpenedSAE
    tally: Tally
    reconstructions: Mapping[str, ReconstructionMetrics]
    active: ActiveLatents
    latents: LatentCollector | None

    @property
    def targets(self) -> Targets:
        """The hook points that it replaces."""
        return tuple(self.opened.sae.target_hook_points)


@dataclass
class Measured:
    """All that the passes gave.

    Attributes:
        clean: of the clean pass.
        ablated: of the ablated passes, by what they replace.
        subjects: the SAEs.
        checks: of the splice, by what is replaced.
        rows: how many were replaced.
    """

    clean: Tally
    ablated: Mapping[Targets, Tally]
    subjects: Sequence[Subject]
    checks: dict[Targets, SelfCheck] = field(default_factory=dict)
    rows: int = 0


def ablations_of(setting: Setting) -> tuple[str, ...]:
    """Which ablations there are."""
    return ("zero", "mean") if setting.resampler is None else ("zero", "mean", "resample")


def begin(
    setting: Setting,
    saes: Sequence[OpenedSAE],
    looked_at: Sequence[Int64[np.ndarray, " latents"]],
) -> Measured:
    """Nothing measured yet.

    Args:
        setting: of the evaluation.
        saes: on the model's device.
        looked_at: for each, the numbers of the latents that are looked at.
    """
    device, binning = setting.model.device, setting.binning
    passes = tuple(f"{name}_ablated" for name in ablations_of(setting))
    subjects = [
        _subject(setting, one, numbers) for one, numbers in zip(saes, looked_at, strict=True)
    ]
    targets = dict.fromkeys(subject.targets for subject in subjects)
    return Measured(
        clean=Tally(("clean",), binning, device),
        ablated={replaced: Tally(passes, binning, device) for replaced in targets},
        subjects=subjects,
    )


def measure(setting: Setting, measured: Measured) -> None:
    """Run all passes over all of the text."""
    hook_points = [
        name
        for subject in measured.subjects
        for name in (*subject.opened.sae.hook_points, *subject.targets)
    ]
    replay = Replay(setting.model, hook_points)
    with console.meter("evaluating", len(setting.text.sequences), "sequences") as meter:
        for batch in batches(setting):
            _measure(setting, measured, replay, batch)
            meter.advance(len(batch.tokens))


def _subject(
    setting: Setting, opened: OpenedSAE, numbers: Int64[np.ndarray, " latents"]
) -> Subject:
    device, d_sae = setting.model.device, opened.sae.d_sae
    references = {name: setting.references[name] for name in opened.sae.target_hook_points}
    latents = LatentCollector(d_sae, numbers, device=device) if len(numbers) else None
    return Subject(
        opened,
        Tally(("spliced",), setting.binning, device, ("kl", "agrees")),
        {
            name: ReconstructionMetrics(reference.mean, reference.median_norm)
            for name, reference in references.items()
        },
        ActiveLatents(d_sae).to(device),
        latents,
    )


def _measure(setting: Setting, measured: Measured, replay: Replay, batch: Batch) -> None:
    """All passes of one batch."""
    clean = replay.clean(batch.tokens)
    rows = {name: clean.rows(name, batch.replaced) for name in clean.activations}
    losses = prediction_losses(clean.logits, batch.tokens, batch.scored)
    measured.clean.add(batch.predictions, {"clean": losses})
    measured.rows += int(batch.replaced.sum())
    for targets, tally in measured.ablated.items():
        ablated = {
            f"{name}_ablated": _losses(replay, clean, batch, put)
            for name, put in _ablations(setting, batch, {name: rows[name] for name in targets})
        }
        tally.add(batch.predictions, ablated)
        if targets not in measured.checks and len(losses):
            measured.checks[targets] = check_splice(
                replay, clean, batch.replaced, batch.scored, targets, ablated["zero_ablated"]
            )
    for subject in measured.subjects:
        _splice(subject, replay, clean, batch, rows, losses)


def _ablations(setting: Setting, batch: Batch, rows: Rows) -> Iterator[tuple[str, Rows]]:
    """What each ablation puts in the place of rows."""
    yield "zero", {name: zero_rows(found) for name, found in rows.items()}
    means = {name: setting.references[name].mean for name in rows}
    yield "mean", {name: mean_rows(means[name], found) for name, found in rows.items()}
    if setting.resampler is not None:
        places = batch.replaced.nonzero()
        sequences, positions = batch.numbers[places[:, 0]], places[:, 1]
        yield (
            "resample",
            {name: setting.resampler.rows(name, sequences, positions) for name in rows},
        )


def _splice(
    subject: Subject,
    replay: Replay,
    clean: CleanPass,
    batch: Batch,
    rows: Rows,
    clean_losses: Float32[Tensor, " scored"],
) -> None:
    """One SAE's pass."""
    put = _encode(subject, batch, rows)
    logits = replay.spliced(clean, batch.replaced, put)
    losses = prediction_losses(logits, batch.tokens, batch.scored)
    subject.tally.add(
        batch.predictions,
        {"spliced": losses},
        kl=kl_divergence(clean.logits, logits, batch.scored),
        agrees=agreement(clean.logits, logits, batch.scored),
    )
    increase = torch.full(batch.tokens.shape, torch.nan, device=losses.device)
    increase[:, :-1][batch.scored] = losses - clean_losses
    for name, metrics in subject.reconstructions.items():
        metrics.update(rows[name], put[name], increase[batch.replaced])


def _encode(subject: Subject, batch: Batch, rows: Rows) -> Rows:
    """What the SAE puts in the place of rows; its latents are looked at, sequence by sequence."""
    sizes = batch.replaced.sum(1).tolist()
    parts: dict[str, list[Tensor]] = {name: [] for name in subject.targets}
    made_parts = make_in_parts(subject.opened.sae, rows, sizes)
    for place, made in enumerate(made_parts):
        subject.active.update(made.latents)
        if subject.latents is not None:
            subject.latents.update(
                int(batch.numbers[place]),
                batch.tokens[place],
                batch.replaced[place],
                made.latents,
                own=batch.own[place],
                documents=batch.documents[place],
            )
        for name, part in made.rows.items():
            parts[name].append(part)
    return {name: torch.cat(some) for name, some in parts.items()}


def _losses(
    replay: Replay, clean: CleanPass, batch: Batch, put: Rows
) -> Float32[Tensor, " scored"]:
    logits = replay.spliced(clean, batch.replaced, put)
    return prediction_losses(logits, batch.tokens, batch.scored)
