"""Options given in Python: brought into their types, or refused, like those of a file."""

from pathlib import Path
from typing import Any

import pytest

from saeflow import EvaluateConfig, HarvestConfig, ImportConfig, TrainConfig
from saeflow.errors import BadInputError

pytestmark = pytest.mark.usefixtures("unchecked")  # a user's types are not checked at each call


def train(**given: Any) -> TrainConfig:
    return TrainConfig(**{"store": "store", "out": "run", "d_sae": 8, **given})


def test_folders_may_be_text_and_one_value_stands_for_several() -> None:
    config = train(hook="blocks.0.hook_resid_post", init_from="sae", sweep="k=2,4")
    assert (config.out, config.init_from) == (Path("run"), Path("sae"))
    assert (config.hook, config.sweep) == (("blocks.0.hook_resid_post",), ("k=2,4",))
    evaluation: Any = {"sae": "run", "out": "there", "allow_mismatch": "model"}
    assert EvaluateConfig(**evaluation).out == Path("there")
    assert EvaluateConfig(**evaluation).allow_mismatch == ("model",)
    harvest: Any = {"model": "m", "dataset": "d", "hook": "h", "out": "store"}
    assert HarvestConfig(**harvest).hook == ("h",)
    imported: Any = {"source": "a.npy", "out": "store", "model": "m", "hook": ("h",)}
    assert ImportConfig(**imported).out == Path("store")


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ({"precision": "bf16"}, "--precision: Input should be 'float32' or 'bfloat16', not 'bf16'"),
        ({"optimizer": "sgd"}, "--optimizer: Input should be 'adam', 'muon' or 'schedule-free'"),
        ({"decoder_norm": "units"}, "--decoder-norm: Input should be 'unit' or 'free'"),
        ({"schedule": "step"}, "--schedule: Input should be"),
        ({"b_dec": "median"}, "--b-dec: Input should be"),
        ({"arch": "vae"}, "--arch: Input should be"),
        ({"arch": "matryoshka", "base": "vae"}, "--base: Input should be"),
        ({"log_to": ("csv",)}, "--log-to: Input should be"),
        ({"k": "many"}, "--k: Input should be a valid integer"),
        ({"tokens": True}, "--tokens is True: give a value"),
        ({"seed": 2**32}, "--seed is 4294967296: it is from 0 to 4294967295"),
        ({"order_seed": -1}, "--order-seed is -1: it is from 0 to 4294967295"),
    ],
)
def test_what_is_no_choice_is_refused(given: dict[str, Any], told: str) -> None:
    with pytest.raises(BadInputError) as refused:
        train(**given)
    assert told in str(refused.value)


def test_an_evaluation_is_not_begun_with_a_seed_that_no_generator_takes() -> None:
    with pytest.raises(BadInputError, match="--seed is -1"):
        EvaluateConfig(sae=Path("sae"), seed=-1)
