"""The options of `saeflow evaluate`."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from typing_extensions import Doc

from saeflow.config import require, require_seed, take_types

PositionChoice = Literal["text", "no-first", "all"]
"""`text`: all but the first position and special tokens; `no-first`: all but the first; `all`."""

MISMATCH_FIELDS = (
    "model",
    "model-config",
    "tokenizer",
    "hook-point",
    "width",
    "dtype",
    "normalisation",
    "dataset",
    "context-size",
    "packing",
)
"""What is held against the SAE's provenance; `--allow-mismatch` takes all but `width`."""


@dataclass(frozen=True, kw_only=True)
class EvaluateConfig:
    """Which SAE, on which model and text, and where the scores go.

    Raises:
        BadInputError: an option's value makes no sense.
    """

    sae: Annotated[Path, Doc("SAE folder, or a run folder, of which all SAEs are evaluated.")]
    model: Annotated[
        str | None, Doc("Source model; the one that the SAE was made from if not given.")
    ] = None
    dataset: Annotated[
        str | None,
        Doc("Text, of which only held-out documents are used; those of the store if not given."),
    ] = None
    text_field: Annotated[
        str | None,
        Doc("Field of --dataset that holds the text; if not given, text, or of its own the SAE's."),
    ] = None
    split: Annotated[
        str | None,
        Doc("Split of a saved or hub --dataset; if not given, train, or of its own the SAE's."),
    ] = None
    tokens: Annotated[
        int, Doc("Held-out tokens to evaluate on, rounded up to whole sequences.")
    ] = 32_768
    allow_training_text: Annotated[
        bool, Doc("Use text that the SAE was trained on; the result is marked.")
    ] = False
    allow_mismatch: Annotated[
        tuple[str, ...],
        Doc(
            "What may differ from what the SAE was made from: model, model-config, tokenizer, "
            "hook-point, dtype, normalisation, dataset, context-size or packing; give it again "
            "for several."
        ),
    ] = ()
    dtype: Annotated[
        Literal["bfloat16", "float16", "float32"] | None,
        Doc("Precision of the forward pass; that of the SAE's own rows if not given."),
    ] = None
    replace: Annotated[
        PositionChoice,
        Doc("Positions that are replaced: text (no first or special token), no-first, or all."),
    ] = "text"
    score: Annotated[
        PositionChoice, Doc("Positions between which predictions are scored, likewise.")
    ] = "text"
    resample: Annotated[bool, Doc("Ablate by rows of other tokens, too.")] = False
    latents: Annotated[
        str, Doc("Latents to look at: all, none, or numbers and ranges like 3,17,100-120.")
    ] = "all"
    report: Annotated[bool, Doc("Write report.html.")] = True
    seed: Annotated[int, Doc("Of resample ablation, and of the intervals' draws.")] = 0
    batch_size: Annotated[int, Doc("Sequences in a forward pass.")] = 16
    out: Annotated[
        Path | None,
        Doc(
            "Folder for what is written; if not given, that of each SAE, and --sae for the report."
        ),
    ] = None
    device: Annotated[str, Doc("auto, cpu, or cuda.")] = "auto"
    trust_remote_code: Annotated[bool, Doc("Run code that comes with the model.")] = False

    def __post_init__(self) -> None:
        take_types(self)
        require_seed(self.seed, "seed")
        for name in ("tokens", "batch_size"):
            value = getattr(self, name)
            require(value > 0, f"--{name.replace('_', '-')} is {value}: it must be at least 1")
        for field in self.allow_mismatch:
            allowed = [name for name in MISMATCH_FIELDS if name != "width"]
            require(
                field != "width",
                "--allow-mismatch width: an SAE reads rows of its own width only, so there is "
                f"nothing to allow; others are {', '.join(allowed)}",
            )
            require(
                field in allowed,
                f"--allow-mismatch {field}: unknown field; known are {', '.join(allowed)}",
            )
