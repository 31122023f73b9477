"""What the figures of an SAE depend on: options as they came out, and content by its hash."""

from collections.abc import Mapping
from dataclasses import dataclass
from hashlib import sha256
from typing import Any

from saeflow.config import to_plain
from saeflow.evaluate.config import EvaluateConfig
from saeflow.evaluate.opening import OpenedSAE
from saeflow.evaluate.source import FoundModel
from saeflow.evaluate.text_source import TextSource
from saeflow.train.folder import CFG, weights_sha256

_FILES = ("out", "report")
"""Options that say where things go."""

_OF_TEXT = ("dataset", "split", "text_field")
"""Options that the text itself says better."""

_NO_FIGURE = ("sae", "model", "batch_size", "device", "trust_remote_code", "allow_mismatch")
"""What is said for people: no figure hangs on it, or it names what a hash tells."""


@dataclass(frozen=True)
class Found:
    """What an evaluation is of, beside the SAEs: found and hashed, not loaded."""

    model: FoundModel
    text: TextSource


def resolved(config: EvaluateConfig, one: OpenedSAE, found: Found) -> dict[str, Any]:
    """All that the figures of one SAE depend on, and what says to people what it was."""
    plain = {k: v for k, v in to_plain(config).items() if k not in (*_FILES, *_OF_TEXT)}
    model = found.model.described
    return {
        **plain,
        "sae": str(one.folder.resolve()),
        "sae_weights_sha256": weights_sha256(one.folder),
        "sae_cfg_sha256": sha256((one.folder / CFG).read_bytes()).hexdigest(),
        "model": model["name"],
        "model_weights_sha256": model["weights_sha256"],
        "model_config_sha256": model["config_sha256"],
        "tokenizer_sha256": model["tokenizer_sha256"],
        "dtype": model["dtype"],
        "compatibility_mode": model["compatibility_mode"],
        **found.text.identity,
        "allow_training_text": found.text.part == "train",
    }


def changed(there: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """The names of what differs between two, as far as figures depend on it."""
    ignored = {*_NO_FIGURE, *(["dataset"] if now.get("dataset_sha256") else [])}
    names = [name for name in {**there, **now} if name not in ignored]
    return [name for name in names if there.get(name) != now.get(name)]
