"""The README says what is true of the tree."""

import re
from pathlib import Path

import typer

from saeflow.cli import app

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")


def test_ci_runs_the_test_command_of_the_readme() -> None:
    (command,) = re.findall(r"^(python3 .* \.venv/bin/pytest)$", README, re.MULTILINE)
    assert command in (ROOT / ".ci/run").read_text().replace("install -q", "install")


def test_every_flag_in_the_readme_exists() -> None:
    group = typer.main.get_command(app)
    options = [p for c in group.commands.values() for p in c.params]  # type: ignore[attr-defined]  # a group
    known = {flag for option in options for flag in [*option.opts, *option.secondary_opts]}
    named = set(re.findall(r"`(--[a-z][a-z-]+)[ `]", README)) | set(
        re.findall(r" (--[a-z][a-z-]+) ", README)
    )
    assert len(named) > 10
    assert named <= known


def test_every_path_in_the_readme_exists() -> None:
    paths = re.findall(r"`((?:tests|benchmarks|scripts|docs)/[\w/.]+)`", README)
    paths += re.findall(r"\]\(([\w/.-]+)\)", README)
    assert len(paths) > 5
    assert [path for path in paths if not (ROOT / path).exists()] == []
