"""latents.safetensors: there and back, small, and refused where it is something else."""

from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file, save_file

from saeflow.errors import BadInputError
from saeflow.evaluate.latents.collector import LatentCollector
from saeflow.evaluate.latents.files import NAME, read_latents, read_texts, write_latents
from saeflow.evaluate.latents.result import Latents, Nearest, OutputTokens

TEXTS = {0: "<|endoftext|>", 17: " latent", 4999: "\u2028\\xe2"}


def make(n: int, *, sequences: int = 3) -> Latents:
    draw = torch.Generator().manual_seed(0)
    collector = LatentCollector(n)
    chosen = torch.ones(64, dtype=torch.bool)
    for number in range(sequences):
        latents = torch.randn(64, n, generator=draw).clamp(min=0)
        collector.update(number, torch.randint(5000, (64,), generator=draw), chosen, latents)
    ids = np.arange(n * 10, dtype=np.uint32).reshape(n, 10)
    logits = ids.astype(np.float32)
    return replace(
        collector.result(),
        output_tokens=OutputTokens(
            top=ids, top_logits=logits, bottom=ids + 1, bottom_logits=-logits
        ),
        nearest=Nearest(numbers=ids[:, :5], cosines=logits[:, :5]),
    )


def assert_same(one: Any, other: Any) -> None:
    assert type(one) is type(other)
    for field in fields(one):
        first, second = getattr(one, field.name), getattr(other, field.name)
        if isinstance(first, np.ndarray):
            assert first.dtype == second.dtype, field.name
            assert np.array_equal(first, second), field.name
        elif first is None or isinstance(first, int):
            assert first == second, field.name
        else:
            assert_same(first, second)


@pytest.mark.parametrize("without", [(), ("output_tokens",), ("output_tokens", "nearest")])
def test_what_is_read_is_what_was_written(tmp_path: Path, without: tuple[str, ...]) -> None:
    left_out: dict[str, Any] = dict.fromkeys(without)
    latents = replace(make(7), **left_out)
    write_latents(latents, TEXTS, tmp_path / NAME)
    assert_same(read_latents(tmp_path / NAME), latents)
    assert read_texts(tmp_path / NAME) == TEXTS
    assert [path.name for path in tmp_path.iterdir()] == [NAME]


def test_it_is_plain_safetensors(tmp_path: Path) -> None:
    latents = make(7)
    write_latents(latents, TEXTS, tmp_path / NAME)
    tensors = load_file(tmp_path / NAME)
    assert np.array_equal(tensors["fired"], latents.fired)
    assert np.array_equal(tensors["contexts.tokens"], latents.contexts.tokens)
    assert np.array_equal(tensors["output_tokens.top"], np.arange(70).reshape(7, 10))


def test_4608_latents_are_under_10_megabytes(tmp_path: Path) -> None:
    write_latents(make(4608, sequences=1), TEXTS, tmp_path / NAME)
    assert (tmp_path / NAME).stat().st_size < 10e6


def test_a_file_that_cannot_be_written_leaves_the_old_one(tmp_path: Path) -> None:
    write_latents(make(7), TEXTS, tmp_path / NAME)
    (tmp_path / f"{NAME}.partial").mkdir()
    with pytest.raises(OSError, match="partial"):
        write_latents(make(5), TEXTS, tmp_path / NAME)
    assert_same(read_latents(tmp_path / NAME), make(7))


def test_refusals(tmp_path: Path) -> None:
    path = tmp_path / NAME
    with pytest.raises(BadInputError, match="can't be read"):
        read_latents(path)
    path.write_bytes(b"no tensors")
    with pytest.raises(BadInputError, match="can't be read"):
        read_latents(path)
    save_file({"x": np.zeros(3)}, path)
    with pytest.raises(BadInputError, match="can't be read: KeyError: 'texts'"):
        read_texts(path)
    with pytest.raises(BadInputError, match="has version None of saeflow's latents, where 1 is"):
        read_latents(path)
    write_latents(make(7), TEXTS, path)
    tensors = load_file(path)
    del tensors["fired"]
    metadata = {"saeflow_latents": "1", "d_sae": "7", "rows": "3", "before": "24"}
    save_file(tensors, path, metadata)
    with pytest.raises(BadInputError, match="can't be read: KeyError: 'fired'"):
        read_latents(path)
