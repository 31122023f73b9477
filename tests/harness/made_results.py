"""Results, latents and curves that look like real ones, for tests of what shows them."""

import math
from typing import Any

import numpy as np

from saeflow.evaluate.latents.result import (
    NO_TOKEN,
    NOWHERE,
    Contexts,
    Latents,
    Nearest,
    OutputTokens,
)

_PROSE = (
    "the of and to in a is that it was for on as with his he be at by which have or from had "
    "not are but they this one all were we there been has when who will more no if out so said "
    "what up its about into than them can only other new some could time these two may then do "
    "first any my now such like our over man me even most made after also did many before must "
    "through back years where much your way well down should because each just those people how "
    "too little state good very make world still own see men work long get here between both "
    "life being under never day same another know while last might us great old year off come "
    "since against go came right used take three small house water river mountain light engine "
    "protein enzyme theorem integral matrix vector court judge contract election senate king "
    "queen castle violin sonata Paris London Berlin Tokyo January March October Monday copper "
    "iron oxygen carbon galaxy telescope orbit whale falcon oak maple bread butter sugar salt"
)
WORDS = _PROSE.split()
PIECES = ("ing", "ed", "ly", "s", "'s", ".", ",", ";", "\n", " (", ")", "un", "pre", "tion")
TEXTS = dict(enumerate([f" {word}" for word in WORDS] + [*PIECES]))
"""The texts of the tokens of `made_latents`, by id."""


def estimate(value: float, spread: float) -> dict[str, float]:
    return {"value": value, "low": value - spread, "high": value + 1.1 * spread}


def made_result(name: str = "blocks.15.hook_resid_post-topk-4608", **other: Any) -> dict[str, Any]:
    """A result of schema 2; `l0` and `quality` rule its figures, the rest stands in it."""
    l0, quality = other.pop("l0", 32.0), other.pop("quality", 0.93)
    increase = 8.1 * (1 - quality)
    losses = {"clean": 2.9173, "spliced": 2.9173 + increase, "zero_ablated": 11.0187}
    losses |= {"mean_ablated": 9.4116, "resample_ablated": 10.2034}
    scores = {
        "zero": _score(quality, 0.004),
        "mean": _score(1 - increase / (9.4116 - 2.9173), 0.005),
        "resample": _score(1 - increase / (10.2034 - 2.9173), 0.005),
    }
    hook = "blocks.15.hook_resid_post"
    result = {
        "schema": 2,
        "name": name,
        "architecture": "topk",
        "kind": "sae",
        "d_in": 576,
        "d_sae": 4608,
        "options": {"sae": f"run/sae/{name}", "seed": 0, "batch_size": 8, "positions": "text"},
        "model": "HuggingFaceTB/SmolLM2-135M",
        "reads": [hook],
        "replaces": [hook],
        "text": {
            "source": "store",
            "held_out_only": True,
            "trained_on": False,
            "documents": 412,
            "sequences": 512,
            "sequences_available": 3071,
            "tokens_scored": 128_904,
            "rows_replaced": 129_416,
        },
        "positions": {
            "replaced": "all but position 0 and special tokens",
            "scored": "predictions made from, and of, replaced positions",
        },
        "mismatches": [],
        "checks": {"identity_score": 1.0, "identity_exact": True, "zero_score": 0.0},
        "losses": {key: estimate(value, 0.03) for key, value in losses.items()},
        "scores": scores,
        "kl": estimate(0.86 * increase, 0.011),
        "top1_agreement": estimate(0.5 + 0.45 * quality, 0.004),
        "loss_increase": estimate(increase, 0.012),
        "by_position": _by_position(losses),
        "by_frequency": _by_frequency(losses),
        "reconstructions": [_reconstruction(hook, quality)],
        "sparsity": _sparsity(l0),
        "versions": {"saeflow": "0.1.0", "torch": "2.13.0", "transformers": "5.9.0"},
        "reconstruction_score": quality,
        "dead_share": 312 / 4608,
        "verdict": f"With the SAE in its place, SmolLM2-135M keeps {quality:.1%} of what zero "
        f"ablation at {hook} takes away, over 128,904 held-out tokens.",
    }
    return result | other


def _score(value: float, spread: float) -> dict[str, Any]:
    mean = estimate(value - 0.006, spread * 1.3)
    return {"ratio_of_sums": estimate(value, spread), "mean_of_ratios": mean} | {
        "items": 409,
        "left_out": 3,
    }


def _by_position(losses: dict[str, float]) -> dict[str, Any]:
    labels = ["1-15", "16-63", "64-127", "128-255", "256-511"]
    drops = [0.9, 0.25, 0.0, -0.12, -0.2]
    return {
        "labels": labels,
        "count": [7680, 24570, 32700, 63954, 0],
        "losses": {
            key: [*(value + drop for drop in drops[:-1]), None] for key, value in losses.items()
        },
    }


def _by_frequency(losses: dict[str, float]) -> dict[str, Any]:
    labels = ["under 1e-6", "1e-6 to 1e-5", "1e-5 to 1e-4", "1e-4 to 1e-3", "1e-3 to 0.01"]
    factors = [3.1, 2.4, 1.7, 1.0, 0.5]
    return {
        "labels": labels,
        "count": [2112, 9031, 27113, 49210, 41438],
        "losses": {key: [value * f for f in factors] for key, value in losses.items()},
    }


def _reconstruction(hook: str, quality: float) -> dict[str, Any]:
    fvu = 1.9 * (1 - quality)
    return {
        "hook_point": hook,
        "rows": 129_416,
        "fvu": fvu,
        "fvu_without_massive": fvu * 1.4,
        "row_fvu": fvu * 1.5,
        "explained_variance": 1 - fvu,
        "mse": 812.4 * fvu,
        "cosine": 0.972,
        "l2_ratio": 0.951,
        "relative_bias": 1.004,
        "massive_rows": 17,
        "massive_share_of_error": 0.031,
        "massive_share_of_loss": None,
    }


def _sparsity(l0: float) -> dict[str, Any]:
    edges = [round(-5 + 0.25 * step, 2) for step in range(21)]
    counts = [int(900 * math.exp(-(((edge + 2.6) / 0.75) ** 2))) for edge in edges[:-1]]
    return {
        "l0": l0,
        "l0_quantiles": {
            "0.05": 0.5 * l0,
            "0.25": 0.8 * l0,
            "0.5": 0.98 * l0,
            "0.75": 1.15 * l0,
            "0.95": 1.6 * l0,
        },
        "l0_edges": list(range(0, int(4 * l0) + 1, int(l0 / 8) or 1)),
        "l0_counts": [
            int(9000 * math.exp(-(((edge / l0 - 0.9) / 0.4) ** 2)))
            for edge in range(0, int(4 * l0), int(l0 / 8) or 1)
        ],
        "l1": 11.2 * l0,
        "dead": 312,
        "dense": 24,
        "density_edges": edges,
        "density_counts": counts,
        "decoder_cosine_quantiles": {"0.05": 0.18, "0.5": 0.31, "0.95": 0.62, "1": 0.98},
        "decoder_cosine_latents": 2048,
    }


def made_latents(
    latents: int = 240, *, vocabulary: int = len(TEXTS), contexts: int = 8, window: int = 33
) -> Latents:
    """Latents of a seeded draw: every thirteenth is dead, every fiftieth dense."""
    draw = np.random.default_rng(7)
    rows = 129_416
    dead = np.arange(latents) % 13 == 5
    density = np.exp(draw.normal(-6, 1.4, latents)).clip(0, 0.08)
    density[::50] = 0.2
    fired = np.where(dead, 0, np.maximum(1, density * rows)).astype(np.int64)
    maximum = np.where(dead, 0, draw.lognormal(1.2, 0.6, latents)).astype(np.float32)
    edges = (2.0 ** np.arange(-8, 8, 0.5)).astype(np.float32)
    chance = np.exp(
        -((np.arange(len(edges) - 1) - np.log2(maximum + 1e-9)[:, None] * 2 - 14) ** 2) / 9
    )
    chance /= chance.sum(axis=1, keepdims=True) + 1e-12
    numbers = np.arange(latents, dtype=np.uint32)
    return Latents(
        d_sae=latents,
        numbers=numbers,
        rows=rows,
        fired=fired,
        maximum=maximum,
        mean=maximum * np.float32(0.4),
        histogram_edges=edges,
        histogram_counts=(chance * fired[:, None]).astype(np.uint32),
        contexts=_contexts(draw, maximum, vocabulary, contexts, window),
        output_tokens=_output_tokens(draw, latents, vocabulary),
        nearest=Nearest(
            numbers=(numbers[:, None] + 1 + np.arange(8, dtype=np.uint32)) % np.uint32(latents),
            cosines=_falling(draw.uniform(0.1, 0.8, (latents, 8))),
        ),
    )


def _falling(values: np.ndarray) -> np.ndarray:
    return -np.sort(-values.astype(np.float32), axis=1)


def _contexts(
    draw: np.random.Generator, maximum: np.ndarray, vocabulary: int, contexts: int, window: int
) -> Contexts:
    latents, before = len(maximum), window * 3 // 5
    shape = (latents, contexts)
    there = (maximum > 0)[:, None] & np.ones(shape, dtype=bool)
    values = _falling(draw.uniform(0.5, 1, shape)) * maximum[:, None]
    values[:, 0] = maximum
    tokens = draw.integers(0, vocabulary, (*shape, window)).astype(np.uint32)
    tokens[:, :, before] = draw.integers(0, vocabulary, latents)[:, None]
    shares = np.where(draw.random((*shape, window)) < 0.1, draw.random((*shape, window)), 0)
    shares[:, :, before] = 1
    tokens[:, -1, :3] = NO_TOKEN  # a context near the start of its sequence
    shares[:, -1, :3] = 0
    tokens[~there] = NO_TOKEN
    shares[~there] = 0
    return Contexts(
        values=values,
        sequences=np.where(there, draw.integers(0, 512, shape), NOWHERE).astype(np.int32),
        documents=np.where(there, draw.integers(0, 412, shape), NOWHERE).astype(np.int64),
        positions=np.where(there, draw.integers(20, 256, shape), NOWHERE).astype(np.int32),
        tokens=tokens,
        activations=shares.astype(np.float16),
        before=before,
    )


def _output_tokens(draw: np.random.Generator, latents: int, vocabulary: int) -> OutputTokens:
    logits = _falling(draw.gamma(2, 0.4, (latents, 10)))
    return OutputTokens(
        top=draw.integers(0, vocabulary, (latents, 10)).astype(np.uint32),
        top_logits=logits,
        bottom=draw.integers(0, vocabulary, (latents, 10)).astype(np.uint32),
        bottom_logits=-logits,
    )


def made_training(final_fvu: float = 0.13, steps: int = 4000) -> list[dict[str, Any]]:
    """Lines of metrics.jsonl."""
    lines: list[dict[str, Any]] = []
    for step in range(0, steps + 1, 20):
        fvu = final_fvu + (1 - final_fvu) * math.exp(-step / 350) + 0.004 * math.sin(step)
        line = {
            "step": step,
            "rows": step * 4096,
            "sae": "one",
            "lr": 1e-3 * min(1, step / 200),
            "loss": fvu * 576,
            "fvu": fvu,
            "row_fvu": fvu * 1.4,
            "l0": 32.0,
            "dead": max(0, 900 - step // 5),
        }
        if step % 500 == 0:
            line |= {"held_out_fvu": fvu * 1.03, "held_out_row_fvu": fvu * 1.44}
            line |= {"held_out_l0": 31.7, "held_out_dead": max(0, 700 - step // 8)}
            line["held_out_dense"] = 20
        lines.append(line)
    return lines
