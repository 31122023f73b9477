"""Two processes that saw half of the rows each resample as one that saw them all."""

import importlib.util
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

SCRIPT = Path(__file__).with_name("resample_together.py")


def alone(**changed: Any) -> Any:
    """What one process gets that sees all rows."""
    spec = importlib.util.spec_from_file_location("resample_together", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.resample([slice(0, 15), slice(15, 40)], seed=5, **changed)


def test_processes_resample_the_same_latents_with_the_same_rows(tmp_path: Path) -> None:
    processes = [
        subprocess.Popen(
            [sys.executable, str(SCRIPT), str(rank), str(tmp_path / "meet")],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    found = []
    for process in processes:
        out, error = process.communicate(timeout=300)
        assert process.returncode == 0, error
        found.append(json.loads(out))
    assert found[0] == found[1]
    expected = alone()
    assert [latents for latents, _ in expected] == [[2], [1, 4]]  # latent 0 fired, in one of them
    for (latents, rows), (right, right_rows) in zip(found[0]["same"], expected, strict=True):
        assert latents == right
        assert [y for x in rows for y in x] == pytest.approx([y for x in right_rows for y in x])
    assert found[0]["refused"].startswith("component 0 has 1 dead latents and 0 sampled rows")
