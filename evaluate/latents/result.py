"""What is known of each latent, as latents.safetensors holds it and the report shows it."""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float16, Float32, Int32, Int64, UInt32

NO_TOKEN = 2**32 - 1
"""Stands in a window where its sequence has no token: before its start, after its end, padding."""

NOWHERE = -1
"""The sequence, document and position of a context that a latent doesn't have."""

Tokens = UInt32[np.ndarray, "latents contexts window"]


@dataclass(frozen=True, kw_only=True)
class OutputTokens:
    """Which tokens each latent makes likelier, and which unlikelier, by the logit lens.

    Attributes:
        top, bottom: token ids, the strongest effect first.
        top_logits, bottom_logits: what one unit of the latent adds to those tokens' logits,
            up to the final norm's scale, which is the same for all tokens.
    """

    top: UInt32[np.ndarray, "latents top"]
    top_logits: Float32[np.ndarray, "latents top"]
    bottom: UInt32[np.ndarray, "latents bottom"]
    bottom_logits: Float32[np.ndarray, "latents bottom"]


@dataclass(frozen=True, kw_only=True)
class Nearest:
    """The other latents whose decoder rows point most nearly the same way.

    Attributes:
        numbers: of latents of the whole SAE, the nearest first.
        cosines: of the decoder rows.
    """

    numbers: UInt32[np.ndarray, "latents nearest"]
    cosines: Float32[np.ndarray, "latents nearest"]


@dataclass(frozen=True, kw_only=True)
class Contexts:
    """Where in the text each latent is most active: one place a sequence, one of the same words.

    A latent that was active in fewer places has fewer contexts; they come first, the others'
    value is 0.

    Attributes:
        values: activations, the largest first; 0 where there is no context.
        sequences: numbers of the sequences, as they were given; else `NOWHERE`.
        documents: numbers of the documents, if they were given; else `NOWHERE`.
        positions: in the sequence; else `NOWHERE`.
        tokens: ids around the position, in the sequence's order; else `NO_TOKEN`.
        activations: the latent's at each of these tokens, as a share of `values`, so from 0 to
            1; 0 also at tokens where the SAE was not applied, and where there is no token.
        before: how many tokens of a window come before the position: `values` is at
            `window[before]`.
    """

    values: Float32[np.ndarray, "latents contexts"]
    sequences: Int32[np.ndarray, "latents contexts"]
    documents: Int64[np.ndarray, "latents contexts"]
    positions: Int32[np.ndarray, "latents contexts"]
    tokens: Tokens
    activations: Float16[np.ndarray, "latents contexts window"]
    before: int


@dataclass(frozen=True, kw_only=True)
class Latents:
    """What chosen latents of an SAE do. The first axis of every array is that of `numbers`.

    Attributes:
        d_sae: how many latents the SAE has.
        numbers: which of them these are, rising.
        rows: how many rows they were looked at in.
        fired: rows in which each is above zero.
        maximum: each one's largest activation; 0 of one that was never active.
        mean: of its activations above zero; 0 of one that was never active.
        histogram_edges: of the bins of activations above zero, rising, half an octave each.
        histogram_counts: rows in each bin, `edges[i] <= activation < edges[i + 1]`; what is
            smaller or larger than all edges is in the first and in the last bin.
        contexts: where each is most active.
        output_tokens: None where the SAE doesn't write to the residual stream, or where its
            way to the logits is not linear.
        nearest: None where that was not asked for.
    """

    d_sae: int
    numbers: UInt32[np.ndarray, " latents"]
    rows: int
    fired: Int64[np.ndarray, " latents"]
    maximum: Float32[np.ndarray, " latents"]
    mean: Float32[np.ndarray, " latents"]
    histogram_edges: Float32[np.ndarray, " edges"]
    histogram_counts: UInt32[np.ndarray, "latents bins"]
    contexts: Contexts
    output_tokens: OutputTokens | None = None
    nearest: Nearest | None = None

    @property
    def density(self) -> Float32[np.ndarray, " latents"]:
        """The share of rows in which each latent is above zero."""
        return (self.fired / max(self.rows, 1)).astype(np.float32)
