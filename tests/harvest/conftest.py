"""What the tests of the harvest stage share."""

import hashlib
from collections.abc import Callable
from pathlib import Path

import pytest
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from saeflow.harvest.models import ModelSpec, SourceModel, load_model
from saeflow.harvest.store import Store, open_store


@pytest.fixture(scope="session")
def tokenizer(tiny_model: Path) -> PreTrainedTokenizerBase:
    return AutoTokenizer.from_pretrained(str(tiny_model))


@pytest.fixture(scope="session")
def source_model(tiny_model: Path) -> SourceModel:
    return load_model(ModelSpec(name=str(tiny_model)))


@pytest.fixture(scope="session")
def store(tiny_store: Path) -> Store:
    """`tiny_store`, opened."""
    return open_store(tiny_store)


@pytest.fixture(scope="session")
def contents() -> Callable[[Path], dict[str, str]]:
    """A folder's files by name, each as the sha256 of its bytes."""

    def hashes(folder: Path) -> dict[str, str]:
        files = sorted(p for p in folder.rglob("*") if p.is_file())
        return {
            str(p.relative_to(folder)): hashlib.sha256(p.read_bytes()).hexdigest() for p in files
        }

    return hashes
