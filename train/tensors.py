"""Tensors into a .safetensors file, as durably as everything else is written."""

import os
import re
from collections.abc import Mapping
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from saeflow.files import naming

_SYSTEM_ERROR = re.compile(r"\(os error (\d+)\)")


def write_tensors(
    tensors: Mapping[str, Tensor], path: Path, metadata: dict[str, str] | None = None
) -> None:
    """Write a file and flush it to the disk; not under a temporary name.

    Args:
        tensors: on any device.
        path: of the file.
        metadata: texts to be kept with them.

    Raises:
        OSError: it can't be written.
    """
    with naming(path):
        path.touch()
        mode = path.stat().st_mode  # whoever may read other new files may read this one
        try:
            save_file(
                {k: t.detach().cpu().contiguous() for k, t in tensors.items()}, path, metadata
            )
        except SafetensorError as error:
            found = _SYSTEM_ERROR.search(str(error))
            if found is None:
                raise
            number = int(found[1])
            raise OSError(number, os.strerror(number)) from error
        path.chmod(mode)
        with path.open("rb") as file:
            os.fsync(file.fileno())
