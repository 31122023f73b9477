"""Latents as one compressed block of text: the form in which a page carries them.

A block is base64 of a zlib stream of: the length of the head (uint32, little-endian), the head
(JSON, padded with spaces to a multiple of four bytes), and the arrays, each on a multiple of four
bytes. unpack.js reads it.
"""

import base64
import json
import zlib
from collections.abc import Mapping
from typing import Any

import numpy as np
from jaxtyping import UInt32

from saeflow.evaluate.latents.result import Latents
from saeflow.evaluate.latents.texts import used_tokens

_SHARES = 1000
"""Activations in a context are kept in thousandths of its largest, which is more than is seen."""

_ALIGNMENT = 4


def pack_latents(latents: Latents, token_texts: Mapping[int, str]) -> str:
    """A block of these latents.

    Args:
        latents: what is known of them.
        token_texts: what `used_tokens` say; one that isn't there shows as its id.
    """
    ids = used_tokens(latents)
    head: dict[str, Any] = {
        "d_sae": latents.d_sae,
        "rows": latents.rows,
        "contexts": latents.contexts.tokens.shape[1],
        "window": latents.contexts.tokens.shape[2],
        "before": latents.contexts.before,
        "none": len(ids),
        "vocabulary": [token_texts.get(token, f"<token {token}>") for token in ids.tolist()],
    }
    arrays = _arrays(latents, ids, head)
    return _block(head, arrays)


def _arrays(
    latents: Latents, ids: UInt32[np.ndarray, " used"], head: dict[str, Any]
) -> dict[str, np.ndarray]:
    """Arrays by the names that unpack.js knows; `head` gets the widths of what may be missing."""
    contexts = latents.contexts
    arrays: dict[str, np.ndarray] = {
        "numbers": latents.numbers,
        "fired": latents.fired.astype(np.uint32),
        "maximum": latents.maximum,
        "mean": latents.mean,
        "edges": latents.histogram_edges,
        "counts": latents.histogram_counts,
        "values": contexts.values,
        "documents": contexts.documents.astype(np.int32),
        "positions": contexts.positions,
        "tokens": _places(contexts.tokens, ids),
        "shares": np.rint(contexts.activations.astype(np.float32) * _SHARES).astype(np.uint16),
    }
    if latents.output_tokens is not None:
        output = latents.output_tokens
        head |= {"topWidth": output.top.shape[1], "bottomWidth": output.bottom.shape[1]}
        arrays |= {"top": _places(output.top, ids), "topLogits": output.top_logits}
        arrays |= {"bottom": _places(output.bottom, ids), "bottomLogits": output.bottom_logits}
    if latents.nearest is not None:
        head["nearestWidth"] = latents.nearest.numbers.shape[1]
        arrays |= {"nearest": latents.nearest.numbers, "cosines": latents.nearest.cosines}
    return arrays


def _places(tokens: np.ndarray, ids: UInt32[np.ndarray, " used"]) -> np.ndarray:
    """Places of tokens in the page's vocabulary, which is short; `len(ids)` where there is none."""
    places = np.searchsorted(ids, tokens)  # NO_TOKEN is above every id
    return places.astype(np.uint16 if len(ids) < 2**16 else np.uint32)


def _block(head: dict[str, Any], arrays: Mapping[str, np.ndarray]) -> str:
    parts = [
        np.ascontiguousarray(array, dtype=array.dtype.newbyteorder("<"))
        for array in arrays.values()
    ]
    # Arrays are counted from the head's end on, so that its length doesn't depend on itself.
    offset = 0
    head["arrays"] = {}
    for name, part in zip(arrays, parts, strict=True):
        kind = np.dtype(part.dtype).name
        head["arrays"][name] = {"dtype": kind, "offset": offset, "size": part.size}
        offset += _padded(part.nbytes)
    text = json.dumps(head, separators=(",", ":")).encode()
    text = text.ljust(_padded(len(text)))
    compressor = zlib.compressobj(level=6)
    packed = [compressor.compress(len(text).to_bytes(4, "little") + text)]
    packed += [
        compressor.compress(part.tobytes().ljust(_padded(part.nbytes), b"\0")) for part in parts
    ]
    return base64.b64encode(b"".join([*packed, compressor.flush()])).decode("ascii")


def _padded(size: int) -> int:
    return -(-size // _ALIGNMENT) * _ALIGNMENT
