"""The figures of an evaluation, and what each becomes on its way to SAELens's."""

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from evaluate_passes import BATCH_SIZE, Seen
from torch import Tensor

from saeflow.evaluate.positions import chosen_positions, scored_predictions
from saeflow.evaluate.reconstruction import ReconstructionMetrics
from saeflow.evaluate.sparsity import ActiveLatents
from saeflow.train.sae import SAE

OF_SPECIAL = "predictions of special tokens are scored too"
ABLATED_ALL = "zero ablation at every position, BOS too"
LAST = "the prediction from the last position counts, which is of no token"
BIAS_COUNTS = "an error that is the same in every row counts (1 - FVU)"
BATCH_MEAN = f"around the mean of {BATCH_SIZE} sequences at a time, not that of the training rows"
BATCH_RATIOS = f"a mean of ratios, each of {BATCH_SIZE} sequences"


Steps = tuple[tuple[str, float], ...]
"""What is switched on, and what a figure then is; the first is as it is here."""


@dataclass(frozen=True)
class Figure:
    """One figure, and how it becomes SAELens's.

    Attributes:
        name: here.
        steps: the way.
        peer_name: its name there.
        peer: what it is there.
    """

    name: str
    steps: Steps
    peer_name: str
    peer: float

    @property
    def left(self) -> float:
        """The difference after the last step, of the value where that is above 1."""
        return relative(self.steps[-1][1], self.peer)


def relative(value: float, reference: float) -> float:
    """How far apart they are, of the reference where that is above 1; NaN is infinitely far."""
    found = abs(value - reference) / max(1.0, abs(reference))
    return math.inf if math.isnan(found) else found


def loss_figures(seen: Seen, special: list[int], peer: dict[str, float]) -> Iterator[Figure]:
    """Beside `run_evals` as it is by default, which leaves special tokens out."""
    chosen = chosen_positions(seen.tokens, torch.ones_like(seen.tokens) > 0, special)
    ours, theirs = scored_predictions(chosen), chosen[:, :-1]

    def steps(values: Tensor) -> Steps:
        return ("", _mean(values[ours])), (OF_SPECIAL, _mean(values[theirs]))

    kl = seen.kl["text"]
    ablated_all = ABLATED_ALL, _mean(seen.losses["ablated all"][theirs])
    yield from _loss_figures(
        peer,
        clean=steps(seen.losses["clean"]),
        spliced=steps(seen.losses["spliced text"]),
        ablated=(*steps(seen.losses["ablated text"]), ablated_all),
        kl=(*steps(kl[:, :-1]), (LAST, _mean(kl[chosen]))),
    )


def loss_figures_everywhere(seen: Seen, peer: dict[str, float]) -> Iterator[Figure]:
    """Beside `run_evals(exclude_special_tokens=False)`: all positions replaced and scored."""
    yield from _loss_figures(
        peer,
        clean=(("", _mean(seen.losses["clean"])),),
        spliced=(("", _mean(seen.losses["spliced all"])),),
        ablated=(("", _mean(seen.losses["ablated all"])),),
        kl=(("", _mean(seen.kl["all"][:, :-1])), (LAST, _mean(seen.kl["all"]))),
    )


def _loss_figures(
    peer: dict[str, float], clean: Steps, spliced: Steps, ablated: Steps, kl: Steps
) -> Iterator[Figure]:
    """The losses and what is made of them; losses of fewer steps than the ablated stay."""
    scores = []
    for i, (cause, zero) in enumerate(ablated):
        (_, own), (_, with_sae) = (steps[min(i, len(steps) - 1)] for steps in (clean, spliced))
        scores.append((cause, (zero - with_sae) / (zero - own)))
    for name, peer_name, steps in (
        ("reconstruction score", "ce_loss_score", tuple(scores)),
        ("clean loss", "ce_loss_without_sae", clean),
        ("spliced loss", "ce_loss_with_sae", spliced),
        ("zero-ablated loss", "ce_loss_with_ablation", ablated),
        ("KL", "kl_div_with_sae", kl),
    ):
        yield Figure(name, steps, peer_name, peer[peer_name])


def row_figures(
    sae: SAE, seen: Seen, chosen: Tensor, mean: Tensor, peer: dict[str, float]
) -> Iterator[Figure]:
    """Of the rows at chosen positions."""
    parts = (part.split(BATCH_SIZE) for part in (seen.x, seen.x_hat, chosen))
    batches = [(x[mask], x_hat[mask]) for x, x_hat, mask in zip(*parts, strict=True)]
    metrics = ReconstructionMetrics(mean, seen.x[chosen].norm(dim=1).median().item())
    active = ActiveLatents(sae.d_sae)
    for x, x_hat in batches:
        metrics.update(x, x_hat, torch.full((len(x),), torch.nan))
        active.update(sae.encode(x))
    found, sparsity = metrics.compute(sae.hook_point), active.sparsity(torch.empty(0))

    def of(name: str) -> float:
        return float(getattr(found, name))

    batch_fvu = torch.cat([_row_fvu(*batch) for batch in batches])
    batch_bias = torch.tensor([_relative_bias(*batch) for batch in batches])
    peer = peer | {f"1 - {key}": 1 - value for key, value in peer.items()}
    figures: dict[str, tuple[str, Steps]] = {
        "FVU": ("1 - explained_variance", (("", of("fvu")),)),
        "explained variance": (
            "explained_variance",
            (("", of("explained_variance")), (BIAS_COUNTS, 1 - of("fvu"))),
        ),
        "FVU per row": (
            "1 - explained_variance_legacy",
            (("", of("row_fvu")), (BATCH_MEAN, _mean(batch_fvu))),
        ),
        "relative bias": (
            "relative_reconstruction_bias",
            (("", of("relative_bias")), (BATCH_RATIOS, _mean(batch_bias))),
        ),
        "MSE": ("mse", (("", of("mse")),)),
        "cosine": ("cossim", (("", of("cosine")),)),
        "L2 ratio": ("l2_ratio", (("", of("l2_ratio")),)),
        "L0": ("l0", (("", sparsity.l0),)),
        "L1": ("l1", (("", sparsity.l1),)),
        "dead latents": ("dead", (("", sparsity.dead),)),
    }
    for name, (peer_name, steps) in figures.items():
        yield Figure(name, steps, peer_name, peer[peer_name])


def _mean(values: Tensor) -> float:
    return values.double().mean().item()


def _relative_bias(x: Tensor, x_hat: Tensor) -> float:
    return (x_hat.double().square().sum() / (x * x_hat).double().sum()).item()


def _row_fvu(x: Tensor, x_hat: Tensor) -> Tensor:
    x = x.double()
    return (x - x_hat).square().sum(1) / (x - x.mean(0)).square().sum(1)
