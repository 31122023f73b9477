"""What each command must not load: the language model's libraries, or torch at all."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def modules_after(code: str) -> set[str]:
    """The top-level modules that a fresh Python has loaded after some code."""
    report = "import json, sys; print(json.dumps(sorted({m.split('.')[0] for m in sys.modules})))"
    run = subprocess.run(
        [sys.executable, "-c", f"{code}\n{report}"], capture_output=True, text=True, check=False
    )
    assert run.returncode == 0, run.stderr
    return set(json.loads(run.stdout.splitlines()[-1]))


def test_training_does_not_load_the_language_models_libraries(
    tiny_store: Path, tmp_path: Path
) -> None:
    config = f"store={str(tiny_store)!r}, out={str(tmp_path / 'run')!r}"
    loaded = modules_after(
        "from pathlib import Path\nimport saeflow\n"
        "from saeflow.config import load_config\n"
        f"options = dict({config}, hook=('blocks.0.hook_resid_post',), d_sae=40, tokens=2048)\n"
        "saeflow.train_sae(load_config(saeflow.TrainConfig, None, options))"
    )
    assert (tmp_path / "run" / "sae").is_dir()
    assert {"torch", "zarr", "safetensors"} <= loaded
    assert not {"transformers", "transformer_lens", "datasets", "tokenizers"} & loaded


HEAVY = {"torch", "numpy", "zarr", "transformers", "transformer_lens", "datasets", "torchmetrics"}


def test_importing_saeflow_loads_nothing_heavy() -> None:
    assert not HEAVY & modules_after("import saeflow; saeflow.__all__; saeflow.TrainConfig")


@pytest.mark.parametrize(
    "arguments",
    [["--help"], ["train", "--help"], ["harvest", "--help"], ["evaluate", "--help"], ["--version"]],
    ids=" ".join,
)
def test_help_loads_nothing_heavy(arguments: list[str]) -> None:
    code = (
        "import sys, contextlib\nfrom saeflow.cli import main\n"
        f"sys.argv = ['saeflow', *{arguments!r}]\n"
        "with contextlib.suppress(SystemExit): main()"
    )
    assert not HEAVY & modules_after(code)
