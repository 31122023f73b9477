"""The one place where an SAE is opened for evaluation.

Ours and SAELens 6's are the same format; a converter of another format belongs in
`_open`, and gives an `SAE` as `load_sae` does.
"""

import os
from dataclasses import dataclass
from pathlib import Path

from saeflow.train.folder import find_saes, load_sae
from saeflow.train.sae import SAE


@dataclass(frozen=True)
class OpenedSAE:
    """An SAE, and where it is from.

    Attributes:
        name: its folder's.
        folder: which holds it.
        sae: on the CPU, in float32.
    """

    name: str
    folder: Path
    sae: SAE


def open_saes(path: Path) -> tuple[OpenedSAE, ...]:
    """The SAEs at a path: of an SAE folder its one, of a run folder all, by name.

    Raises:
        BadInputError: there is none, or one is of a format that saeflow can't use.
        SaeflowError: one fails its own self-test.
    """
    return tuple(_open(folder) for folder in find_saes(path))


def _open(folder: Path) -> OpenedSAE:
    name = Path(os.path.abspath(folder)).name  # noqa: PTH100  # links keep the names they have
    return OpenedSAE(name, folder, load_sae(folder))
