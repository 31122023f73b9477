"""The options of `saeflow train`."""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from typing_extensions import Doc

from saeflow.config import require
from saeflow.location import Place
from saeflow.train.row_filter import RowFilter

_OPTIONS_OF = {
    "k": ("topk", "batchtopk", "matryoshka"),
    "aux_k": ("topk", "batchtopk", "matryoshka"),
    "l1": ("relu", "gated", "p-anneal", "matryoshka"),
    "p_end": ("p-anneal",),
    "l0": ("jumprelu",),
    "sparsity": ("jumprelu",),
    "target_l0": ("jumprelu",),
    "bandwidth": ("jumprelu",),
    "base": ("matryoshka",),
    "prefixes": ("matryoshka",),
    "drawn_prefixes": ("matryoshka",),
}
"""Options that only some architectures have."""

_LACKS = {
    "k": "has no fixed number of active latents",
    "aux_k": "has no auxiliary loss",
    "l1": "has no L1 penalty",
    "p_end": "has no power that falls",
    "l0": "has no penalty on the number of active latents",
    "sparsity": "has no choice of penalty",
    "target_l0": "has no penalty on the number of active latents",
    "bandwidth": "has no thresholds to learn",
    "base": "is not made of another one",
    "prefixes": "has no prefixes",
    "drawn_prefixes": "has no prefixes",
}
"""Why the others don't."""


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """Which rows, which sparse autoencoder, how it is trained, and where it goes.

    Raises:
        BadInputError: an option's value makes no sense, or two contradict each other.
    """

    store: Annotated[Place, Doc("Folder or s3://, gs:// or http(s):// URL of a complete store.")]
    out: Annotated[Path, Doc("Folder of the run.")]
    hook: Annotated[str | None, Doc("Hook point; not needed if the store holds one.")] = None
    arch: Annotated[
        Literal["topk", "batchtopk", "relu", "jumprelu", "gated", "matryoshka", "p-anneal"],
        Doc("Architecture of the SAE."),
    ] = "topk"
    d_sae: Annotated[int | None, Doc("Latents.")] = None
    expansion: Annotated[
        float | None, Doc("Latents as a multiple of the hook point's width, instead of --d-sae.")
    ] = None
    k: Annotated[
        int | None,
        Doc("Latents active in a row (topk), or on average (batchtopk). 32 if not given."),
    ] = None
    aux_k: Annotated[
        int | None,
        Doc(
            "Dead latents that learn from what a row's others miss (topk, batchtopk); 0 for none. "
            "As many as --k if not given."
        ),
    ] = None
    l1: Annotated[
        float | None,
        Doc("Weight of the L1 penalty (relu, gated, p-anneal). 5 if not given."),
    ] = None
    p_end: Annotated[
        float | None, Doc("Where the penalty's power ends (p-anneal). 0.2 if not given.")
    ] = None
    l0: Annotated[
        float | None,
        Doc("Weight of the penalty on active latents (jumprelu); chosen by it if not given."),
    ] = None
    sparsity: Annotated[
        Literal["step", "tanh"],
        Doc("What is penalised (jumprelu): how many are active, or the tanh of how much."),
    ] = "step"
    target_l0: Annotated[
        float | None, Doc("Active latents in a row to arrive at (jumprelu), on average.")
    ] = None
    bandwidth: Annotated[
        float | None,
        Doc("Distance from the threshold within which it learns (jumprelu). 1 if not given."),
    ] = None
    base: Annotated[
        Literal["topk", "batchtopk", "relu"],
        Doc("Architecture of which prefixes are nested (matryoshka)."),
    ] = "batchtopk"
    prefixes: Annotated[
        str | None,
        Doc(
            "Widths of nested prefixes, like 256,1024 (matryoshka); all latents are one in any "
            "case. A 16th, an 8th, a quarter and half of them if not given."
        ),
    ] = None
    drawn_prefixes: Annotated[
        int | None,
        Doc("Prefixes that are drawn anew in each step, instead of --prefixes (matryoshka)."),
    ] = None
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
            *("window_rows", "target_l0", "bandwidth", "p_end", "drawn_prefixes"),
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
        for name in ("l1", "l0", "aux_k"):
            value = getattr(self, name)
            flag = f"--{name.replace('_', '-')}"
            require(
                value is None or 0 <= value < math.inf,
                f"{flag} is {value}: it must be at least 0, and finite",
            )
        require(self.p_end is None or self.p_end <= 1, f"--p-end is {self.p_end}: it is at most 1")
        self._refuse_options_of_others()
        assert self.prefix_widths is None or self.prefix_widths  # what makes no sense is refused
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

    def _refuse_options_of_others(self) -> None:
        """An option that the architecture doesn't have is a mistake, not to be ignored."""
        for name, architectures in _OPTIONS_OF.items():
            given = getattr(self, name) != type(self).__dataclass_fields__[name].default
            require(
                not given or self.arch in architectures,
                f"--{name.replace('_', '-')} is for --arch {', '.join(architectures)}: "
                f"--arch {self.arch} {_LACKS[name]}",
            )
        k_based = self.base != "relu"
        for name in ("k", "aux_k", "l1"):
            require(
                self.arch != "matryoshka"
                or getattr(self, name) is None
                or k_based == (name != "l1"),
                f"--{name.replace('_', '-')} is not for --base {self.base}, "
                f"which {_LACKS[name]}: leave it out, or change --base",
            )
        require(
            self.target_l0 is None or self.sparsity == "step",
            "--target-l0 is for --sparsity step: the tanh penalty has no target",
        )
        require(
            self.prefixes is None or self.drawn_prefixes is None,
            "the prefixes are fixed or drawn: give --prefixes or --drawn-prefixes, not both",
        )

    @property
    def prefix_widths(self) -> tuple[int, ...] | None:
        """`prefixes` as numbers, rising.

        Raises:
            BadInputError: they are none.
        """
        if self.prefixes is None:
            return None
        parts = [part.strip() for part in self.prefixes.split(",")]
        require(
            all(part.isdecimal() and int(part) > 0 for part in parts),
            f"--prefixes is {self.prefixes!r}: give widths with commas between them, like 256,1024",
        )
        return tuple(sorted({int(part) for part in parts}))

    @property
    def rows_where(self) -> RowFilter:
        """Which rows are trained on."""
        return RowFilter.parse(self.drop_tokens, self.positions, massive=self.drop_massive)
