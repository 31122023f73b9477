"""What `llamascopium generate` writes: a folder a hook point, of numbered chunk files.

A chunk (`chunk-00000000.safetensors` or `.pt`, `shard-0-chunk-...` from several
processes) holds `activation`, `tokens` and `mask` with the same leading axes, and an
`attention_mask` that is of no use here. Rows whose mask is 0 (padding and BOS) are
not imported; llamascopium drops them before it trains, too. Where sequences were
kept whole (its target `activations-2d`), `meta` lies beside or in the chunk: then the
axis before the last one is the position.
"""

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Bool, Float, Int64, UInt32
from torch import Tensor

from saeflow import console
from saeflow.errors import BadInputError
from saeflow.harvest.importing.source import Part, RowValues, Source, check_shape, token_ids
from saeflow.harvest.importing.tensors import StoredTensor, load_torch, open_tensors
from saeflow.harvest.layout import HookPoint

CHUNK = re.compile(r"(?:shard-(\d+)-)?chunk-(\d+)\.(?:pt|safetensors)")
_NEEDED = ("activation", "tokens", "mask")

Number = tuple[int, int]
"""A chunk's shard and number; chunks are read in this order, as llamascopium reads them."""


@dataclass(frozen=True)
class _Chunk:
    """What is known of a chunk before its activations are read.

    Attributes:
        file: of the first hook point.
        forms: the precision and width of each hook point's activations.
        positions: tokens of a sequence; None if they are not whole sequences.
        kept: of each sequence (of all of them, if there are none), the rows that count.
        masked: rows that don't.
    """

    file: Path
    forms: Mapping[str, tuple[torch.dtype, int]]
    positions: int | None
    kept: Int64[np.ndarray, " sequences"]
    masked: int


def is_llamascopium(path: Path) -> bool:
    """Whether a folder, or one in it, holds chunks."""
    return bool(_chunk_files(path) or _hook_folders(path))


def open_llamascopium(path: Path, *, hook: tuple[str, ...]) -> Source:
    """The chunks in a folder: of several hook points, or of the one that it is named by.

    Args:
        path: the folder.
        hook: the hook points to take, all if empty; or a name for the only one.

    Raises:
        BadInputError: a chunk can't be read or is of another form, or hook points
            don't hold the same tokens.
    """
    folders = _choose(path, hook)
    files = {name: _chunk_files(folder) for name, folder in folders.items()}
    first = next(iter(files))
    for name, by_number in files.items():
        if list(by_number) != list(files[first]):
            odd = min({*by_number} ^ {*files[first]})
            raise BadInputError(
                f"{path} holds chunk {odd[1]} of shard {odd[0]} for only one of {first} and "
                f"{name}: import one at a time with --hook"
            )
    _tell_gaps(files[first], path)
    chunks = [_look_at({name: files[name][n] for name in files}) for n in files[first]]
    in_sequences = all(chunk.positions is not None for chunk in chunks)
    kept = np.concatenate([chunk.kept for chunk in chunks])
    every = [file for by_number in files.values() for file in by_number.values()]
    dtypes = {dtype for chunk in chunks for dtype, _ in chunk.forms.values()}
    return Source(
        format="llamascopium",
        path=path,
        files=tuple(every + [meta for meta in map(_meta_file, every) if meta.is_file()]),
        hook_points=tuple(HookPoint(name, (_width(name, chunks),)) for name in files),
        dtype=dtypes.pop() if len(dtypes) == 1 else None,
        row_values=("token", "seq", "pos") if in_sequences else ("token",),
        parts=tuple(_parts(files, chunks, in_sequences=in_sequences)),
        sequences=np.concatenate([[0], np.cumsum(kept)]) if in_sequences else None,
        contents=(lambda: _contents(chunks)) if in_sequences else None,
        masked=sum(chunk.masked for chunk in chunks),
    )


def _choose(path: Path, hook: tuple[str, ...]) -> dict[str, Path]:
    """The folders of the hook points that are wanted."""
    if _chunk_files(path):
        if len(hook) > 1:
            raise BadInputError(f"--hook names {len(hook)} hook points: {path} holds one")
        return {hook[0] if hook else path.resolve().name: path}
    held = _hook_folders(path)
    if not held:
        raise BadInputError(f"{path} holds no chunks of llamascopium: check the path")
    missing = [name for name in hook if name not in held]
    if missing:
        raise BadInputError(
            f"{path} does not hold hook point {missing[0]}: it holds {', '.join(held)}"
        )
    return {name: held[name] for name in hook or held}


def _hook_folders(path: Path) -> dict[str, Path]:
    return {entry.name: entry for entry in sorted(path.iterdir()) if _chunk_files(entry)}


def _chunk_files(folder: Path) -> dict[Number, Path]:
    """A folder's chunks, in the order of shard and number."""
    if not folder.is_dir():
        return {}
    matches = [(CHUNK.fullmatch(file.name), file) for file in sorted(folder.iterdir())]
    found: dict[Number, Path] = {}
    for match, file in matches:
        if match is not None:
            number = int(match[1] or 0), int(match[2])
            if number in found:
                raise BadInputError(
                    f"{file} and {found[number].name} are the same chunk: take one away"
                )
            found[number] = file
    return dict(sorted(found.items()))


def _tell_gaps(numbers: Mapping[Number, Path], path: Path) -> None:
    """There is no list of the chunks: a hole is all that a lost one leaves."""
    for shard in sorted({shard for shard, _ in numbers}):
        held = [number for s, number in numbers if s == shard]
        lost = set(range(held[-1] + 1)) - set(held)
        if lost:
            console.warn(
                f"{path} has {len(lost)} holes in its chunks (the first at {min(lost)} of shard "
                f"{shard}): the others are imported"
            )


def _tensors(file: Path) -> dict[str, StoredTensor]:
    """A chunk's tensors, after a check that they are what llamascopium writes."""
    tensors = open_tensors(file)
    missing = [name for name in _NEEDED if name not in tensors]
    if missing:
        raise BadInputError(
            f"{file} has no tensor '{missing[0]}': llamascopium writes {', '.join(_NEEDED)}; "
            "for files of your own give --format"
        )
    activation = tensors["activation"]
    leading, width = activation.shape[:-1], activation.shape[-1:]
    check_shape(str(file), (int(np.prod(leading)), *width), activation.dtype)
    for name in ("tokens", "mask"):
        if tensors[name].shape != leading:
            raise BadInputError(
                f"{file} has {name} of shape {tensors[name].shape} for activations of shape "
                f"{activation.shape}: it is damaged"
            )
    return tensors


def _look_at(files: Mapping[str, Path]) -> _Chunk:
    """Hold a chunk's files of all hook points against each other."""
    file = next(iter(files.values()))
    tokens, mask, forms = _tokens(file), _mask(file), {}
    for name, other in files.items():
        if not np.array_equal(tokens, _tokens(other)) or not np.array_equal(mask, _mask(other)):
            raise BadInputError(
                f"{other} holds other tokens than {file}: import one at a time with --hook"
            )
        activation = _tensors(other)["activation"]
        assert isinstance(activation.dtype, torch.dtype)
        forms[name] = activation.dtype, activation.shape[-1]
    shape = _tensors(file)["tokens"].shape
    positions = shape[-1] if len(shape) > 1 and _has_meta(file) else None
    kept = mask.reshape(-1, positions or max(1, mask.size)).sum(1, dtype=np.int64)
    return _Chunk(file, forms, positions, kept, mask.size - int(kept.sum()))


def _tokens(file: Path) -> UInt32[np.ndarray, " tokens"]:
    return token_ids(str(file), _tensors(file)["tokens"].flat())


def _mask(file: Path) -> Bool[np.ndarray, " tokens"]:
    return _tensors(file)["mask"].flat().astype(bool)


def _meta_file(file: Path) -> Path:
    return file.with_suffix(".meta.json")


def _has_meta(file: Path) -> bool:
    if file.suffix == ".pt":
        return "meta" in load_torch(file)
    return _meta_file(file).is_file()


def _width(hook: str, chunks: Sequence[_Chunk]) -> int:
    widths = {chunk.forms[hook][1] for chunk in chunks}
    if len(widths) > 1:
        raise BadInputError(
            f"the chunks of {hook} hold rows of different widths "
            f"({', '.join(map(str, sorted(widths)))}): they are of different models"
        )
    return widths.pop()


def _parts(
    files: Mapping[str, Mapping[Number, Path]], chunks: Sequence[_Chunk], *, in_sequences: bool
) -> Iterator[Part]:
    # The mask of the chunk that is being read, not of all: they may not fit into memory.
    @lru_cache(maxsize=2)
    def kept_rows(file: Path) -> Int64[np.ndarray, " rows"]:
        return np.flatnonzero(_mask(file))

    first_sequence = 0
    for number, chunk in zip(next(iter(files.values())), chunks, strict=True):
        of_hook = {name: by_number[number] for name, by_number in files.items()}
        yield _part(chunk, of_hook, kept_rows, first_sequence if in_sequences else None)
        first_sequence += len(chunk.kept)


def _part(
    chunk: _Chunk,
    files: Mapping[str, Path],
    kept_rows: Callable[[Path], Int64[np.ndarray, " rows"]],
    first_sequence: int | None,
) -> Part:
    def read(hook: str, first: int, stop: int) -> Float[Tensor, "rows d_in"]:
        wanted = kept_rows(chunk.file)[first:stop]
        begin, end = int(wanted[0]), int(wanted[-1]) + 1
        return _tensors(files[hook])["activation"].rows(begin, end)[
            torch.from_numpy(wanted - begin)
        ]

    def values(first: int, stop: int) -> RowValues:
        wanted = kept_rows(chunk.file)[first:stop]
        known = {"token": _tokens(chunk.file)[wanted]}
        if first_sequence is not None:
            assert chunk.positions is not None
            sequence, position = divmod(wanted, chunk.positions)
            known["seq"] = (sequence + first_sequence).astype(np.uint32)
            known["pos"] = position.astype(np.uint32)
        return known

    def where(hook: str, row: int) -> str:
        return f"{files[hook]}, row {kept_rows(chunk.file)[row]}"

    return Part(int(chunk.kept.sum()), read, values, where)


def _contents(chunks: Sequence[_Chunk]) -> Iterator[bytes]:
    for chunk in chunks:
        assert chunk.positions is not None
        for tokens in _tokens(chunk.file).reshape(-1, chunk.positions):
            yield tokens.astype("<u4").tobytes()
