"""Which of a store's rows a filter keeps: one bit a row, made before the first step.

They come from the arrays that are stored beside the activations, some shards at a
time. So the order stays a pure function of seed and place: it knows every kept row.
"""

import math
from collections.abc import Iterator
from typing import Any

import numpy as np
from jaxtyping import Bool, UInt8

from saeflow.config import require
from saeflow.harvest.layout import HookPoint
from saeflow.harvest.statistics import MASSIVE
from saeflow.harvest.store import Store
from saeflow.train.row_filter import SPECIAL, RowFilter

_ROWS_AT_ONCE = 2**20


def kept_bits(
    store: Store, hook_point: HookPoint, wanted: RowFilter
) -> UInt8[np.ndarray, " bytes"] | None:
    """The training rows that a filter keeps, as `KeptRows` has them; None for all.

    Raises:
        BadInputError: the store doesn't know what the filter asks, or no row is kept.
    """
    if wanted.keeps_all:
        return None
    _refuse_the_unknown(store, wanted)
    parts = [np.packbits(k, bitorder="little") for k in _kept_blocks(store, hook_point, wanted)]
    bits = np.concatenate(parts)
    require(
        bool(bits.any()),
        f"no training row of store {store.path} is kept: ask less of "
        "--drop-tokens, --drop-massive or --positions",
    )
    return bits


def _refuse_the_unknown(store: Store, wanted: RowFilter) -> None:
    needs = {
        "token": ("--drop-tokens", bool(wanted.tokens) or wanted.special),
        "pos": ("--positions", (wanted.first_position, wanted.last_position) != (0, None)),
    }
    for name, (flag, needed) in needs.items():
        require(
            not needed or name in store.layout.row_values,
            f"store {store.path} does not know the {name} of its rows, it was imported without: "
            f"leave {flag} out",
        )
    require(
        not wanted.special or store.layout.packing is not None,
        f"store {store.path} does not know its special tokens, it was imported without: "
        f"give their ids to --drop-tokens instead of {SPECIAL}",
    )


def _kept_blocks(
    store: Store, hook_point: HookPoint, wanted: RowFilter
) -> Iterator[Bool[np.ndarray, " rows"]]:
    """Whether each training row is kept: blocks of whole shards, and of whole bytes of bits."""
    n_rows, shard = store.train.n_rows, store.train.rows_per_shard
    block = math.lcm(shard, 8)
    block *= max(1, _ROWS_AT_ONCE // block)
    dropped = [*wanted.tokens, *_special_tokens(store, wanted)]
    medians: Any = None
    if wanted.massive:
        medians = store.statistics(hook_point)["median_norm"]
    for first in range(0, n_rows, block):
        rows = slice(first, min(first + block, n_rows))
        keep = np.ones(rows.stop - first, np.bool_)
        if dropped:
            keep &= ~np.isin(np.asarray(store.array("token")[rows]), dropped)
        if (wanted.first_position, wanted.last_position) != (0, None):
            pos = np.asarray(store.array("pos")[rows])
            keep &= pos >= wanted.first_position
            keep &= pos <= (math.inf if wanted.last_position is None else wanted.last_position)
        if wanted.massive:
            norms = np.asarray(store.array(f"norm/{hook_point.name}")[rows], np.float64)
            keep &= norms <= MASSIVE * medians[np.arange(first, rows.stop) // shard]
        yield keep


def _special_tokens(store: Store, wanted: RowFilter) -> tuple[int, ...]:
    packing = store.layout.packing
    return (packing.bos, packing.separator) if wanted.special and packing else ()
