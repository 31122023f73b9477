"""docs/store-format.md says what the code writes, and its readers read it."""

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr

from saeflow.harvest.permutation import derive_key, permute
from saeflow.harvest.store import Store, open_store

PAGE = Path(__file__).parents[1] / "docs" / "store-format.md"
SNIPPETS = re.findall(
    r"^```python\n(.*?)^```", PAGE.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL
)
IN_WORDS = {"not a number": {"NaN", 0x7FC0}}


@pytest.fixture(scope="module")
def page() -> dict[str, Any]:
    """What the page's snippets define."""
    names: dict[str, Any] = {}
    for snippet in SNIPPETS:
        exec(compile(snippet, str(PAGE), "exec"), names)
    return names


@pytest.fixture(scope="module")
def store(tiny_store: Path) -> Store:
    return open_store(tiny_store)


def test_a_reader_takes_at_most_20_lines() -> None:
    for snippet in SNIPPETS[:2]:
        assert len(snippet.splitlines()) <= 20
        assert set(re.findall(r"^(?:import|from) (\w+)", snippet, re.MULTILINE)) == {
            "numpy",
            "zarr",
        }


@pytest.mark.parametrize("split", ["train", "heldout"])
def test_read_rows(page: dict[str, Any], store: Store, split: str) -> None:
    part = store.layout.splits[split]
    for hook_point in store.layout.hook_points:
        runs = [part.shard(shard) for shard in range(part.n_shards)]
        found = np.concatenate(list(page["read_rows"](store.path, hook_point.name, split)))
        assert np.array_equal(found, store.rows(hook_point, part, runs).float().numpy())


def test_read_rows_refuses_an_incomplete_store(page: dict[str, Any], tmp_path: Path) -> None:
    group = zarr.open_group(tmp_path / "store", mode="w")
    group.attrs["saeflow"] = {"format": 1, "state": "writing"}
    with pytest.raises(ValueError, match="not a complete store"):
        next(page["read_rows"](tmp_path / "store", "any"))


@pytest.mark.parametrize("split", ["train", "heldout"])
def test_read_context(page: dict[str, Any], store: Store, split: str) -> None:
    folder = store.layout.splits[split].folder
    token = np.asarray(store.array(f"{folder}token")[:])
    for row in (0, 7, len(token) - 1):
        tokens, rows, position = page["read_context"](store.path, row, split)
        assert tokens[0] == store.layout.packing.bos
        assert tokens[1:].tolist() == token[rows].tolist()
        assert rows[position - 1] == row


@pytest.mark.parametrize("n", [1, 2, 3, 17, 512, 1000])
def test_place_is_the_permutation(page: dict[str, Any], n: int) -> None:
    expected = permute(np.arange(n), n, derive_key(5, "shard", "heldout", 3))
    assert [page["place"](i, n, 5, "heldout", 3) for i in range(n)] == expected.tolist()


@pytest.mark.parametrize("split", ["train", "heldout"])
def test_rows_lie_where_the_arithmetic_says(page: dict[str, Any], store: Store, split: str) -> None:
    part, layout = store.layout.splits[split], store.layout
    seq, pos = (np.asarray(store.array(part.folder + name)[:]) for name in ("seq", "pos"))
    per_sequence = layout.packing.rows_per_sequence
    for shard in {0, part.n_shards - 1}:
        rows = part.shard(shard)
        for i in (0, len(rows) // 2, len(rows) - 1):
            stored = rows.start + page["place"](i, len(rows), layout.seed, split, shard)
            found = int(seq[stored]), int(pos[stored])
            assert found == (rows[i] // per_sequence, 1 + rows[i] % per_sequence)


def _table() -> dict[str, tuple[str, list[str], str]]:
    """The page's table of arrays: dtype, dimension names and fill value by path."""
    text = PAGE.read_text(encoding="utf-8")
    section = text.partition("\n## Arrays\n")[2].partition("\n## ")[0]
    rows = [
        [cell.strip(" `") for cell in line.strip("|").split("|")] for line in section.splitlines()
    ]
    return {row[0]: (row[1], row[3].split(", "), row[5]) for row in rows if len(row) == 6}


def test_the_table_of_arrays_is_the_store_s(store: Store) -> None:
    table, met = _table(), set()
    for file in store.path.rglob("zarr.json"):
        metadata = json.loads(file.read_text())
        if metadata["node_type"] != "array":
            continue
        path = file.parent.relative_to(store.path).as_posix().removeprefix("heldout/")
        for hook_point in store.layout.hook_points:
            path = path.replace(hook_point.name, "<hook point>")
        dtype, dimensions, fill = table[path]
        assert metadata["data_type"] == dtype or path.startswith("acts/")
        assert metadata["dimension_names"] == dimensions
        found = metadata["fill_value"]
        assert found in IN_WORDS[fill] if fill in IN_WORDS else found == int(fill), path
        met.add(path)
    assert met == {path for path in table if path != "path" and "---" not in path}


def test_every_key_is_described(store: Store) -> None:
    text = PAGE.read_text(encoding="utf-8")
    root = json.loads((store.path / "zarr.json").read_text())["attributes"]["saeflow"]
    manifest = json.loads((store.path / "_saeflow/manifest.json").read_text())
    record = manifest["shards"][-1]
    assert record["split"] == "train"
    described = set(re.findall(r"`(\w+)`", text))
    parts = [root, root["provenance"], root["provenance"]["model"], root["layout"], root["text"]]
    parts += [root["layout"]["hook_points"][0], root["layout"]["splits"]["train"], manifest, record]
    parts += [*record["statistics"].values(), *list(record["files"].values())[:1]]
    assert {key for part in parts for key in part} - described == set()
