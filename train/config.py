"""The options of `saeflow train`."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from typing_extensions import Doc

from saeflow.config import require, take_types
from saeflow.location import Place
from saeflow.train.checks import check_run, check_sae
from saeflow.train.row_filter import RowFilter


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """Which rows, which sparse autoencoders, how they are trained, and where they go.

    The options are of a whole run. Those of one SAE may differ between the SAEs that a
    run trains (`saeflow.train.members`).

    Raises:
        BadInputError: an option's value makes no sense, or two contradict each other.
    """

    store: Annotated[Place, Doc("Folder or s3://, gs:// or http(s):// URL of a complete store.")]
    out: Annotated[Path, Doc("Folder of the run.")]
    hook: Annotated[
        tuple[str, ...],
        Doc(
            "Hook point; not needed if the store holds one. Given several times, an SAE is "
            "trained for each, or one for all with --crosscoder."
        ),
    ] = ()
    target_hook: Annotated[
        str | None,
        Doc("Hook point whose rows are reconstructed, from those of --hook: a transcoder."),
    ] = None
    skip: Annotated[bool, Doc("Give the transcoder a linear path from input to output.")] = False
    crosscoder: Annotated[
        bool, Doc("One SAE that reads and reconstructs all the hook points together.")
    ] = False
    name: Annotated[
        str | None, Doc("Name of the SAE, a folder in RUN/sae; made of its options if not given.")
    ] = None
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
        Doc("Weight of the L1 penalty (relu, gated, p-anneal); chosen by the width if not given."),
    ] = None
    revive: Annotated[
        float | None,
        Doc(
            "Weight of the loss that pulls silent latents up (relu, gated, p-anneal); 0 for none. "
            "1 if not given, 0 with --resample."
        ),
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
    decoder_norm: Annotated[
        Literal["unit", "free"] | None,
        Doc(
            "Decoder rows keep unit norm, or may have any, and weigh what is selected and "
            "penalised. Free where there is a penalty, unit with --k, if not given."
        ),
    ] = None
    decoder_scale: Annotated[
        float | None,
        Doc("Length of decoder rows in the beginning, if free. 0.1 if not given."),
    ] = None
    b_dec: Annotated[Literal["mean", "geometric-median", "zero"], Doc("Where b_dec begins.")] = (
        "mean"
    )
    encoder_scale: Annotated[
        float | None,
        Doc(
            "The encoder begins as this multiple of the decoder's transpose. If not given, 1, or "
            "less where the first reconstructions would overshoot."
        ),
    ] = None
    init_from: Annotated[Path | None, Doc("SAE folder whose weights are the initial ones.")] = None
    lr: Annotated[
        float | None, Doc("Peak learning rate; chosen by the width and --arch if not given.")
    ] = None
    bias_rate: Annotated[
        float | None,
        Doc(
            "Learning rate of b_enc, as a multiple of the others'. If not given, the root of the "
            "width for relu, gated and p-anneal with free decoder norms, and 1 otherwise."
        ),
    ] = None
    schedule: Annotated[
        Literal["constant", "linear", "cosine", "restarts"],
        Doc("Learning rate after the warm-up; 'restarts' is a cosine that begins again."),
    ] = "constant"
    cycles: Annotated[int | None, Doc("Cycles of --schedule restarts. 4 if not given.")] = None
    warm_up: Annotated[float, Doc("Share of the steps over which the rate rises.")] = 0.05
    decay: Annotated[
        float | None,
        Doc(
            "Share of the steps, at the end, over which the rate falls to zero. 0.2 if not given; "
            "0 for schedules that fall by themselves, and for schedule-free."
        ),
    ] = None
    sparsity_warm_up: Annotated[
        float | None,
        Doc(
            "Share of the steps over which the penalty rises. If not given, as --warm-up; all for "
            "jumprelu without --target-l0 or --sparsity tanh."
        ),
    ] = None
    optimizer: Annotated[Literal["adam", "muon", "schedule-free"], Doc("What takes the steps.")] = (
        "adam"
    )
    clip: Annotated[float | None, Doc("Largest norm of the gradient; none if not given.")] = None
    ema: Annotated[
        float | None,
        Doc("Keep a running mean of the weights, that forgets at this rate, like 0.999."),
    ] = None
    dead_after: Annotated[
        int | None,
        Doc(
            "A latent counts as dead after this many rows without being active. A tenth of the "
            "run's rows, and at most 500000, if not given."
        ),
    ] = None
    resample: Annotated[
        bool, Doc("Give dead latents new weights, of rows that are reconstructed badly.")
    ] = False
    resample_every: Annotated[int, Doc("Rows between two resamplings.")] = 200_000_000
    resample_window: Annotated[
        int, Doc("Rows before a resampling in which a dead latent was not active.")
    ] = 100_000_000
    resample_rows: Annotated[
        int, Doc("Rows before a resampling of which new weights are made.")
    ] = 819_200
    resample_threshold: Annotated[
        float, Doc("Share of the window's rows in which a dead latent was active at most.")
    ] = 0.0
    resample_most: Annotated[int, Doc("Resamplings at most.")] = 4
    seed: Annotated[int, Doc("Seed of the initial weights and of what is drawn in training.")] = 0
    sweep: Annotated[
        tuple[str, ...],
        Doc(
            "Options to vary, like k=16,32 lr=1e-4,3e-4: an SAE is trained for each combination, "
            "all from one read of the store."
        ),
    ] = ()
    sae: tuple[Mapping[str, Any], ...] = ()
    batch_size: Annotated[int, Doc("Rows in a training step.")] = 2048
    accumulate: Annotated[
        int,
        Doc(
            "Parts that a batch goes through in, to save memory; their gradients are added. What "
            "looks at a whole batch (batchtopk's choice, --target-l0, --revive) looks at a part."
        ),
    ] = 1
    tokens: Annotated[
        int | None, Doc("Rows to train on, over several epochs if need be; one epoch if not given.")
    ] = None
    order_seed: Annotated[int, Doc("Seed of the order of the rows.")] = 0
    device: Annotated[str, Doc("auto, cpu, or cuda.")] = "auto"
    precision: Annotated[
        Literal["float32", "bfloat16"],
        Doc("What matrix products are computed in; weights are float32 in any case."),
    ] = "float32"
    log_every: Annotated[int, Doc("Steps between two lines of metrics.jsonl.")] = 50
    evaluate_every: Annotated[
        int, Doc("Steps between two looks at held-out rows; the last step is one in any case.")
    ] = 1000
    evaluate_rows: Annotated[int, Doc("Held-out rows to look at, at most; 0 for none.")] = 8192
    checkpoint_every: Annotated[
        str, Doc("Steps between two checkpoints, like 500, or minutes, like 10min; 0 for none.")
    ] = "10min"
    log_to: Annotated[
        tuple[Literal["tensorboard", "wandb", "trackio"], ...],
        Doc("Where metrics go besides metrics.jsonl; may be given several times."),
    ] = ()
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
        take_types(self)
        check_run(self)
        if not self.has_members:
            check_sae(self)

    @property
    def has_members(self) -> bool:
        """It is of several SAEs, each of which has options of its own."""
        return bool(self.sweep or self.sae)

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
    def checkpoint_steps(self) -> int | None:
        """Steps between two checkpoints; None if not steps decide."""
        return int(self.checkpoint_every) if self.checkpoint_every.isdecimal() else None

    @property
    def checkpoint_seconds(self) -> float | None:
        """Seconds between two checkpoints; None if not time decides."""
        minutes = self.checkpoint_every.removesuffix("min")
        return None if minutes == self.checkpoint_every else 60 * float(minutes)

    @property
    def rows_where(self) -> RowFilter:
        """Which rows are trained on."""
        return RowFilter.parse(self.drop_tokens, self.positions, massive=self.drop_massive)
