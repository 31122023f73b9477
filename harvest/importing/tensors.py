"""Files of tensors: `.npy`, `.safetensors`, and torch's, read by slices and never run.

A `.npy` file is mapped into memory and must not hold Python objects. A torch file is
a pickle, and pickles are programs; saeflow runs none. It is opened by
`torch.load(weights_only=True)`, whose unpickler knows tensors and plain values and
refuses anything that would call code.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import numpy as np
import torch
from jaxtyping import Shaped
from safetensors import safe_open
from torch import Tensor

from saeflow.errors import BadInputError
from saeflow.harvest.importing.source import flat_slices, reading

Slices = tuple[slice, ...]

KINDS: Mapping[str, str] = {
    ".npy": "npy",
    ".safetensors": "safetensors",
    ".pt": "torch",
    ".pth": "torch",
}
"""Formats by the endings of their files' names."""

_SAFETENSORS_DTYPES = {
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F32": torch.float32,
    "F64": torch.float64,
}


@dataclass(frozen=True)
class StoredTensor:
    """A tensor in a file.

    Attributes:
        path: the file.
        shape: of the tensor.
        dtype: torch's, or the file's own word for one that activations don't come in.
        take: reads some of it.
    """

    path: Path
    shape: tuple[int, ...]
    dtype: object
    take: Callable[[Slices], Shaped[Tensor, "..."]]

    def rows(self, first: int, stop: int) -> Shaped[Tensor, "rows width"]:
        """Some of its rows, all axes but the last one counted as one.

        Raises:
            BadInputError: the file can't be read any more.
        """
        with reading(self.path):
            taken = [self.take(slices) for slices in flat_slices(self.shape[:-1], first, stop)]
            return torch.cat([part.reshape(-1, self.shape[-1]) for part in taken])

    def flat(self) -> Shaped[np.ndarray, " values"]:
        """All of its values, for small tensors of ids and masks.

        Raises:
            BadInputError: the file can't be read any more.
        """
        with reading(self.path):
            values: np.ndarray = self.take((slice(None),)).reshape(-1).numpy()
            return values


def open_tensors(path: Path) -> dict[str, StoredTensor]:
    """The tensors of a file by name; a file that holds one without a name calls it ''.

    Raises:
        BadInputError: the file can't be read, or would have to be run.
    """
    openers = {"npy": _open_npy, "safetensors": _open_safetensors, "torch": _open_torch}
    with reading(path):
        return openers[KINDS[path.suffix.lower()]](path)


def _open_npy(path: Path) -> dict[str, StoredTensor]:
    # Not np.load: that would open a zip or a pickle of this name too.
    array = np.lib.format.open_memmap(path, mode="r")

    def take(slices: Slices) -> Tensor:
        mapped = np.lib.format.open_memmap(path, mode="r")
        part = mapped[slices]
        return torch.from_numpy(np.array(part, part.dtype.newbyteorder("="), order="C"))

    known = {np.dtype(str(d).removeprefix("torch.")): d for d in (torch.float16, torch.float32)}
    known[np.dtype("float64")] = torch.float64
    native = array.dtype.newbyteorder("=")
    return {"": StoredTensor(path, array.shape, known.get(native, native), take)}


def _open_safetensors(path: Path) -> dict[str, StoredTensor]:
    def taker(name: str) -> Callable[[Slices], Tensor]:
        def take(slices: Slices) -> Tensor:
            with safe_open(path, "pt") as file:
                part: Tensor = file.get_slice(name)[slices]
                return part

        return take

    with safe_open(path, "pt") as file:
        found = {}
        for name in file.keys():  # noqa: SIM118  # the file is no mapping
            stored = file.get_slice(name)
            dtype = _SAFETENSORS_DTYPES.get(stored.get_dtype(), stored.get_dtype())
            found[name] = StoredTensor(path, tuple(stored.get_shape()), dtype, taker(name))
    return found


def _open_torch(path: Path) -> dict[str, StoredTensor]:
    loaded = load_torch(path)
    tensors = loaded if isinstance(loaded, dict) else {"": loaded}
    return {
        str(name): StoredTensor(path, tuple(tensor.shape), tensor.dtype, tensor.__getitem__)
        for name, tensor in ((name, _plain(value)) for name, value in tensors.items())
        if tensor is not None
    }


def load_torch(path: Path) -> Any:
    """What a torch file holds, its tensors mapped from the file; no code is run.

    Raises:
        BadInputError: it is not a torch file, or holds more than tensors and plain values.
    """
    try:
        return torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except UnpicklingError as error:
        raise BadInputError(
            f"{path} holds Python objects, which only running code could read: "
            "save its tensors alone"
        ) from error
    except RuntimeError as error:
        if "_use_new_zipfile_serialization" not in str(error):
            raise
        raise BadInputError(
            f"{path} is in torch's format from before version 1.6, or no torch file: "
            "load it and save it again with torch.save"
        ) from error


def _plain(value: object) -> Tensor | None:
    if not isinstance(value, Tensor) or value.layout is not torch.strided:
        return None
    return value.detach()
