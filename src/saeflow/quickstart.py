"""`saeflow quickstart`: all three stages on the built-in model and text."""

from collections.abc import Mapping
from pathlib import Path

from saeflow import console
from saeflow.evaluate.config import EvaluateConfig
from saeflow.evaluate.result import EvaluationResult
from saeflow.evaluate.run import evaluate_sae
from saeflow.harvest.builtin import NAME
from saeflow.harvest.config import HarvestConfig
from saeflow.harvest.run import harvest_activations
from saeflow.train.config import TrainConfig
from saeflow.train.run import train_sae

HOOK_POINT = "blocks.2.hook_resid_post"


def run_quickstart(out: Path, *, overwrite: bool = False) -> Mapping[str, EvaluationResult]:
    """Harvest, train and evaluate, and score the same SAE untrained beside it.

    Args:
        out: gets `store/`, `run/` and `untrained/`.
        overwrite: throw away what an earlier quickstart left there.

    Returns:
        The scores of the `trained` and of the `untrained` SAE.
    """
    console.say("1/3 harvest: the built-in text through the built-in model")
    harvest = HarvestConfig(
        model=NAME, dataset=NAME, hook=(HOOK_POINT,), out=out / "store", tokens=400_000
    )
    harvest_activations(harvest, overwrite=overwrite)
    console.say("2/3 train: a TopK SAE on the stored rows")
    results = {}
    for name, folder, tokens in (("trained", "run", 1_500_000), ("untrained", "untrained", 0)):
        train = TrainConfig(
            store=harvest.out, out=out / folder, d_sae=1024, k=16, tokens=tokens, encoder_scale=0.3
        )  # a full transpose reconstructs a good deal untrained, and would be no control
        trained = train_sae(train, overwrite=overwrite)
        console.say(f"3/3 evaluate: the {name} SAE, on held-out documents")
        results[name] = evaluate_sae(EvaluateConfig(sae=trained.folder), overwrite=overwrite)
    return results
