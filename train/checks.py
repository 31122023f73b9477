"""What options of `saeflow train` make no sense: refused before anything is read or written.

A config is a `TrainConfig`, which calls these checks itself.
"""

import math
import re
from typing import Any

from saeflow.config import flag_of, require, require_seed
from saeflow.train.penalised import decoder_norm

_OPTIONS_OF = {
    "k": ("topk", "batchtopk", "matryoshka"),
    "aux_k": ("topk", "batchtopk", "matryoshka"),
    "l1": ("relu", "gated", "p-anneal", "matryoshka"),
    "revive": ("relu", "gated", "p-anneal", "matryoshka"),
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
    "revive": "revives silent latents in another way",
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

_ONLY_WITH = {
    "cycles": ("schedule", "restarts"),
    "resample_every": ("resample", True),
    "resample_window": ("resample", True),
    "resample_rows": ("resample", True),
    "resample_threshold": ("resample", True),
    "resample_most": ("resample", True),
}
"""Options that mean something only if another one has a value."""

_POSITIVE = "it must be more than 0, and finite"


def is_given(config: Any, name: str) -> bool:
    """An option is not at its default."""
    given: bool = getattr(config, name) != type(config).__dataclass_fields__[name].default
    return given


def check_run(config: Any) -> None:
    """Refuse options of a run that make no sense.

    Raises:
        BadInputError: one of them.
    """
    positive = ("batch_size", "accumulate", "log_every", "evaluate_every", "window_rows")
    _require_range(config, positive, 0, math.inf, _POSITIVE, open_below=True)
    _require_range(config, ("tokens", "evaluate_rows"), 0, math.inf, "at least 0")
    require_seed(config.order_seed, "order_seed")
    for hook_point in config.hook:
        require(
            config.hook.count(hook_point) == 1, f"--hook {hook_point} is given twice: give it once"
        )
    require(
        config.accumulate <= config.batch_size,
        f"--accumulate {config.accumulate} parts of a batch of {config.batch_size}: lower it",
    )
    require(
        bool(re.fullmatch(r"\d+|\d+(\.\d+)?min", config.checkpoint_every)),
        f"--checkpoint-every is {config.checkpoint_every!r}: give steps, like 500, or minutes, "
        "like 10min; 0 for none",
    )
    assert config.rows_where is not None  # a filter that makes no sense is refused now


def check_sae(config: Any) -> None:
    """Refuse options of one SAE that make no sense, or contradict each other.

    Raises:
        BadInputError: one of them, or two.
    """
    positive = (
        *("d_sae", "expansion", "k", "lr", "dead_after", "clip", "encoder_scale", "decoder_scale"),
        *("bias_rate", "target_l0", "bandwidth", "p_end", "drawn_prefixes", "cycles"),
        *("resample_every", "resample_window", "resample_rows"),
    )
    _require_range(config, positive, 0, math.inf, _POSITIVE, open_below=True)
    require_seed(config.seed, "seed")
    _require_range(
        config, ("l1", "l0", "aux_k", "revive"), 0, math.inf, "it must be at least 0, and finite"
    )
    shares = ("warm_up", "decay", "sparsity_warm_up", "resample_threshold")
    _require_range(config, shares, 0, 1, "it is a share, 0 to 1", open_above=False)
    _require_range(config, ("ema",), 0, 1, "it is more than 0 and less than 1", open_below=True)
    _require_range(config, ("resample_most",), 1, math.inf, "it must be at least 1")
    require(
        (config.d_sae is None) != (config.expansion is None),
        "the width is needed once: give --d-sae or --expansion, not both",
    )
    require(
        config.p_end is None or config.p_end <= 1, f"--p-end is {config.p_end}: it is at most 1"
    )
    require(
        config.warm_up + (config.decay or 0) <= 1,
        f"--warm-up {config.warm_up} and --decay {config.decay} overlap: their sum is at most 1",
    )
    require(
        config.name is None or bool(re.fullmatch(r"[\w][\w.+=-]*", config.name)),
        f"--name is {config.name!r}: it becomes a folder, give letters, digits, and . + = - _",
    )
    for name in ("b_dec", "encoder_scale", "decoder_scale"):
        require(
            config.init_from is None or not is_given(config, name),
            f"{flag_of(name)} is of what begins at random: leave it out, or --init-from",
        )
    require(
        config.target_hook is None or config.encoder_scale is None,
        "--encoder-scale is not for transcoders, whose decoder is no transpose: leave it out",
    )
    require(
        config.decoder_scale is None or decoder_norm(config) == "free",
        "--decoder-scale is for --decoder-norm free: unit rows are of length 1, leave it out",
    )
    _refuse_options_of_others(config)
    _refuse_kinds(config)
    _refuse_optimizers(config)
    assert config.prefix_widths is None or config.prefix_widths  # what makes no sense is refused


def _require_range(
    config: Any,
    names: tuple[str, ...],
    least: float | int,
    most: float | int,
    told: str,
    *,
    open_below: bool = False,
    open_above: bool = True,
) -> None:
    """Each option is not given, or from `least` to `most`, which don't count where open."""
    for name in names:
        value: Any = getattr(config, name)
        within = value is None or (
            (least < value if open_below else least <= value)
            and (value < most if open_above else value <= most)
        )
        require(within, f"{flag_of(name)} is {value}: {told}")


def _refuse_options_of_others(config: Any) -> None:
    """An option that the architecture doesn't have is a mistake, not to be ignored."""
    for name, architectures in _OPTIONS_OF.items():
        require(
            not is_given(config, name) or config.arch in architectures,
            f"{flag_of(name)} is for --arch {', '.join(architectures)}: "
            f"--arch {config.arch} {_LACKS[name]}",
        )
    k_based = config.base != "relu"
    for name in ("k", "aux_k", "l1", "revive"):
        require(
            config.arch != "matryoshka"
            or getattr(config, name) is None
            or k_based == (name in ("k", "aux_k")),
            f"{flag_of(name)} is not for --base {config.base}, "
            f"which {_LACKS[name]}: leave it out, or change --base",
        )
    require(
        config.target_l0 is None or config.sparsity == "step",
        "--target-l0 is for --sparsity step: the tanh penalty has no target",
    )
    require(
        config.prefixes is None or config.drawn_prefixes is None,
        "the prefixes are fixed or drawn: give --prefixes or --drawn-prefixes, not both",
    )
    for name, (other, value) in _ONLY_WITH.items():
        with_value = flag_of(other) if value is True else f"{flag_of(other)} {value}"
        require(
            not is_given(config, name) or getattr(config, other) == value,
            f"{flag_of(name)} is for {with_value}: add that, or leave it out",
        )


def _refuse_kinds(config: Any) -> None:
    """What transcoders and crosscoders are not."""
    require(
        config.target_hook is None or not config.crosscoder,
        "an SAE is a transcoder or a crosscoder: give --target-hook or --crosscoder, not both",
    )
    require(
        not config.skip or config.target_hook is not None,
        "--skip is for transcoders: give --target-hook, or leave it out",
    )
    require(
        config.target_hook not in config.hook,
        f"--target-hook {config.target_hook} is --hook too: a transcoder has two hook points",
    )
    require(
        not config.crosscoder or len(config.hook) > 1,
        "--crosscoder is of several hook points: give --hook for each",
    )
    require(
        not config.resample or (config.target_hook is None and not config.crosscoder),
        "--resample is for SAEs of one hook point: leave it out, --aux-k revives latents, too",
    )


def _refuse_optimizers(config: Any) -> None:
    """What an optimizer can't do."""
    require(
        config.optimizer != "schedule-free" or config.schedule == "constant",
        f"--schedule {config.schedule} is not for --optimizer schedule-free, which needs none: "
        "leave it out",
    )
    require(
        config.optimizer == "adam" or not config.resample,
        f"--resample takes memory out of Adam's moments: --optimizer {config.optimizer} has "
        "others, leave one of the two out",
    )
