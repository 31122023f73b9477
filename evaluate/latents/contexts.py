"""Where in the text each latent is most active: the best few places, streamed."""

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from saeflow.evaluate.latents import windows
from saeflow.evaluate.latents.firing import Active
from saeflow.evaluate.latents.result import NOWHERE, Contexts
from saeflow.evaluate.latents.windows import Sequence


class TopContexts:
    """The contexts with the largest activations of each latent.

    A sequence offers each latent one place, its first largest activation there. Of places
    of the same words (`windows.SAME_TOKENS` equal tokens) the one with the larger
    activation is kept. What is kept in the end doesn't depend on the order of sequences,
    as long as activations differ; of equal ones the first is kept.

    It takes 226 bytes a context: 118 MB for 65,536 latents with 8 contexts.
    """

    def __init__(self, n: int, n_contexts: int, device: torch.device) -> None:
        def state(dtype: torch.dtype, *shape: int) -> Tensor:
            fill = NOWHERE if dtype in (torch.int32, torch.int64) else 0
            return torch.full((n, n_contexts, *shape), fill, dtype=dtype, device=device)

        self._values = state(torch.float32)
        self._keys = state(torch.int64)
        self._sequences = state(torch.int32)
        self._documents = state(torch.int64)
        self._positions = state(torch.int32)
        self._tokens = state(torch.int32, windows.WIDTH)
        self._activations = state(torch.float16, windows.WIDTH)

    @property
    def maximum(self) -> Float[Tensor, " latents"]:
        """Each latent's largest activation; 0 if it has none."""
        return self._values.amax(1)

    @property
    def nbytes(self) -> int:
        """Bytes that are held."""
        return sum(state.nbytes for state in vars(self).values())

    def update(
        self, sequence: Sequence, latents: Float[Tensor, "rows latents"], active: Active
    ) -> None:
        """Take in a sequence; `latents` are of its chosen positions."""
        values, rows = windows.peaks(active, n=latents.shape[1], rows=latents.shape[0])
        numbers = (values > self._values.amin(1)).nonzero().flatten()
        values, rows = values[numbers], rows[numbers]
        positions = sequence.chosen.nonzero().flatten()[rows]
        words = windows.keys(sequence)[positions]
        slots = self._slots(numbers, words)
        better = values > self._values[numbers, slots]
        numbers, slots, values = numbers[better], slots[better], values[better]
        positions, words = positions[better], words[better]
        cut = windows.cut(sequence, latents, numbers, positions)
        place = numbers, slots
        self._values[place] = values
        self._keys[place] = words
        self._sequences[place] = sequence.number
        self._documents[place] = sequence.documents[positions]
        self._positions[place] = positions.int()
        self._tokens[place] = cut.tokens
        self._activations[place] = cut.activations

    def _slots(
        self, numbers: Int[Tensor, " some"], words: Int[Tensor, " some"]
    ) -> Int[Tensor, " some"]:
        """Where a context would go: in place of one of the same words, else of the least."""
        values = self._values[numbers]
        same = (self._keys[numbers] == words[:, None]) & (values > 0)
        return torch.where(same.any(1), same.int().argmax(1), values.argmin(1))

    def result(self) -> Contexts:
        """What is kept, the largest activation first."""
        order = self._values.argsort(dim=1, descending=True, stable=True)
        rank = torch.arange(len(order), device=order.device)[:, None]

        def ordered(state: Tensor) -> np.ndarray:
            return state[rank, order].cpu().numpy()

        return Contexts(
            values=ordered(self._values),
            sequences=ordered(self._sequences),
            documents=ordered(self._documents),
            positions=ordered(self._positions),
            tokens=ordered(self._tokens).view(np.uint32),  # of -1 this makes NO_TOKEN
            activations=ordered(self._activations),
            before=windows.BEFORE,
        )
