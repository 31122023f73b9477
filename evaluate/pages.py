"""The page of an evaluation: what its files hold, put together."""

from collections.abc import Mapping
from pathlib import Path

from saeflow import console
from saeflow.errors import BadInputError
from saeflow.evaluate.latents.files import read_latents, read_texts
from saeflow.evaluate.outputs import LATENTS, REPORT, Outputs
from saeflow.evaluate.report.page import PageKind, page_kind, shows, write_report
from saeflow.evaluate.report.training import training_of
from saeflow.evaluate.result import EvaluationResult


def check_page(path: Path, kind: PageKind, *, overwrite: bool) -> None:
    """See that a page may be written there.

    Args:
        path: of the page.
        kind: of which command it will be.
        overwrite: also over a file that is no page of this command.

    Raises:
        BadInputError: there is such a file, or a folder.
    """
    if path.is_dir():
        raise BadInputError(f"{path} is a folder: name a file")
    if overwrite or not path.exists() or (there := page_kind(path)) == kind:
        return
    what = "no page of saeflow's" if there is None else f"a page of saeflow {there}"
    raise BadInputError(f"{path} is {what}: name another --out, or replace it with --overwrite")


def is_stale(outputs: Outputs, results: Mapping[str, EvaluationResult]) -> bool:
    """Whether there is no page of an evaluation, or one of other results than these."""
    found = [result.to_json() for result in results.values()]
    return page_kind(outputs.report) != "evaluate" or not shows(outputs.report, found)


def write_page(
    results: Mapping[str, EvaluationResult], outputs: Outputs, saes: Mapping[str, Path]
) -> None:
    """Write report.html of results whose other files are written.

    Args:
        results: by the SAE's name.
        outputs: where they are.
        saes: the SAEs' folders, by name.

    Raises:
        BadInputError: a file beside them is damaged.
    """
    files = {name: outputs.saes[name] / LATENTS for name in results}
    for name, file in files.items():
        if not file.is_file() and results[name].options["latents"] != "none":
            console.warn(
                f"{file} is gone, and {REPORT} will show no latents: "
                "evaluate again with --overwrite to have them"
            )
    looked_at = {name: file for name, file in files.items() if file.is_file()}
    models = ", ".join(dict.fromkeys(result.model for result in results.values()))
    write_report(
        outputs.report,
        [result.to_json() for result in results.values()],
        title=next(iter(results)) if len(results) == 1 else f"{len(results)} SAEs of {models}",
        latents={name: read_latents(file) for name, file in looked_at.items()},
        token_texts={name: read_texts(file) for name, file in looked_at.items()},
        training=training_of({name: saes[name] for name in results}),
    )
