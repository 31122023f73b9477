"""The command line: flags and files into one config a stage, one function call, one result.

No logic lives here, and no stage is imported until its command runs: torch and
transformer-lens take seconds, and `--help` must not.
"""

import errno
import signal
import sys
from pathlib import Path
from types import FrameType
from typing import Annotated, Any

import typer

from saeflow.config import load_config, to_plain, to_toml
from saeflow.errors import SaeflowError
from saeflow.evaluate.config import EvaluateConfig
from saeflow.harvest.config import HarvestConfig
from saeflow.options import ConfigFile, DryRun, Json, Overwrite, with_options_of
from saeflow.train.config import TrainConfig

app = typer.Typer(
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    help="Turn a language model's activations into sparse autoencoders that can be trusted.",
)


def main() -> None:
    """Run the command line; every expected failure is one line on stderr and an exit code."""
    signal.signal(signal.SIGTERM, _terminated)
    try:
        app()
    except SaeflowError as error:
        sys.exit(_fail(str(error), error.exit_code))
    except OSError as error:
        if error.errno != errno.ENOSPC:
            raise
        sys.exit(
            _fail(f"no space left on the disk of {error.filename}: make room, then run again", 1)
        )


@app.command()
@with_options_of(HarvestConfig)
def harvest(
    *,
    config: ConfigFile = None,
    dry_run: DryRun = False,
    json: Json = False,
    overwrite: Overwrite = False,
    **flags: Any,
) -> None:
    """Run a source model over text and store its activations.

    Run again with the same options, it continues where it was stopped.
    """
    options = load_config(HarvestConfig, config, flags)
    from saeflow import console
    from saeflow.harvest.run import harvest_activations, plan_harvest

    if dry_run:
        cost = plan_harvest(options).to_json()
        return _show_plan(options, cost, as_json=json)
    result = harvest_activations(options, overwrite=overwrite).to_json()
    if json:
        return console.print_json(result)
    done = "is complete already" if result["already_complete"] else "is complete"
    print(
        f"store {result['store']} {done}: {result['rows']:,} rows and "
        f"{result['held_out_rows']:,} held-out rows of {', '.join(result['hook_points'])}, "
        f"{result['bytes']:,} bytes"
    )
    return None


@app.command()
@with_options_of(TrainConfig, argument="store")
def train(
    *,
    config: ConfigFile = None,
    dry_run: DryRun = False,
    json: Json = False,
    overwrite: Overwrite = False,
    **flags: Any,
) -> None:
    """Train a sparse autoencoder on a store; the source model is not loaded."""
    options = load_config(TrainConfig, config, flags)
    from saeflow import console
    from saeflow.train.run import plan_training, train_sae

    if dry_run:
        return _show_plan(options, plan_training(options).to_json(), as_json=json)
    result = train_sae(options, overwrite=overwrite).to_json()
    if json:
        return console.print_json(result)
    done = "was trained already" if result["already_complete"] else "is trained"
    print(f"SAE {result['sae']} {done}: {result['rows']:,} rows in {result['steps']:,} steps")
    return None


@app.command()
@with_options_of(EvaluateConfig, argument="sae")
def evaluate(
    *,
    config: ConfigFile = None,
    dry_run: DryRun = False,
    json: Json = False,
    overwrite: Overwrite = False,
    **flags: Any,
) -> None:
    """Splice an SAE's reconstructions into its source model and score them on held-out text."""
    options = load_config(EvaluateConfig, config, flags)
    from saeflow import console
    from saeflow.evaluate.run import evaluate_sae, plan_evaluation
    from saeflow.evaluate.table import print_table

    if dry_run:
        return _show_plan(options, plan_evaluation(options), as_json=json)
    result = evaluate_sae(options, overwrite=overwrite)
    if json:
        return console.print_json(result.to_json())
    print_table({result.name: result})
    print(result.verdict)
    return None


@app.command()
def quickstart(
    *,
    out: Annotated[Path, typer.Option(help="Folder for the store, the run and the scores.")] = Path(
        "saeflow-quickstart"
    ),
    json: Json = False,
    overwrite: Overwrite = False,
) -> None:
    """Harvest, train and evaluate on the built-in model and text: no download, a few minutes."""
    from saeflow import console
    from saeflow.evaluate.table import print_table
    from saeflow.quickstart import run_quickstart

    results = run_quickstart(out, overwrite=overwrite)
    if json:
        return console.print_json({name: result.to_json() for name, result in results.items()})
    print_table(results)
    print(results["trained"].verdict)
    return None


@app.callback(invoke_without_command=True)
def _options(
    *,
    version: Annotated[bool, typer.Option("--version", help="Print the version and stop.")] = False,
) -> None:
    if version:
        from importlib.metadata import version as version_of

        print(version_of("saeflow"))
        raise typer.Exit


def _show_plan(options: Any, cost: dict[str, Any], *, as_json: bool) -> None:
    from saeflow import console

    if as_json:
        return console.print_json({"options": to_plain(options), "cost": cost})
    print(to_toml(options))
    for name, value in cost.items():
        print(f"# {name}: {f'{value:,}' if isinstance(value, int) else value}")
    return None


def _fail(message: str, code: int) -> int:
    print(f"saeflow: {' '.join(message.split())}", file=sys.stderr)
    return code


def _terminated(signum: int, frame: FrameType | None) -> None:  # noqa: ARG001  # signal's own
    """SIGTERM ends a stage like any error does: files are whole, the lock is given back."""
    sys.exit(128 + signum)
