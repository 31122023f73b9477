"""The training curves of an SAE that is still in the folder of its run."""

import json
from pathlib import Path
from typing import Any

from saeflow.errors import BadInputError
from saeflow.train.claim import SAES
from saeflow.train.journal import METRICS


def read_training(sae: Path) -> list[dict[str, Any]]:
    """The lines of a run's metrics.jsonl that are of one SAE; none where there is no run.

    Args:
        sae: the SAE's folder, `RUN/sae/<name>`.

    Raises:
        BadInputError: the file is not what `saeflow train` writes.
    """
    folder = sae.resolve()
    metrics = folder.parent.parent / METRICS
    if folder.parent.name != SAES or not metrics.is_file():
        return []
    try:
        lines = [json.loads(line) for line in metrics.read_text(encoding="utf-8").splitlines()]
        return [line for line in lines if line["sae"] == folder.name]
    except (ValueError, KeyError, TypeError) as error:
        raise BadInputError(
            f"{metrics} is not what saeflow train writes: move it away, or the SAE's folder"
        ) from error
