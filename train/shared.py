"""One matrix product for the encoders of several SAEs: they have equal shapes, and a common axis.

It is the largest product of a step, and for SAEs that are too small to fill a GPU
alone, one over the axis of SAEs fills it. On a CPU it gains nothing, and would round
otherwise than one SAE alone does, so there each has its own.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float
from torch import Tensor

from saeflow.train.architecture import Batch
from saeflow.train.trainer import Trainer

_LARGEST = 2**30
"""Bytes of pre-activations that are in memory at once, beyond those of one SAE."""


@dataclass(frozen=True)
class SharedEncoders:
    """SAEs whose encoders lie one after the other in memory.

    Attributes:
        names: of the SAEs.
        trainers: of each.
        encoders: a view of all of them, in which each is trained.
    """

    names: tuple[str, ...]
    trainers: tuple[Trainer, ...]
    encoders: Float[Tensor, "saes d_sae d_in"]

    @staticmethod
    def of(trainers: Mapping[str, Trainer]) -> "SharedEncoders":
        """Move the encoders of SAEs of equal shape to one place."""
        parameters = [trainer.parameters for trainer in trainers.values()]
        encoders = torch.stack([p.encoder.detach() for p in parameters])
        for place, p in zip(encoders, parameters, strict=True):
            p.encoder.data = place
        return SharedEncoders(tuple(trainers), tuple(trainers.values()), encoders)

    @torch.no_grad()
    def with_known(self, batches: Mapping[str, Batch]) -> dict[str, Batch]:
        """The batches of these SAEs, each with its pre-activations."""
        own = [batches[name] for name in self.names]
        centred = [t.parameters.centred(b.x)[0] for t, b in zip(self.trainers, own, strict=True)]
        biases = torch.stack([t.parameters.b_enc for t in self.trainers])[:, None]
        with self.trainers[0].autocast():
            known = torch.baddbmm(biases, torch.stack(centred), self.encoders.mT)
        return {
            name: replace(batch, known=pre)
            for name, batch, pre in zip(self.names, own, known, strict=True)
        }


def share_encoders(trainers: Mapping[str, Trainer], batch_size: int) -> list[SharedEncoders]:
    """The groups of SAEs that share a product; the others, and large ones, have their own.

    Args:
        trainers: of all SAEs, by name.
        batch_size: rows of a batch.
    """
    by_shape: dict[tuple[int, ...], dict[str, Trainer]] = {}
    for name, trainer in trainers.items():
        if trainer.accumulate == 1 and trainer.settings.decoder == "unit":
            by_shape.setdefault(tuple(trainer.parameters.encoder.shape), {})[name] = trainer
    groups = []
    for (d_sae, _), alike in by_shape.items():
        most = max(1, _LARGEST // (4 * batch_size * d_sae))
        names = list(alike)
        parts = [names[first : first + most] for first in range(0, len(names), most)]
        groups += [_group(alike, part) for part in parts if len(part) > 1]
    return groups


def _group(trainers: Mapping[str, Trainer], names: Sequence[str]) -> SharedEncoders:
    return SharedEncoders.of({name: trainers[name] for name in names})
