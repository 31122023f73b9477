"""The main job, whole, as a new user meets it: `saeflow quickstart`."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import saeflow


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("quickstart") / "out"


def test_quickstart_makes_an_sae_that_beats_itself_untrained(
    folder: Path, run_cli: Callable[..., Any]
) -> None:
    done = run_cli("quickstart", "--out", str(folder), "--json")
    assert done.code == 0, done.err
    scores = json.loads(done.out)
    trained, untrained = (scores[n]["reconstruction_score"] for n in ("trained", "untrained"))
    assert trained >= 0.85
    assert trained >= untrained + 0.5
    (saved,) = folder.glob("run/sae/*/scores.json")
    assert json.loads(saved.read_text()) == scores["trained"]


def test_quickstart_again_only_shows_what_it_found(
    folder: Path, run_cli: Callable[..., Any]
) -> None:
    before = {p: p.stat().st_mtime_ns for p in folder.rglob("*.safetensors")}
    done = run_cli("quickstart", "--out", str(folder))
    assert done.code == 0, done.err
    assert "reconstruction score" in done.out
    assert {p: p.stat().st_mtime_ns for p in folder.rglob("*.safetensors")} == before


def test_its_parts_open_from_python(folder: Path) -> None:
    store = saeflow.open_store(folder / "store")
    (sae_folder,) = folder.glob("run/sae/*")
    sae = saeflow.load_sae(sae_folder)
    hook_point = store.hook_point(sae.hook_point)
    rows = store.rows(hook_point, store.held_out, [range(100)]).float()
    latents = sae.encode(rows)
    assert latents.shape == (100, sae.d_sae)
    assert ((latents > 0).sum(1) <= 16).all()
    assert (sae.decode(latents) - rows).square().sum() < 0.5 * rows.square().sum()
