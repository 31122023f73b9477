"""`saeflow evaluate`: splice SAEs into their source model and score them on held-out text."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from saeflow import console
from saeflow.errors import BadInputError
from saeflow.evaluate.batches import Setting, check_text
from saeflow.evaluate.checks import check_all, check_recorded
from saeflow.evaluate.conclude import Asked, conclude
from saeflow.evaluate.config import EvaluateConfig
from saeflow.evaluate.latents.choice import choose_latents
from saeflow.evaluate.latents.decoder import with_decoder
from saeflow.evaluate.latents.files import write_latents
from saeflow.evaluate.latents.texts import token_texts, used_tokens
from saeflow.evaluate.measure import Subject, begin, measure
from saeflow.evaluate.opening import OpenedSAE, open_saes
from saeflow.evaluate.origin import origin_of
from saeflow.evaluate.outputs import (
    LATENTS,
    SCORES,
    Outputs,
    earlier_result,
    make_folders,
    outputs_of,
)
from saeflow.evaluate.pages import check_page, is_stale, write_page
from saeflow.evaluate.reference import carried_means, of_store, sample_rows
from saeflow.evaluate.report.page import page_kind
from saeflow.evaluate.resolved import Found, resolved
from saeflow.evaluate.result import EvaluationResult
from saeflow.evaluate.source import (
    find_model_of,
    hook_points_of,
    model_spec_of,
    source_model_of,
)
from saeflow.evaluate.text import HeldOutText, held_out_text
from saeflow.evaluate.text_source import check_place, find_text
from saeflow.files import write_json
from saeflow.harvest.models import SourceModel
from saeflow.harvest.store import Store, open_store, read_attributes
from saeflow.location import locate
from saeflow.train.folder import find_saes


def evaluate_sae(config: EvaluateConfig, *, overwrite: bool = False) -> EvaluationResult:
    """Score one SAE, as `evaluate_saes` does.

    Raises:
        BadInputError: as `evaluate_saes`; or the path holds several SAEs.
    """
    found = find_saes(config.sae)
    if len(found) > 1:
        raise BadInputError(
            f"run {config.sae} holds {len(found)} SAEs ({', '.join(one.name for one in found)}): "
            "choose one of its sae/ folders, or call evaluate_saes"
        )
    (result,) = evaluate_saes(config, overwrite=overwrite).values()
    return result


def evaluate_saes(
    config: EvaluateConfig, *, overwrite: bool = False
) -> Mapping[str, EvaluationResult]:
    """Score the SAEs at a path, an SAE folder or a run, in one go.

    Writes scores.json and latents.safetensors beside each SAE, and report.html. Run again
    with the same options on the same SAEs, it returns what it found.

    Args:
        config: the options.
        overwrite: replace scores that were made with other options.

    Returns:
        The results by the SAEs' names.

    Raises:
        BadInputError: an SAE, the model, the text or an option can't be used.
        SaeflowError: the splice can't be trusted in this model.
    """
    opened = open_saes(config.sae)
    outputs = outputs_of(config.sae, config.out, opened)
    if config.report:
        check_page(outputs.report, "evaluate", overwrite=overwrite)
    found = Found(find_model_of(config, opened), find_text(config, origin_of(opened[0].sae)))
    options = {one.name: resolved(config, one, found) for one in opened}
    results = {} if overwrite else _earlier(config, opened, options, outputs)
    missing = [one for one in opened if one.name not in results]
    if missing:
        results |= _evaluate(config, missing, found, options, outputs)
    in_order = {one.name: results[one.name] for one in opened}
    if not config.report and overwrite and page_kind(outputs.report) == "evaluate":
        outputs.report.unlink()  # a page of earlier scores must not outlive them
    if config.report and is_stale(outputs, in_order):
        write_page(in_order, outputs, {one.name: one.folder for one in opened})
        console.say(f"all of it to look at: {outputs.report}")
    return in_order


def plan_evaluation(config: EvaluateConfig) -> dict[str, Any]:
    """What an evaluation will run, for `--dry-run`; loads the SAEs, not the model.

    Raises:
        BadInputError: the SAEs can't be used, do not say their model, or lack a latent that
            is to be looked at; or an option can't be used.
    """
    check_place(config)
    opened = open_saes(config.sae)
    for one in opened:
        hook_points_of(one)
        choose_latents(config.latents, one.sae.d_sae)
    targets = {tuple(one.sae.target_hook_points) for one in opened}
    ablations = 3 if config.resample else 2
    return {
        "model": model_spec_of(config, opened).name,
        "tokens_at_most": config.tokens,
        "clean_passes": 1,
        "passes_from_the_hook_point_on": len(opened) + ablations * len(targets),
        "saes": [
            {
                "folder": str(one.folder),
                "d_in": one.sae.d_in,
                "d_sae": one.sae.d_sae,
                "reads": list(one.sae.hook_points),
                "replaces": list(one.sae.target_hook_points),
            }
            for one in opened
        ],
    }


def _earlier(
    config: EvaluateConfig,
    saes: Sequence[OpenedSAE],
    options: Mapping[str, Mapping[str, Any]],
    outputs: Outputs,
) -> dict[str, EvaluationResult]:
    """What was found before, of the SAEs that were evaluated."""
    results = {}
    for one in saes:
        folder = outputs.saes[one.name]
        result = earlier_result(folder, one.name, options[one.name])
        if result is not None:
            check_recorded(config, one, result.mismatches)
            results[one.name] = result
    for name in results:
        console.say(f"{outputs.saes[name] / SCORES} is complete already")
    return results


def _evaluate(
    config: EvaluateConfig,
    saes: Sequence[OpenedSAE],
    found: Found,
    options: Mapping[str, Mapping[str, Any]],
    outputs: Outputs,
) -> dict[str, EvaluationResult]:
    looked_at = [choose_latents(config.latents, one.sae.d_sae) for one in saes]
    source = source_model_of(config, saes, found.model)
    model = source.model
    text = held_out_text(found.text, config, origin_of(saes[0].sae), model)
    used = replace(source.used, text=text)
    mismatches = {one.name: check_all(config, one, used) for one in saes}
    for one in saes:
        one.sae.to(model.device)
    setting = _setting(config, saes, model, text)
    check_text(setting)
    make_folders(outputs)
    measured = begin(setting, saes, looked_at)
    measure(setting, measured)
    results, failed = {}, []
    for subject in measured.subjects:
        name = subject.opened.name
        asked = Asked(options[name], mismatches[name], config.seed)
        try:
            results[name] = conclude(setting, measured, subject, asked)
        except BadInputError as error:  # the others have their results all the same
            failed.append(error)
        else:
            _write(outputs, subject, results[name], model)
    if failed:
        if results and page_kind(outputs.report) is not None:
            console.warn(f"{outputs.report} shows what was there before, not the new scores")
        raise failed[0]
    return results


def _setting(
    config: EvaluateConfig, saes: Sequence[OpenedSAE], model: SourceModel, text: HeldOutText
) -> Setting:
    targets = list(dict.fromkeys(name for one in saes for name in one.sae.target_hook_points))
    references = of_store(_store_of(saes), targets, model.device)
    missing = [name for name in targets if name not in references]
    resampler = None
    if missing or config.resample:
        sampled = sample_rows(model, text, targets, config.batch_size)
        means = carried_means(saes)
        references |= {name: sampled.reference(name, means.get(name)) for name in missing}
        resampler = sampled.resampler(config.seed) if config.resample else None
    return Setting(
        model, text, config.replace, config.score, config.batch_size, references, resampler
    )


def _store_of(saes: Sequence[OpenedSAE]) -> Store | None:
    """The store that SAEs were trained on, where it is at hand and has not changed."""
    origin = origin_of(saes[0].sae)
    place = None if origin.store_path is None else locate(origin.store_path)
    if place is None or (read_attributes(place) or {}).get("state") != "complete":
        return None
    store = open_store(place)
    return store if store.identity == origin.store_identity else None


def _write(
    outputs: Outputs, subject: Subject, result: EvaluationResult, model: SourceModel
) -> None:
    """One SAE's files; scores.json, which says that it is done, goes first and comes last."""
    folder = outputs.saes[subject.opened.name]
    for name in (SCORES, LATENTS):
        (folder / name).unlink(missing_ok=True)
    if subject.latents is not None:
        latents = with_decoder(subject.latents.result(), subject.opened.sae, model)
        ids = used_tokens(latents).tolist()
        texts = dict(zip(ids, token_texts(model.tokenizer, ids), strict=True))
        write_latents(latents, texts, folder / LATENTS)
    write_json(folder / SCORES, result.to_json())
