"""docs/store-format.md says what the code writes, and its readers read it."""

import dataclasses
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr

from saeflow.harvest.config import HarvestConfig
from saeflow.harvest.importing.config import ImportConfig
from saeflow.harvest.importing.run import import_activations
from saeflow.harvest.permutation import derive_key, permute
from saeflow.harvest.run import harvest_activations
from saeflow.harvest.sample import sample_rows
from saeflow.harvest.store import Store, open_store

TINY_HOOKS = ("blocks.0.hook_resid_post", "blocks.1.attn.hook_z")

PAGE = Path(__file__).parents[1] / "docs" / "store-format.md"
SNIPPETS = re.findall(
    r"^```python\n(.*?)^```", PAGE.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL
)
IN_WORDS: dict[str, set[Any]] = {"not a number": {"NaN"}, "see below": {"NaN", 0x7FC0, -128}}

VARIANTS: dict[str, dict[str, Any]] = {
    "int8, not packed, zstd": {"dtype": "int8", "pack": False, "codec": "zstd"},
    "float16, in sequence, crc32c": {"dtype": "float16", "order": "sequence", "codec": "crc32c"},
}
"""What to try beside the default store, which is bfloat16."""


@pytest.fixture(scope="module")
def page() -> dict[str, Any]:
    """What the page's snippets define."""
    names: dict[str, Any] = {}
    for snippet in SNIPPETS:
        exec(compile(snippet, str(PAGE), "exec"), names)
    return names


@pytest.fixture(scope="module")
def stores(
    tiny_store: Path, tiny_model: Path, tiny_text: Path, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, Store]:
    """The default store, the variants, and one of imported rows."""
    folder = tmp_path_factory.mktemp("stores")
    found = {"default": open_store(tiny_store)}
    for name, options in VARIANTS.items():
        config = HarvestConfig(
            model=str(tiny_model),
            dataset=str(tiny_text),
            hook=TINY_HOOKS,
            out=folder / name,
            context_size=17,
            shard_rows=512,
            held_out=0.2,
            tokens=4000,
            device="cpu",
            **options,
        )
        found[name] = harvest_activations(config).store
    rows = np.random.default_rng(0).normal(size=(1500, 8)).astype(np.float32)
    np.save(folder / "rows.npy", rows)
    options = {"source": folder / "rows.npy", "out": folder / "imported", "shard_rows": 512}
    found["imported"] = import_activations(ImportConfig(**options)).store
    return found


@pytest.fixture(params=["default", *VARIANTS])
def store(request: pytest.FixtureRequest, stores: dict[str, Store]) -> Store:
    """Each store that was harvested."""
    return stores[request.param]


def test_a_reader_takes_at_most_20_lines() -> None:
    for snippet in SNIPPETS[:2]:
        assert len(snippet.splitlines()) <= 20
        assert set(re.findall(r"^(?:import|from) (\w+)", snippet, re.MULTILINE)) == {
            "numpy",
            "zarr",
        }


@pytest.mark.parametrize("name", ["default", *VARIANTS, "imported"])
@pytest.mark.parametrize("split", ["train", "heldout"])
def test_read_rows(page: dict[str, Any], stores: dict[str, Store], name: str, split: str) -> None:
    store = stores[name]
    part = store.layout.splits[split]
    for hook_point in store.layout.hook_points:
        runs = [part.shard(shard) for shard in range(part.n_shards)]
        found = np.concatenate(list(page["read_rows"](store.path, hook_point.name, split)))
        assert found.dtype == np.float32
        assert np.array_equal(found, store.rows(hook_point, part, runs).float().numpy())


def test_read_rows_refuses_an_incomplete_store(page: dict[str, Any], tmp_path: Path) -> None:
    group = zarr.open_group(tmp_path / "store", mode="w")
    group.attrs["saeflow"] = {"format": 1, "state": "writing"}
    with pytest.raises(ValueError, match="not a complete store"):
        next(page["read_rows"](tmp_path / "store", "any"))


@pytest.mark.parametrize("split", ["train", "heldout"])
def test_read_context(page: dict[str, Any], store: Store, split: str) -> None:
    folder, packing = store.layout.splits[split].folder, store.layout.packing
    assert packing is not None
    token = np.asarray(store.array(f"{folder}token")[:])
    for row in (0, 7, len(token) - 1):
        tokens, rows, position = page["read_context"](store.path, row, split)
        assert tokens[0] == packing.bos
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
    lengths = _lengths(store, part.folder, part.n_sequences)
    ends = np.cumsum(lengths - 1)
    for shard in {0, part.n_shards - 1}:
        rows = part.shard(shard)
        for i in (0, len(rows) // 2, len(rows) - 1):
            place = i
            if layout.order == "permuted":
                place = page["place"](i, len(rows), layout.seed, split, shard)
            stored = rows.start + place
            sequence = int(np.searchsorted(ends, rows[i], side="right"))
            before = int(ends[sequence] - lengths[sequence] + 1)
            assert (int(seq[stored]), int(pos[stored])) == (sequence, 1 + rows[i] - before)


def _lengths(store: Store, folder: str, n_sequences: int) -> np.ndarray:
    packing = store.layout.packing
    assert packing is not None
    if packing.packed:
        return np.full(n_sequences, packing.context_size)
    return np.asarray(store.array(f"{folder}sequences/length")[:], np.int64)


def test_the_sample_is_as_described(store: Store) -> None:
    n_rows = store.train.n_rows
    assert np.asarray(store.array("sample")[:]).tolist() == list(
        range(n_rows)
    )  # there are fewer than 65,536
    large = dataclasses.replace(
        store.layout,
        rows_per_shard=50_000,
        splits={"train": dataclasses.replace(store.train, n_rows=120_000, rows_per_shard=50_000)},
    )
    found, counts = sample_rows(large).astype(int), []
    for shard, (first, end) in enumerate([(0, 50_000), (50_000, 100_000), (100_000, 120_000)]):
        counts.append(end * 65_536 // 120_000 - first * 65_536 // 120_000)
        here = found[(first <= found) & (found < end)] - first
        if large.order == "permuted":
            assert here.tolist() == list(range(counts[-1]))
        else:
            key = derive_key(large.seed, "sample", shard)
            drawn = permute(np.arange(counts[-1]), end - first, key)
            assert here.tolist() == sorted(drawn.tolist())
    assert sum(counts) == len(found) == 65_536


def test_int8_is_widened_from_what_is_described(stores: dict[str, Store]) -> None:
    store = stores["int8, not packed, zstd"]
    for hook_point in store.layout.hook_points:
        q, scale, norm = (
            np.asarray(store.array(f"{name}/{hook_point.name}")[:])
            for name in ("acts", "scale", "norm")
        )
        assert np.abs(q.astype(int)).max(1).min() == 127 == np.abs(q.astype(int)).max()
        mean, deviation = np.asarray(store.array(f"quant/{hook_point.name}")[:])
        rows = q * scale[:, None] * deviation + mean
        assert rows.dtype == np.float32
        assert np.array_equal(norm, np.linalg.norm(rows.astype(np.float64), axis=1).astype("f4"))


def _table() -> dict[str, tuple[str, list[str], str]]:
    """The page's table of arrays: dtype, dimension names and fill value by path."""
    text = PAGE.read_text(encoding="utf-8")
    section = text.partition("\n## Arrays\n")[2].partition("\n## ")[0]
    rows = [
        [cell.strip(" `") for cell in line.strip("|").split("|")] for line in section.splitlines()
    ]
    return {row[0]: (row[1], row[3].split(", "), row[5]) for row in rows if len(row) == 6}


def _arrays(store: Store) -> dict[str, dict[str, Any]]:
    """The metadata of every array, by path."""
    found = {}
    for file in store.folder.rglob("zarr.json"):
        metadata = json.loads(file.read_text())
        if metadata["node_type"] == "array":
            found[file.parent.relative_to(store.folder).as_posix()] = metadata
    return found


def test_the_table_of_arrays_is_that_of_the_stores(stores: dict[str, Store]) -> None:
    table = _table()
    met: set[str] = set()
    for store in stores.values():
        for own_path, metadata in _arrays(store).items():
            path = own_path.removeprefix("heldout/")
            for hook_point in store.layout.hook_points:
                path = path.replace(hook_point.name, "<hook point>")
            dtype, dimensions, fill = table[path]
            assert metadata["data_type"] == dtype or path.startswith("acts/")
            assert metadata["dimension_names"] == dimensions
            found: Any = metadata["fill_value"]
            assert found in IN_WORDS[fill] if fill in IN_WORDS else found == int(fill), path
            met.add(path)
    assert met == {path for path in table if path != "path" and "---" not in path}


def test_arrays_that_only_some_stores_have(stores: dict[str, Store]) -> None:
    for name, store in stores.items():
        paths, layout = set(_arrays(store)), store.layout
        assert any(path.startswith("quant/") for path in paths) == (layout.dtype == "int8"), name
        assert any("scale/" in path for path in paths) == (layout.dtype == "int8")
        packed = layout.packing is None or layout.packing.packed
        assert ("sequences/length" in paths) == (not packed)
        assert ("sequences/token" in paths) == (name != "imported")
        assert {"token", "doc", "seq", "pos"} & paths == set(layout.row_values)
        assert not {"heldout/sample"} & paths
        assert not any(path.startswith(("heldout/quant", "heldout/stats")) for path in paths)


def test_the_codecs_are_those_of_the_page(stores: dict[str, Store]) -> None:
    text = PAGE.read_text(encoding="utf-8")
    for store in stores.values():
        for path, metadata in _arrays(store).items():
            names = [codec["name"] for codec in metadata["codecs"]]
            if not path.removeprefix("heldout/").startswith("acts/"):
                assert names == ["bytes"], path
                continue
            assert names == ["sharding_indexed"]
            inner = [codec["name"] for codec in metadata["codecs"][0]["configuration"]["codecs"]]
            row = re.search(rf"^\| `{store.layout.codec}` \| (.*) \|$", text, re.MULTILINE)
            assert row
            assert inner == re.findall(r"`(\w+)`", row[1])


@pytest.mark.parametrize("name", ["default", *VARIANTS, "imported"])
def test_every_key_is_described(stores: dict[str, Store], name: str) -> None:
    text, store = PAGE.read_text(encoding="utf-8"), stores[name]
    root = json.loads((store.folder / "zarr.json").read_text())["attributes"]["saeflow"]
    manifest = json.loads((store.folder / "_saeflow/manifest.json").read_text())
    record = manifest["shards"][-1]
    assert record["split"] == "train"
    hook_point = root["layout"]["hook_points"][0]
    group = json.loads((store.folder / f"stats/{hook_point['name']}/zarr.json").read_text())
    described = set(re.findall(r"`(\w+)`", text))
    parts = [root, root["provenance"], root["provenance"]["model"], root["layout"], hook_point]
    parts += [root["layout"]["packing"] or {}, root["layout"]["splits"]["train"]]
    parts += [root.get("text", {}), root["provenance"].get("imported_from", {})]
    parts += [manifest, record, group["attributes"]["saeflow"]]
    parts += [*record["statistics"].values(), *list(record["files"].values())[:1]]
    assert {key for part in parts for key in part} - described == set()
