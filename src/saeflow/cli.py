"""The command line: flags and files into one config a stage, one function call, one result.

No logic lives here, and no stage is imported until its command runs: torch and
transformer-lens take seconds, and `--help` must not.
"""

import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from types import FrameType
from typing import Annotated, Any

import typer

from saeflow import failures
from saeflow.config import load_config, to_plain, to_toml
from saeflow.errors import BadInputError, SaeflowError
from saeflow.evaluate.config import EvaluateConfig
from saeflow.harvest.config import HarvestConfig
from saeflow.harvest.importing.config import ImportConfig
from saeflow.options import ConfigFile, DryRun, Json, ManyValues, Overwrite, with_options_of
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
        code = app(standalone_mode=False)
        failures.flush_stdout()
    except SaeflowError as error:
        code = _fail(str(error), error.exit_code)
    except failures.USAGE_ERROR as error:
        code = _misused(error)
    except typer.Abort:
        code = _fail("stopped", 1)
    except BrokenPipeError:  # whoever read stdout has enough
        failures.settle_stdout()
        code = 1
    except OSError as error:
        found = failures.told(error)
        if found is None:
            raise
        failures.settle_stdout()
        code = _fail(*found)
    if code:
        sys.exit(code)


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
    if not result["complete"]:
        console.show(
            f"worker {result['worker']} has done its {result['shards']:,} shards of store "
            f"{result['store']}; {result['shards_missing']:,} of {result['shards_total']:,} "
            "are still other workers'"
        )
        return None
    done = "is complete already" if result["already_complete"] else "is complete"
    console.show(
        f"store {result['store']} {done}: {result['rows']:,} rows and "
        f"{result['held_out_rows']:,} held-out rows of {', '.join(result['hook_points'])}, "
        f"{result['bytes']:,} bytes"
    )
    return None


@app.command("import")
@with_options_of(ImportConfig, argument="source")
def import_(
    *,
    config: ConfigFile = None,
    dry_run: DryRun = False,
    json: Json = False,
    overwrite: Overwrite = False,
    **flags: Any,
) -> None:
    """Put activations that you already have into a store.

    Run again with the same options, it continues where it was stopped.
    """
    options = load_config(ImportConfig, config, flags, argument="source")
    from saeflow import console
    from saeflow.harvest.importing.run import import_activations, plan_import

    if dry_run:
        return _show_plan(options, plan_import(options).to_json(), as_json=json)
    result = import_activations(options, overwrite=overwrite).to_json()
    if json:
        return console.print_json(result)
    done = "is complete already" if result["already_complete"] else "is complete"
    masked = f" ({result['masked_rows']:,} masked ones left out)" if result["masked_rows"] else ""
    console.show(
        f"store {result['store']} {done}: {result['rows']:,} rows and "
        f"{result['held_out_rows']:,} held-out rows of {', '.join(result['hook_points'])}{masked}, "
        f"{result['bytes']:,} bytes"
    )
    return None


@app.command(cls=ManyValues)
@with_options_of(TrainConfig, argument="store")
def train(
    *,
    config: ConfigFile = None,
    dry_run: DryRun = False,
    json: Json = False,
    overwrite: Overwrite = False,
    **flags: Any,
) -> None:
    """Train sparse autoencoders on a store; the source model is not loaded.

    Run again with the same options, it continues where it was stopped.
    """
    options = load_config(TrainConfig, config, flags, argument="store")
    from saeflow import console
    from saeflow.train.run import plan_training, train_sae

    if dry_run:
        return _show_plan(options, plan_training(options).to_json(), as_json=json)
    result = train_sae(options, overwrite=overwrite).to_json()
    if json:
        return console.print_json(result)
    done = "was trained already" if result["already_complete"] else "is trained"
    for sae in result["saes"]:
        console.show(f"SAE {sae} {done}: {result['rows']:,} rows in {result['steps']:,} steps")
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
    """Splice SAEs' reconstructions into their source model and score them on held-out text.

    Of a run all its SAEs are evaluated, in one go. Run again with the same options, it shows
    what it found.
    """
    options = load_config(EvaluateConfig, config, flags, argument="sae")
    from saeflow import console
    from saeflow.evaluate.run import evaluate_saes, plan_evaluation
    from saeflow.evaluate.table import print_table

    if dry_run:
        return _show_plan(options, plan_evaluation(options), as_json=json)
    results = evaluate_saes(options, overwrite=overwrite)
    if json:
        found = [result.to_json() for result in results.values()]
        return console.print_json(found[0] if len(found) == 1 else {"saes": found})
    with console.to_stdout():
        print_table(results)
    for result in results.values():
        console.show(result.verdict)
    return None


@app.command()
def compare(
    results: Annotated[
        list[Path],
        typer.Argument(
            help="Files scores.json, or folders that hold them: SAEs, runs.", show_default=False
        ),
    ],
    *,
    out: Annotated[
        Path, typer.Option(help="File of the page with all of them (default comparison.html).")
    ] = Path("comparison.html"),
    json: Json = False,
    overwrite: Overwrite = False,
) -> None:
    """Put the results of evaluations side by side, in one table and one page."""
    from saeflow import console
    from saeflow.evaluate.compare import compare_results, write_comparison
    from saeflow.evaluate.compare_table import print_comparison

    found = compare_results(results)
    write_comparison(found, out, overwrite=overwrite)
    if json:
        return console.print_json(found.to_json())
    with console.to_stdout():
        print_comparison(found)
    return None


@app.command()
def verify(
    store: Annotated[str, typer.Argument(help="Folder of a store.", show_default=False)],
    *,
    repair: Annotated[
        bool, typer.Option("--repair", help="Make again what is damaged, from the source.")
    ] = False,
    model: Annotated[
        str | None, typer.Option(help="Where the source model is now, if it was moved.")
    ] = None,
    dataset: Annotated[
        str | None, typer.Option(help="Where the dataset is now, if it was moved.")
    ] = None,
    trust_remote_code: Annotated[
        bool, typer.Option("--trust-remote-code", help="Run code that comes with the model.")
    ] = False,
    json: Json = False,
) -> None:
    """Read every byte of a store and name what is not as it was written."""
    from saeflow import console
    from saeflow.harvest.again import Source
    from saeflow.harvest.repair import repair_store
    from saeflow.harvest.verify import verify_store

    if not repair and (model or dataset or trust_remote_code):
        raise BadInputError("--model, --dataset and --trust-remote-code are for --repair: add that")
    found = left = verify_store(store)
    repaired: tuple[str, ...] = ()
    if not json:
        for problem in found.problems:
            console.show(problem)
    if repair and not found.whole:
        source = Source(model=model, dataset=dataset, trust_remote_code=trust_remote_code)
        repaired = repair_store(found, source)
        left = verify_store(store) if repaired else found
    if json:
        console.print_json({**left.to_json(), "repaired": list(repaired)})
    elif left.whole:
        console.show(left.summary(len(repaired)))
    if not left.whole:
        console.say(left.summary(len(repaired)))
        raise typer.Exit(1)


@app.command()
def info(
    store: Annotated[str, typer.Argument(help="Folder or URL of a store.", show_default=False)],
    *,
    json: Json = False,
) -> None:
    """Say what a store holds, where it is from, and how well its rows are mixed."""
    from saeflow import console
    from saeflow.train.info import store_info
    from saeflow.train.info_table import print_info

    found = store_info(store)
    if json:
        return console.print_json(found.to_json())
    with console.to_stdout():
        print_info(found)
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
    with console.to_stdout():
        print_table(results)
    console.show(results["trained"].verdict)
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
    console.show(to_toml(options))
    for name, value in _flat(cost):
        console.show(f"# {name}: {f'{value:,}' if type(value) is int else value}")
    return None


def _flat(tree: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """A plan's figures, each under the path of its keys."""
    for key, value in tree.items():
        if isinstance(value, dict):
            yield from _flat(value, f"{prefix}{key}.")
        elif isinstance(value, list) and value and isinstance(value[0], dict):
            yield from _flat({str(i): one for i, one in enumerate(value)}, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def _fail(message: str, code: int) -> int:
    print(f"saeflow: {' '.join(message.split())}", file=sys.stderr)
    return code


def _misused(error: Any) -> int:
    """Tell what was typed wrong; of a command without a word, its help."""
    if type(error).__name__ == "NoArgsIsHelpError":
        error.show()
        return int(error.exit_code)
    return _fail(failures.told_usage(error), error.exit_code)


def _terminated(signum: int, frame: FrameType | None) -> None:  # noqa: ARG001  # signal's own
    """SIGTERM ends a stage like any error does: files are whole, the lock is given back."""
    sys.exit(128 + signum)
