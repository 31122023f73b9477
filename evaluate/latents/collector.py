"""All that one pass over the text tells of each latent."""

import numpy as np
import torch
from jaxtyping import Bool, Float, Int, Int64
from torch import Tensor

from saeflow.evaluate.latents.contexts import TopContexts
from saeflow.evaluate.latents.firing import Active, Firing
from saeflow.evaluate.latents.result import NOWHERE, Latents
from saeflow.evaluate.latents.windows import Sequence

N_CONTEXTS = 8


class LatentCollector:
    """What latents do, from one sequence after the other, in memory that doesn't grow.

    It holds 2.1 kB a latent, 140 MB for 65,536 latents. An update takes besides up to
    1 kB for each latent that gets a new context, and some 50 bytes for each activation
    above zero; `result` takes as much again as is held.

    Args:
        d_sae: latents of the SAE.
        numbers: which of them to look at, rising; all if not given.
        n_contexts: how many contexts to keep for each.
        device: where the latents come from.
    """

    def __init__(
        self,
        d_sae: int,
        numbers: Int64[np.ndarray, " latents"] | None = None,
        *,
        n_contexts: int = N_CONTEXTS,
        device: torch.device | str = "cpu",
    ) -> None:
        device = torch.device(device)
        self.d_sae = d_sae
        self.numbers = np.arange(d_sae) if numbers is None else numbers
        self._chosen = None if numbers is None else torch.from_numpy(numbers).to(device)
        self._firing = Firing(len(self.numbers), device)
        self._contexts = TopContexts(len(self.numbers), n_contexts, device)

    @property
    def nbytes(self) -> int:
        """Bytes that are held."""
        return self._firing.nbytes + self._contexts.nbytes

    @torch.inference_mode()
    def update(
        self,
        number: int,
        tokens: Int[Tensor, " context"],
        chosen: Bool[Tensor, " context"],
        latents: Float[Tensor, "chosen d_sae"],
        *,
        own: Bool[Tensor, " context"] | None = None,
        documents: Int[Tensor, " context"] | None = None,
    ) -> None:
        """Take in a sequence.

        Args:
            number: of the sequence; each comes once.
            tokens: int64 ids.
            chosen: the positions that the SAE was applied to.
            latents: of these positions, in their order; above zero is active.
            own: False at padding, which is in no window; no padding if not given.
            documents: which document each token is of; for people to look it up.
        """
        if self._chosen is not None:
            latents = latents[:, self._chosen]
        if own is None:
            own = torch.ones_like(chosen)
        if documents is None:
            documents = torch.full_like(tokens, NOWHERE)
        active = Active.of(latents)
        self._firing.update(active, len(latents))
        if len(latents):
            sequence = Sequence(number, tokens.long(), own, chosen, documents.long())
            self._contexts.update(sequence, latents, active)

    def result(self) -> Latents:
        """What was found; of output tokens and nearest latents nothing yet."""
        edges, counts = self._firing.histogram()
        mean = self._firing.sums / self._firing.fired.clamp(min=1)
        return Latents(
            d_sae=self.d_sae,
            numbers=self.numbers.astype(np.uint32),
            rows=self._firing.rows,
            fired=self._firing.fired.cpu().numpy().copy(),
            maximum=self._contexts.maximum.cpu().numpy(),
            mean=mean.float().cpu().numpy(),
            histogram_edges=edges.cpu().numpy(),
            histogram_counts=counts.cpu().numpy().astype(np.uint32),
            contexts=self._contexts.result(),
        )
