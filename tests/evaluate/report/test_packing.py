import base64
import json
import zlib
from dataclasses import replace
from typing import Any

import numpy as np
from made_results import TEXTS, made_latents

from saeflow.evaluate.latents.result import NO_TOKEN, Latents
from saeflow.evaluate.report.packing import pack_latents


def unpacked(block: str) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """Read a block as its description says."""
    content = zlib.decompress(base64.b64decode(block))
    end = 4 + int.from_bytes(content[:4], "little")
    head = json.loads(content[4:end])
    arrays = {
        name: np.frombuffer(content, place["dtype"], place["size"], end + place["offset"])
        for name, place in head["arrays"].items()
    }
    assert end % 4 == 0
    assert all(place["offset"] % 4 == 0 for place in head["arrays"].values())
    return head, arrays


def test_a_block_holds_what_is_known_of_latents(latents: Latents) -> None:
    head, arrays = unpacked(pack_latents(latents, TEXTS))
    assert head["d_sae"] == latents.d_sae
    assert head["contexts"], head["window"] == latents.contexts.tokens.shape[1:]
    np.testing.assert_array_equal(arrays["fired"], latents.fired)
    np.testing.assert_array_equal(arrays["maximum"], latents.maximum)
    np.testing.assert_array_equal(arrays["counts"], latents.histogram_counts.ravel())
    np.testing.assert_array_equal(arrays["documents"], latents.contexts.documents.ravel())
    assert latents.nearest is not None
    np.testing.assert_array_equal(arrays["nearest"], latents.nearest.numbers.ravel())
    shares = arrays["shares"].reshape(latents.contexts.activations.shape) / 1000
    np.testing.assert_allclose(shares, latents.contexts.activations, atol=6e-4)


def test_tokens_are_places_in_the_vocabulary(latents: Latents) -> None:
    head, arrays = unpacked(pack_latents(latents, TEXTS))
    words = [*head["vocabulary"], None]
    assert head["none"] == len(head["vocabulary"])
    shown = [words[place] for place in arrays["tokens"]]
    assert shown == [
        None if token == NO_TOKEN else TEXTS[int(token)]
        for token in latents.contexts.tokens.ravel()
    ]
    assert latents.output_tokens is not None
    assert [words[place] for place in arrays["top"]] == [
        TEXTS[int(token)] for token in latents.output_tokens.top.ravel()
    ]


def test_a_large_vocabulary_takes_wider_places() -> None:
    latents = made_latents(3000, vocabulary=200_000)
    _, arrays = unpacked(pack_latents(latents, {}))
    assert arrays["tokens"].dtype == np.uint32


def test_a_token_without_text_shows_its_id(latents: Latents) -> None:
    head, _ = unpacked(pack_latents(latents, {}))
    assert head["vocabulary"][0] == "<token 0>"


def test_what_is_not_known_is_left_out(latents: Latents) -> None:
    less = replace(latents, output_tokens=None, nearest=None)
    head, arrays = unpacked(pack_latents(less, TEXTS))
    assert not {"top", "bottom", "nearest"} & set(arrays)
    assert "nearestWidth" not in head
