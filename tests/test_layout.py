"""The package as it is installed: its names, its layers, its options, and no unsafe loading."""

import dataclasses
import re
import subprocess
import sys
from importlib import import_module
from importlib.metadata import distribution
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import typer

import saeflow
from saeflow.cli import app
from saeflow.evaluate.config import EvaluateConfig
from saeflow.harvest.config import HarvestConfig
from saeflow.train.config import TrainConfig

ROOT = Path(__file__).parents[1]
STAGES = {"harvest": HarvestConfig, "train": TrainConfig, "evaluate": EvaluateConfig}
AROUND = ("quickstart", "import", "info", "verify", "compare")
SOURCES = sorted(
    file
    for folder in ("src/saeflow", "harvest", "train", "evaluate")
    for file in (ROOT / folder).rglob("*.py")
)


def test_one_name_reaches_site_packages() -> None:
    names = distribution("saeflow").read_text("top_level.txt")
    assert names is not None
    assert names.split() == ["saeflow"]


@pytest.mark.parametrize("name", saeflow.__all__)
def test_every_public_name_resolves(name: str) -> None:
    assert getattr(saeflow, name).__name__ == name
    assert getattr(saeflow, name).__module__.startswith("saeflow.")


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="has no attribute 'harvester'"):
        saeflow.harvester  # noqa: B018  # the access is what is tested


def test_type_checkers_see_the_same_names_as_python() -> None:
    source = (ROOT / "src/saeflow/__init__.py").read_text()
    declared = re.findall(r"^    from (\S+) import \(?\s*(\w+) as (\w+)\b", source, re.MULTILINE)
    needs_an_extra = {"LitSparseAutoencoder"}
    assert sorted({name for _, name, _ in declared} - needs_an_extra) == saeflow.__all__
    for home, name, shown in declared:
        assert shown == name
        assert getattr(import_module(home), name) is getattr(saeflow, name)


@pytest.mark.parametrize("stage", STAGES)
def test_a_stages_name_is_its_package(stage: str) -> None:
    """Even after its function was used: `saeflow.harvest` is never a function."""
    for name in saeflow.__all__:
        getattr(saeflow, name)
    package = import_module(f"saeflow.{stage}")
    assert isinstance(package, ModuleType)
    assert getattr(saeflow, stage) is package
    assert Path(str(package.__file__)).resolve() == ROOT / stage / "__init__.py"


UNSAFE = re.compile(
    r"\bimport pickle\b|\bpickle\.|\btorch\.load\((?!.*weights_only=True)"
    r"|(?<![\w.])eval\(|(?<![\w.])exec\(|yaml\.(unsafe_)?load\b"
    r"|allow_pickle\s*=\s*True|weights_only\s*=\s*False|\bmarshal\b|shell\s*=\s*True|os\.system"
)


@pytest.mark.parametrize("bad", ["import pickle", "torch.load(f)", "eval(x)", "yaml.load(f)"])
def test_the_search_for_unsafe_loading_finds_it(bad: str) -> None:
    assert UNSAFE.search(bad)


def test_nothing_in_the_package_loads_unsafely() -> None:
    assert len(SOURCES) > 30
    found = [
        f"{file.relative_to(ROOT)}:{number}: {line.strip()}"
        for file in SOURCES
        for number, line in enumerate(file.read_text(encoding="utf-8").splitlines(), 1)
        if UNSAFE.search(line)
    ]
    assert found == []


def command(name: str) -> Any:
    group: Any = typer.main.get_command(app)
    return group.commands[name]


@pytest.mark.parametrize("name", [*STAGES, *AROUND])
def test_every_option_has_help(name: str) -> None:
    assert command(name).help
    for option in command(name).params:
        assert option.help, option.name


@pytest.mark.parametrize("stage", STAGES)
def test_the_flags_are_the_fields_of_the_config(stage: str) -> None:
    tables = {"sae"} if stage == "train" else set()  # what only a config file has
    fields = {field.name for field in dataclasses.fields(STAGES[stage])} - tables
    options = {option.name for option in command(stage).params}
    assert options == fields | {"config", "dry_run", "json", "overwrite"}
    for option in command(stage).params:
        if option.param_type_name == "option":
            assert f"--{option.name.replace('_', '-')}" in option.opts


@pytest.mark.parametrize("stage", STAGES)
def test_help_names_every_default(stage: str) -> None:
    helps = {option.name: option.help for option in command(stage).params}
    for field in dataclasses.fields(STAGES[stage]):
        if field.default is dataclasses.MISSING:
            assert field.name == command(stage).params[0].name or "(needed)" in helps[field.name]
        elif field.default not in (None, False, ()):
            assert f"(default {field.default})" in helps[field.name]


def test_help_of_the_command_line_names_the_commands() -> None:
    run = subprocess.run(
        [sys.executable, "-m", "saeflow", "--help"], capture_output=True, text=True, check=True
    )
    assert all(name in run.stdout for name in [*STAGES, *AROUND])
