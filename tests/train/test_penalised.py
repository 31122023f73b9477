"""What goes with a sparsity penalty: short free decoder rows at first, and higher rates."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from saeflow.errors import BadInputError
from saeflow.harvest.store import open_store
from saeflow.train.architectures import MAKERS
from saeflow.train.begin import begin_trainer
from saeflow.train.config import TrainConfig
from saeflow.train.initial import initial_parameters
from saeflow.train.normalisation import Normalisation
from saeflow.train.optimizer import UpdateSettings
from saeflow.train.penalised import (
    bias_rate,
    decoder_norm,
    decoder_scale,
    rate_factor,
    sparsity_warm_up,
)
from saeflow.train.plan import make_plan
from saeflow.train.relu import ReLU
from saeflow.train.resample import Resampling
from saeflow.train.run import train_sae
from saeflow.train.schedule import Schedule, default_rate
from saeflow.train.seeds.activation_resampler import ActivationResampler
from saeflow.train.trainer import Trainer

Make = Callable[..., TrainConfig]
Rows = Callable[..., Tensor]


def options(**given: Any) -> TrainConfig:
    return TrainConfig(store=Path(), out=Path(), d_sae=64, **given)


CHOSEN: list[tuple[dict[str, Any], tuple[str, float, float]]] = [
    ({"arch": "topk"}, ("unit", 1.0, 1.0)),
    ({"arch": "jumprelu"}, ("free", 0.1, 2.0)),
    ({"arch": "jumprelu", "sparsity": "tanh"}, ("unit", 1.0, 1.0)),
    ({"arch": "jumprelu", "target_l0": 8.0}, ("unit", 1.0, 1.0)),
    ({"arch": "matryoshka"}, ("unit", 1.0, 1.0)),
    ({"arch": "topk", "decoder_norm": "free"}, ("free", 0.1, 1.0)),
    ({"arch": "relu"}, ("free", 0.1, 2.0)),
    ({"arch": "gated"}, ("free", 0.1, 2.0)),
    ({"arch": "matryoshka", "base": "relu"}, ("free", 0.1, 2.0)),
    ({"arch": "p-anneal"}, ("free", 0.1, 1.0)),
    ({"arch": "relu", "decoder_norm": "unit"}, ("unit", 1.0, 1.0)),
    ({"arch": "relu", "decoder_scale": 0.5}, ("free", 0.5, 2.0)),
    ({"arch": "relu", "init_from": Path("sae")}, ("free", 1.0, 2.0)),
]


@pytest.mark.parametrize(("given", "chosen"), CHOSEN)
def test_what_is_chosen(given: dict[str, Any], chosen: tuple[str, float, float]) -> None:
    config = options(**given)
    assert (decoder_norm(config), decoder_scale(config), rate_factor(config)) == chosen


@pytest.mark.parametrize(
    ("given", "share"),
    [
        ({"arch": "relu"}, 0.05),
        ({"arch": "relu", "warm_up": 0.1}, 0.1),
        ({"arch": "jumprelu"}, 1.0),
        ({"arch": "jumprelu", "target_l0": 8.0}, 0.05),
        ({"arch": "jumprelu", "sparsity_warm_up": 0.3}, 0.3),
    ],
)
def test_how_long_the_penalty_rises(given: dict[str, Any], share: float) -> None:
    assert sparsity_warm_up(options(**given)) == share


@pytest.mark.parametrize(
    ("given", "rate"),
    [
        ({"arch": "relu"}, 8.0),
        ({"arch": "gated"}, 8.0),
        ({"arch": "p-anneal"}, 8.0),
        ({"arch": "matryoshka", "base": "relu"}, 1.0),
        ({"arch": "relu", "decoder_norm": "unit"}, 1.0),
        ({"arch": "jumprelu"}, 1.0),
        ({"arch": "topk"}, 1.0),
        ({"arch": "topk", "bias_rate": 3.0}, 3.0),
        ({"arch": "relu", "bias_rate": 1.0}, 1.0),
    ],
)
def test_biases_keep_up_with_rows_of_width_64(given: dict[str, Any], rate: float) -> None:
    assert bias_rate(options(**given), 64) == rate


@pytest.mark.parametrize("rate", [0.0, -1.0, float("inf")])
def test_a_rate_of_biases_is_a_positive_number(rate: float) -> None:
    with pytest.raises(BadInputError, match="--bias-rate"):
        options(bias_rate=rate)


@pytest.mark.parametrize("scale", [None, 0.5])
def test_thresholds_begin_where_short_encoder_rows_reach(scale: float | None) -> None:
    config = options(arch="jumprelu", decoder_scale=scale)
    architecture = MAKERS["jumprelu"](config, 16, 64)
    expected = torch.full((64,), 0.1 if scale is None else scale)
    torch.testing.assert_close(architecture.initial(64)["threshold"], expected)


@pytest.mark.parametrize(
    "given",
    [{"decoder_scale": 0.5}, {"arch": "relu", "decoder_norm": "unit", "decoder_scale": 1.0}],
)
def test_unit_rows_have_no_other_length(given: dict[str, Any]) -> None:
    with pytest.raises(BadInputError, match="--decoder-scale is for --decoder-norm free"):
        options(**given)


@pytest.mark.parametrize("scale", [None, 0.5])
def test_an_sae_begins_as_was_chosen(train_config: Make, scale: float | None) -> None:
    """And the encoder with it, since it is the decoder's transpose."""
    config = train_config(arch="relu", k=None, decoder_scale=scale)
    store = open_store(config.store)
    (plan,) = make_plan(config, store).saes
    trainer = begin_trainer(config, plan, store, torch.device("cpu"))
    p = trainer.parameters
    torch.testing.assert_close(p.W_dec.norm(dim=1), torch.full((48,), scale or 0.1))
    assert torch.equal(p.encoder, p.W_dec)
    assert trainer.settings.decoder == "free"
    assert trainer.schedule.peak == 2 * default_rate(48)
    assert trainer.settings.bias_rate == 32**0.5
    (given,) = make_plan(train_config(arch="relu", k=None, lr=0.01), store).saes
    assert given.schedule.peak == 0.01


def test_a_run_says_what_was_chosen(train_config: Make) -> None:
    """Below the options, which are as they were given, and for each SAE."""
    config = train_config(k=None, sweep=("arch=relu,topk",))
    train_sae(config)
    text = (config.out / "config.toml").read_text()
    assert "decoder_norm" not in text.partition("#")[0]
    lines = [line for line in text.splitlines() if line.startswith("# chosen for ")]
    told = {line.split()[3].rstrip(":"): json.loads(line.partition(": ")[2]) for line in lines}
    names = [f"blocks.0.hook_resid_post-{arch}-48" for arch in ("relu", "topk")]
    assert [name.partition("-arch=")[0] for name in told] == names
    relu, topk = told.values()
    assert (relu["decoder_norm"], relu["decoder_scale"]) == ("free", 0.1)
    assert relu["architecture"]["l1"] == pytest.approx(0.1 * 32**0.5)
    assert (relu["bias_rate"], topk["bias_rate"]) == (32**0.5, 1.0)
    assert (topk["decoder_norm"], topk["architecture"]["k"]) == ("unit", 32)
    assert train_sae(config).already_complete


def test_resampled_rows_are_as_long_as_the_others(
    sparse_rows: Rows, normalisation_of: Callable[[Tensor], Normalisation]
) -> None:
    resampler = ActivationResampler(64, None, 4 * 256, 1, 2 * 256, 2 * 256)
    settings = UpdateSettings(decoder="free", resettable=True)
    units = normalisation_of(sparse_rows(5000))
    parameters = initial_parameters(units, ReLU(0.1), 64, 0, decoder_scale=0.1)
    with torch.no_grad():
        parameters.b_enc[:9] = -1e3
    schedule = Schedule(1e-3, n_steps=20, warm_up=0, decay=0)
    resampling = Resampling(resampler, {})
    trainer = Trainer(ReLU(0.1), parameters, units, schedule, 10_000, settings, resampling)
    for step in range(4):
        trainer.step((sparse_rows(256, seed=step),), step)
    norms = trainer.parameters.W_dec.norm(dim=1)
    assert parameters.b_enc[:9].tolist() == [0.0] * 9
    torch.testing.assert_close(norms[:9], norms[9:].mean().expand(9))
