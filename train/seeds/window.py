"""What is known of the rows since the last resampling."""

from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Float, Int64
from torch import Tensor


@dataclass
class Window:
    """What one process has seen since the last resampling, as far as it is kept.

    Attributes:
        fired: in how many of the counted rows each latent fired.
        n_seen: rows trained on.
        n_counted: rows whose firing was counted.
        rows: those to resample from, batch by batch, without a graph; copies.
        losses: of those rows; none where they are to be computed later.
    """

    fired: Int64[Tensor, "components latents"]
    n_seen: int = 0
    n_counted: int = 0
    rows: list[Float[Tensor, "_ components width"]] = field(default_factory=list)
    losses: list[Float[Tensor, "_ components"]] = field(default_factory=list)

    @staticmethod
    def empty(n_components: int, n_latents: int) -> "Window":
        """Nothing seen yet.

        >>> Window.empty(1, 2)
        Window(fired=tensor([[0, 0]]), n_seen=0, n_counted=0, rows=[], losses=[])
        """
        return Window(torch.zeros(n_components, n_latents, dtype=torch.int64))

    @property
    def n_kept(self) -> int:
        """Rows to resample from."""
        return sum(len(rows) for rows in self.rows)

    def count(self, fired: Int64[Tensor, "components latents"], n_rows: int) -> None:
        """Add how often each latent fired in some rows."""
        self.fired = self.fired.to(fired.device) + fired
        self.n_counted += n_rows

    def keep(
        self,
        rows: Float[Tensor, "batch components width"],
        losses: Float[Tensor, "batch components"] | None,
    ) -> None:
        """Keep copies of some rows and of their losses, if there are any rows."""
        if len(rows):
            self.rows.append(rows.detach().clone())
            if losses is not None:
                self.losses.append(losses.detach().clone())

    def rows_at(
        self,
        component: int,
        places: Int64[Tensor, " places"],
        like: Float[Tensor, "*shape width"],
    ) -> Float[Tensor, "places width"]:
        """Kept rows by their place among all kept ones; zeros for places outside.

        In float32 or wider, on the device of `like`, and of its width.
        """
        found = like.new_zeros(
            len(places), like.shape[-1], dtype=torch.promote_types(like.dtype, torch.float32)
        )
        first = 0
        for rows in self.rows:
            here = ((places >= first) & (places < first + len(rows))).nonzero().flatten()
            chosen = rows[(places[here] - first).to(rows.device), component]
            found[here.to(found.device)] = chosen.to(found)
            first += len(rows)
        return found

    def state_dict(self) -> dict[str, Any]:
        """All of it: tensors and whole numbers. Rows are absent where there are none."""
        state: dict[str, Any] = {
            "fired": self.fired,
            "n_seen": self.n_seen,
            "n_counted": self.n_counted,
        }
        for name, batches in (("rows", self.rows), ("losses", self.losses)):
            if batches:
                state[name] = torch.cat(batches)
        return state

    @staticmethod
    def from_state(state: dict[str, Any]) -> "Window":
        """What a `state_dict` says."""
        return Window(
            state["fired"].clone(),
            int(state["n_seen"]),
            int(state["n_counted"]),
            *([state[name].clone()] if name in state else [] for name in ("rows", "losses")),
        )
