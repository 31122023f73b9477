"""A random sample of the training rows, by number: spread over all shards alike."""

import numpy as np
from jaxtyping import UInt64

from saeflow.harvest.layout import Layout
from saeflow.harvest.permutation import derive_key, permute

SAMPLE_ROWS = 65_536
"""Rows of the sample, or all rows if there are fewer."""


def sample_rows(layout: Layout) -> UInt64[np.ndarray, " rows"]:
    """Numbers of stored training rows, rising.

    Each shard gives in proportion to its rows: its first ones where rows are permuted
    inside shards, so that they are read at once; else ones drawn by a permutation of
    their own.
    """
    split = layout.splits["train"]
    wanted = min(SAMPLE_ROWS, split.n_rows)
    found = []
    for k in range(split.n_shards):
        rows = split.shard(k)
        count = rows.stop * wanted // split.n_rows - rows.start * wanted // split.n_rows
        places = np.arange(count)
        if layout.order == "sequence" and count:
            places = np.sort(permute(places, len(rows), derive_key(layout.seed, "sample", k)))
        found.append(places + rows.start)
    return np.concatenate(found).astype(np.uint64)
