"""Which streaming order suits a store: short strips where rows are permuted, windows elsewhere."""

import math

import numpy as np
from jaxtyping import UInt8

from saeflow.harvest.layout import HookPoint, Layout, Split
from saeflow.train.order import KeptRows, StreamOrder

_STRIP_BYTES = 128 * 1024
"""Reads of this size run at the speed of a sequential read."""

_STRIPS_PER_BATCH = 32
"""At least so many places of the store make a batch."""

_STRIPS_PER_SHARD = 1024
"""At least so many: of a document of 512 rows, a strip then holds half a row more than one.
It matters where a narrow hook point shares its shards' number of rows with a wide one."""

_SHORT_STRIP = 16
"""Rows of a strip for which that is given up: who asks for small shards has them read so."""

_WINDOW_CHUNKS = 64
"""Of a permuted store: with them, a row's neighbours in a batch are as good as any."""

_WINDOW_ROWS = 2**20
"""Of a store in sequence order: some thousand documents, of which a row meets two others."""


def choose_strip(
    layout: Layout,
    split: Split,
    hook_point: HookPoint,
    *,
    batch_size: int,
    window_rows: int | None = None,
    remote: bool = False,
) -> tuple[int, int]:
    """Rows of a strip, and strips of a window or 0 for none.

    Strips are as long as fast reading wants and as short as good mixing needs. That is
    mixing enough where rows are permuted in their shards and can be read from anywhere.
    Otherwise a strip is a chunk, and a window is of `window_rows` rows at least: by
    default 64 chunks of a permuted store, and a million rows (or all there are) of one
    in sequence order, so that few rows of a batch are of one document. A reader holds
    two windows in memory.
    """
    chunk = layout.rows_per_chunk(hook_point)
    windowed = layout.codec != "bytes" or layout.order == "sequence" or remote
    if windowed or window_rows is not None:
        default = _WINDOW_ROWS if layout.order == "sequence" else _WINDOW_CHUNKS * chunk
        n_chunks = -(-split.n_rows // chunk)
        return chunk, min(-(-(window_rows or default) // chunk), max(1, n_chunks))
    width = hook_point.d_in * layout.stored.itemsize
    mixed = max(_SHORT_STRIP, split.rows_per_shard // _STRIPS_PER_SHARD)
    longest = max(1, min(_STRIP_BYTES // width, batch_size // _STRIPS_PER_BATCH, mixed))
    return math.gcd(split.rows_per_shard, 1 << (longest.bit_length() - 1)), 0


def choose_order(
    layout: Layout,
    split: Split,
    hook_point: HookPoint,
    *,
    batch_size: int,
    seed: int,
    window_rows: int | None = None,
    remote: bool = False,
    kept_bits: UInt8[np.ndarray, " bytes"] | None = None,
) -> StreamOrder:
    """The order of a split's rows that suits its store.

    Args:
        layout: of the store.
        split: whose rows.
        hook_point: whose rows.
        batch_size: of the global batch.
        seed: of the order.
        window_rows: rows of a window at least, if the user asks for windows.
        remote: whether reading a few rows costs as much as reading a chunk.
        kept_bits: the rows to read, as `KeptRows` has them; None for all.
    """
    strip, window = choose_strip(
        layout, split, hook_point, batch_size=batch_size, window_rows=window_rows, remote=remote
    )
    kept = None if kept_bits is None else KeptRows.of(kept_bits, split.n_rows, strip)
    return StreamOrder(split.n_rows, strip, seed, window, kept)
