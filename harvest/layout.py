"""How a store is laid out: format 1, its arrays, and the arithmetic of rows and shards.

A store is a zarr v3 group that any zarr reader opens. docs/store-format.md is the
normative description; this file is the one place in the code that follows it.
"""

import math
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Literal, get_args

import torch

from saeflow.harvest.tokens import Packing

FORMAT = 1
"""The number that a reader checks before it reads anything else."""

Order = Literal["permuted", "sequence"]

Codec = Literal["bytes", "crc32c", "zstd"]
"""How a chunk of activations is encoded; with `bytes` a shard's body is a row-major matrix."""

_SHARD_BYTES = 256 * 2**20
_CHUNK_BYTES = 2 * 2**20
_SEQUENCE_CHUNK_TOKENS = 2**20


@dataclass(frozen=True)
class StoredDtype:
    """A precision of activations, and how zarr holds it.

    Attributes:
        torch: the dtype of the activations.
        array: the dtype of the zarr array; zarr has no bfloat16, so its bits are uint16.
        fill: what an absent row reads as: not a number, or the one int8 that no row holds.
    """

    torch: torch.dtype
    array: str
    fill: int | float

    @property
    def itemsize(self) -> int:
        """Bytes of one element."""
        return self.torch.itemsize


DTYPES: Mapping[str, StoredDtype] = {
    "bfloat16": StoredDtype(torch.bfloat16, "uint16", 0x7FC0),
    "float16": StoredDtype(torch.float16, "float16", math.nan),
    "float32": StoredDtype(torch.float32, "float32", math.nan),
    "int8": StoredDtype(torch.int8, "int8", -128),
}


@dataclass(frozen=True)
class HookPoint:
    """A hook point and the shape of one token's activation there.

    Attributes:
        name: TransformerLens's name.
        shape: of one token, for example (576,), or (9, 64) with a head axis.
    """

    name: str
    shape: tuple[int, ...]

    @property
    def d_in(self) -> int:
        """Length of the row: the shape flattened, heads outermost."""
        return math.prod(self.shape)


ROW_ARRAYS: Mapping[str, str] = {
    "token": "uint32",
    "doc": "uint32",
    "seq": "uint32",
    "pos": "uint32",
}
"""What is stored of every row beside its activations, and its dtype."""

SHARD_FIGURES = ("mean", "m2", "absmax", "geometric_median")
"""What `stats/<hook point>/shards` holds of every channel of a shard."""


@dataclass(frozen=True)
class Split:
    """One of the two parts of a store: training text, or held-out text.

    Attributes:
        name: `train` or `heldout`.
        n_sequences: packed contexts.
        n_rows: stored rows: the tokens of all sequences but those at position 0.
        n_documents: documents with at least one token in the sequences.
        rows_per_shard: rows of every shard but the last.
    """

    name: str
    n_sequences: int
    n_rows: int
    n_documents: int
    rows_per_shard: int

    @property
    def folder(self) -> str:
        """The path of this split's arrays in the store, with a slash at the end unless empty."""
        return "" if self.name == "train" else f"{self.name}/"

    @property
    def n_shards(self) -> int:
        """How many shards there are, the last one perhaps not full."""
        return -(-self.n_rows // self.rows_per_shard)

    def shard(self, index: int) -> range:
        """The rows of one shard, before they are permuted."""
        first = index * self.rows_per_shard
        return range(first, min(first + self.rows_per_shard, self.n_rows))


@dataclass(frozen=True, kw_only=True)
class Layout:
    """Everything that says where a row's bytes are.

    Attributes:
        dtype: a key of `DTYPES`.
        packing: how documents became sequences; None where the rows were imported
            and nobody knows.
        order: whether rows are permuted inside each shard.
        seed: the seed of those permutations.
        rows_per_shard: a power of two unless the user chose otherwise.
        hook_points: one array each.
        codec: how chunks of activations are encoded.
        row_values: the keys of `ROW_ARRAYS` that are stored; all, unless imported.
        splits: by name.
    """

    dtype: str
    packing: Packing | None
    order: Order
    seed: int
    rows_per_shard: int
    hook_points: tuple[HookPoint, ...]
    codec: Codec = "bytes"
    row_values: tuple[str, ...] = tuple(ROW_ARRAYS)
    splits: Mapping[str, Split] = field(default_factory=dict)

    @property
    def stored(self) -> StoredDtype:
        """The precision of the activations."""
        return DTYPES[self.dtype]

    def rows_per_chunk(self, hook_point: HookPoint) -> int:
        """Rows of an inner chunk: at most 2 MiB, and a divisor of the shard's rows."""
        fits = max(1, _CHUNK_BYTES // (hook_point.d_in * self.stored.itemsize))
        return math.gcd(self.rows_per_shard, _power_of_two_below(fits))

    def to_attributes(self) -> dict[str, Any]:
        """The layout as the store's attributes hold it."""
        return {
            "dtype": self.dtype,
            "codec": self.codec,
            "packing": None if self.packing is None else asdict(self.packing),
            "row_values": list(self.row_values),
            "order": self.order,
            "seed": self.seed,
            "rows_per_shard": self.rows_per_shard,
            "hook_points": [
                {"name": h.name, "shape": list(h.shape), "d_in": h.d_in} for h in self.hook_points
            ],
            "splits": {
                s.name: {
                    "n_rows": s.n_rows,
                    "n_sequences": s.n_sequences,
                    "n_documents": s.n_documents,
                    "n_shards": s.n_shards,
                }
                for s in self.splits.values()
            },
        }

    @staticmethod
    def from_attributes(attributes: Mapping[str, Any]) -> "Layout":
        """The layout that a store's attributes describe. The inverse of `to_attributes`.

        Raises:
            KeyError, TypeError, ValueError: the attributes do not describe one.
        """
        rows_per_shard = int(attributes["rows_per_shard"])
        packing = attributes["packing"]
        return Layout(
            dtype=_one_of(attributes["dtype"], DTYPES),
            codec=_one_of(attributes["codec"], get_args(Codec)),
            packing=None if packing is None else Packing(**packing),
            row_values=tuple(_one_of(name, ROW_ARRAYS) for name in attributes["row_values"]),
            order=_one_of(attributes["order"], get_args(Order)),
            seed=int(attributes["seed"]),
            rows_per_shard=rows_per_shard,
            hook_points=tuple(
                HookPoint(_plain_name(h["name"]), tuple(map(int, h["shape"])))
                for h in attributes["hook_points"]
            ),
            splits={
                name: Split(
                    name,
                    int(s["n_sequences"]),
                    int(s["n_rows"]),
                    int(s["n_documents"]),
                    rows_per_shard,
                )
                for name, s in attributes["splits"].items()
            },
        )


def choose_rows_per_shard(widest: int, itemsize: int, n_rows: int) -> int:
    """The largest power of two of rows that fits 256 MiB, or that holds all rows.

    Args:
        widest: the largest `d_in` of the store.
        itemsize: bytes of one element.
        n_rows: rows of the training split.
    """
    fits = _power_of_two_below(max(1, _SHARD_BYTES // (widest * itemsize)))
    return min(fits, 1 << max(0, (n_rows - 1).bit_length()))


def sequence_chunk(context_size: int) -> int:
    """Sequences in a chunk of the `sequences/token` array: 4 MiB of token ids."""
    return max(1, _SEQUENCE_CHUNK_TOKENS // context_size)


def _power_of_two_below(n: int) -> int:
    return 1 << (n.bit_length() - 1)


def _plain_name(name: str) -> str:
    """A hook point's name as a single path component, so that it can't lead out of the store."""
    if not name or "/" in name or "\\" in name or name in (".", ".."):
        raise ValueError(f"hook point name {name!r} is not a plain name")
    return name


def _one_of(value: Any, known: Iterable[str]) -> Any:
    if value not in known:
        raise ValueError(f"{value!r} is none of {', '.join(known)}")
    return value
