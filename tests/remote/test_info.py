"""`saeflow info` of a store behind a URL: what its folder says, but for what would take long."""

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from saeflow import store_info
from saeflow.errors import BadInputError, SaeflowError


def test_a_store_in_a_bucket_tells_what_its_folder_does(
    tiny_store: Path, bucket: str, upload: Callable[[Path, str], str]
) -> None:
    """Mixing is reckoned, in the windows that it is read in, and not measured."""
    found, folder = store_info(upload(tiny_store, f"{bucket}/info")), store_info(tiny_store)
    assert str(found.path) == f"{bucket}/info"
    assert found.bytes == folder.bytes
    assert replace(found, path=tiny_store, mixing=folder.mixing) == folder
    for mixing in found.mixing.values():
        assert mixing is not None
        assert (mixing.mates, mixing.batches) == (None, 0)
        assert mixing.strips_per_window > 0
        assert mixing.expected >= mixing.ideal > 0


def test_no_store_in_a_bucket(bucket: str) -> None:
    with pytest.raises(BadInputError, match=f"there is no saeflow store at {bucket}/none"):
        store_info(f"{bucket}/none")


def test_a_store_in_a_bucket_without_its_manifest(
    tiny_store: Path, bucket: str, upload: Callable[[Path, str], str], tmp_path: Path
) -> None:
    copied = shutil.copytree(tiny_store, tmp_path / "copied")
    (copied / "_saeflow/manifest.json").unlink()
    with pytest.raises(SaeflowError, match=r"store s3://.* is damaged .*: check it with saeflow"):
        store_info(upload(copied, f"{bucket}/cut"))
