"""The options of `saeflow train`."""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from typing_extensions import Doc

from saeflow.config import require
from saeflow.location import Place
from saeflow.train.row_filter import RowFilter


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """Which rows, which sparse autoencoder, how it is trained, and where it goes.

    Raises:
        BadInputError: an option's value makes no sense, or two contradict each other.
    """

    store: Annotated[Place, Doc("Folder or s3://, gs:// or http(s):// URL of a complete store.")]
    out: Annotated[Path, Doc("Folder of the run.")]
    hook: Annotated[str | None, Doc("Hook point; not needed if the store holds one.")] = None
    arch: Annotated[Literal["topk", "relu"], Doc("Architecture of the SAE.")] = "topk"
    d_sae: Annotated[int | None, Doc("Latents.")] = None
    expansion: Annotated[
        float | None, Doc("Latents as a multiple of the hook point's width, instead of --d-sae.")
    ] = None
    k: Annotated[int | None, Doc("Latents active in a row (topk). 32 if not given.")] = None
    l1: Annotated[float | None, Doc("Weight of the L1 penalty (relu). 5 if not given.")] = None
    lr: Annotated[float | None, Doc("Peak learning rate; chosen by d_sae if not given.")] = None
    batch_size: Annotated[int, Doc("Rows in a training step.")] = 2048
    tokens: Annotated[
        int | None, Doc("Rows to train on, over several epochs if need be; one epoch if not given.")
    ] = None
    warm_up: Annotated[float, Doc("Share of the steps over which the rate rises.")] = 0.05
    decay: Annotated[float, Doc("Share of the steps, at the end, over which it falls to zero.")] = (
        0.2
    )
    dead_after: Annotated[
        int, Doc("A latent counts as dead after this many rows without being active.")
    ] = 500_000
    seed: Annotated[int, Doc("Seed of the initial weights and of the order of rows.")] = 0
    device: Annotated[str, Doc("auto, cpu, or cuda.")] = "auto"
    log_every: Annotated[int, Doc("Steps between two lines of metrics.jsonl.")] = 50
    drop_tokens: Annotated[
        str | None,
        Doc("Token ids whose rows are not trained on, like 13,198; 'special' for BOS, separator."),
    ] = None
    drop_massive: Annotated[
        bool, Doc("Leave out rows with a norm over ten times the median of their shard.")
    ] = False
    positions: Annotated[
        str | None, Doc("Positions in their sequence of the rows to train on, like 10-100 or 10-.")
    ] = None
    window_rows: Annotated[
        int | None,
        Doc(
            "Rows that are mixed in memory; two such windows are held. Not needed for a permuted "
            "store; 64 chunks of one that is compressed or remote, a million rows of one in "
            "sequence order if not given."
        ),
    ] = None
    reader: Annotated[
        Literal["auto", "process", "thread"],
        Doc("Who reads the store: a process of its own, or a thread where little is read."),
    ] = "auto"

    def __post_init__(self) -> None:
        positive = (
            *("d_sae", "expansion", "k", "lr", "batch_size", "dead_after", "log_every"),
            "window_rows",
        )
        for name in positive:
            value = getattr(self, name)
            flag = f"--{name.replace('_', '-')}"
            require(
                value is None or 0 < value < math.inf,
                f"{flag} is {value}: it must be more than 0, and finite",
            )
        require(
            (self.d_sae is None) != (self.expansion is None),
            "the width is needed once: give --d-sae or --expansion, not both",
        )
        require(self.tokens is None or self.tokens >= 0, f"--tokens is {self.tokens}: at least 0")
        require(
            self.l1 is None or 0 <= self.l1 < math.inf,
            f"--l1 is {self.l1}: it must be at least 0, and finite",
        )
        require(
            self.l1 is None or self.arch == "relu",
            f"--l1 is for --arch relu: --arch {self.arch} has no L1 penalty",
        )
        require(
            self.k is None or self.arch == "topk",
            f"--k is for --arch topk: --arch {self.arch} has no fixed number of active latents",
        )
        assert self.rows_where is not None  # a filter that makes no sense is refused now
        for name in ("warm_up", "decay"):
            value = getattr(self, name)
            require(
                0 <= value <= 1, f"--{name.replace('_', '-')} is {value}: it is a share, 0 to 1"
            )
        require(
            self.warm_up + self.decay <= 1,
            f"--warm-up {self.warm_up} and --decay {self.decay} overlap: their sum is at most 1",
        )

    @property
    def rows_where(self) -> RowFilter:
        """Which rows are trained on."""
        return RowFilter.parse(self.drop_tokens, self.positions, massive=self.drop_massive)
