"""The harvest that all others here are held against."""

import contextlib
import json
import time
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

import pytest
from harvests import Harvests, Whole, tree_of, until_tokenizing


@pytest.fixture(scope="package")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Forty documents of the built-in text, 500 characters of each."""
    from saeflow.harvest.builtin import builtin_documents

    file = tmp_path_factory.mktemp("interrupted") / "text.jsonl"
    lines = [json.dumps({"text": text[:500]}) for text in islice(builtin_documents(), 40)]
    file.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return file


@pytest.fixture(scope="package")
def server(text: Path) -> Iterator[Harvests]:
    with contextlib.closing(Harvests(text)) as server:
        yield server


@pytest.fixture(scope="package")
def whole(server: Harvests, tmp_path_factory: pytest.TempPathFactory) -> Whole:
    out = tmp_path_factory.mktemp("interrupted") / "whole"
    running = server.start(out)
    began = until_tokenizing(out)
    end = running.wait()
    seconds = time.monotonic() - began
    assert end.code == 0, running.log.read_text()
    tree = tree_of(out)
    assert "acts/blocks.1.hook_resid_post/c/2/0" in tree
    assert "heldout/acts/blocks.1.hook_resid_post/c/0/0" in tree
    return Whole(server, out, tree, end.operation, seconds)
