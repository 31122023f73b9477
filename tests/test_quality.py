"""The static checks are tests: style, types, and the direction of imports."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
CHECKS = {
    "ruff": [sys.executable, "-m", "ruff", "check", "."],
    "ruff format": [sys.executable, "-m", "ruff", "format", "--check", "."],
    "mypy": [sys.executable, "-m", "mypy"],
    "import layers": [str(Path(sys.executable).parent / "lint-imports")],
}


@pytest.mark.parametrize("name", CHECKS)
def test_static_check_is_clean(name: str) -> None:
    run = subprocess.run(CHECKS[name], cwd=ROOT, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stdout + run.stderr


def test_type_checker_sees_a_planted_error(tmp_path: Path) -> None:
    planted = tmp_path / "planted.py"
    planted.write_text(
        "from saeflow.harvest.layout import HookPoint\nwidth: str = HookPoint('a', (2,)).d_in\n"
    )
    command = [sys.executable, "-m", "mypy", "--config-file", str(ROOT / "pyproject.toml")]
    run = subprocess.run(
        [*command, str(planted)], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert 'expression has type "int", variable has type "str"' in run.stdout
