"""The units of training: every hook point has its own, and none are left in what is saved."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from saeflow.errors import SaeflowError
from saeflow.train.normalisation import HEAVIEST, Normalisation
from saeflow.train.parameters import Parameters
from saeflow.train.relu import ReLU

Make = Callable[..., Parameters]
CPU = torch.device("cpu")


def rows_of(width: int, spread: float, seed: int, n: int = 4000) -> Tensor:
    """Rows whose channels' spreads differ, around a far mean."""
    generator = torch.Generator().manual_seed(seed)
    shape = torch.linspace(0.5, 2, width)
    return spread * (torch.randn(n, width, generator=generator) * shape + 3)


def statistics_of(rows: Tensor) -> dict[str, Any]:
    """What a store would say of them."""
    values = rows.double().numpy()
    median = rows.double().median(0).values.numpy()
    return {"mean": values.mean(0), "std": values.std(0), "geometric_median": median}


def mean_squared_distance(rows: Tensor) -> float:
    return (rows - rows.mean(0)).square().sum(1).mean().item()


SMALL, LARGE = rows_of(6, 0.05, seed=1), rows_of(4, 40.0, seed=2)
OF_SAE = Normalisation.of_sae(statistics_of(SMALL), CPU)
OF_TRANSCODER = Normalisation.of_transcoder(statistics_of(SMALL), statistics_of(LARGE), CPU)
OF_CROSSCODER = Normalisation.of_crosscoder([statistics_of(SMALL), statistics_of(LARGE)], CPU)


def test_each_says_of_what_kind_it_is() -> None:
    assert OF_SAE.kind == "sae"
    assert OF_TRANSCODER.kind == "transcoder"
    assert OF_CROSSCODER.kind == "crosscoder"


def test_an_sae_reconstructs_the_rows_that_it_reads() -> None:
    x, target = OF_SAE.pair((SMALL,))
    assert target is x
    assert mean_squared_distance(x) == pytest.approx(6, rel=1e-4)
    torch.testing.assert_close(x.mean(0), OF_SAE.centre)


def test_a_transcoders_inputs_and_targets_have_units_of_their_own() -> None:
    x, target = OF_TRANSCODER.pair((SMALL, LARGE))
    assert x.shape[1] == 6
    assert target.shape[1] == 4
    assert mean_squared_distance(x) == pytest.approx(6, rel=1e-4)
    assert mean_squared_distance(target) == pytest.approx(4, rel=1e-4)
    torch.testing.assert_close(target.mean(0), OF_TRANSCODER.centre)


def test_every_hook_point_of_a_crosscoder_counts_by_its_width() -> None:
    x, target = OF_CROSSCODER.pair((SMALL, LARGE))
    assert target is x
    assert OF_CROSSCODER.blocks == (6, 4)
    small, large = x.split([6, 4], dim=1)
    assert mean_squared_distance(small) == pytest.approx(6, rel=1e-4)
    assert mean_squared_distance(large) == pytest.approx(4, rel=1e-4)
    torch.testing.assert_close(x.mean(0), OF_CROSSCODER.centre)


def test_massive_rows_count_as_if_they_were_near() -> None:
    massive = torch.cat([SMALL, 100 * SMALL[:1]])
    x, target = OF_SAE.pair((massive,))
    weights = OF_SAE.row_weights(x, target)
    assert weights[-1] < 1e-2
    assert (weights[:-1] == 1).float().mean() > 0.99
    distance = (target - OF_SAE.centre).square().sum(1)
    assert torch.all(weights * distance <= HEAVIEST**2 * 6 * (1 + 1e-5))


@pytest.mark.parametrize("side", ["read", "reconstructed"])
def test_a_transcoders_row_that_is_massive_on_one_side_counts_little(side: str) -> None:
    small, large = SMALL[:10].clone(), LARGE[:10].clone()
    (small if side == "read" else large)[3] *= 100
    weights = OF_TRANSCODER.row_weights(*OF_TRANSCODER.pair((small, large)))
    assert weights[3] < 1e-2
    assert torch.equal(weights[[0, 1, 2, 4]], torch.ones(4))


def parameters_for(units: Normalisation, make: Make, *, skip: bool = False) -> Parameters:
    """Without structure: 11 latents, no bias is zero."""
    widths = units.blocks or ((6, 4) if units.source else (6,))
    whole = make(sum(widths), 11).float().requires_grad_(False)
    if units.source is None:
        return Parameters(whole.encoder, whole.b_enc, whole.W_dec, whole.b_dec, blocks=units.blocks)
    return Parameters(
        whole.encoder[:, :6],
        whole.b_enc,
        torch.nn.functional.normalize(whole.W_dec[:, 6:], dim=1),
        whole.b_dec[6:],
        centre=units.source.centre,
        W_skip=torch.linspace(-1, 1, 24).view(4, 6) if skip else None,
    )


CASES = {
    "sae": (OF_SAE, (SMALL,), False),
    "transcoder": (OF_TRANSCODER, (SMALL, LARGE), False),
    "skip transcoder": (OF_TRANSCODER, (SMALL, LARGE), True),
    "crosscoder": (OF_CROSSCODER, (SMALL, LARGE), False),
}


@pytest.mark.parametrize("case", CASES)
def test_folded_parameters_do_on_raw_rows_what_the_trained_ones_do(
    random_parameters: Make, case: str
) -> None:
    units, rows, skip = CASES[case]
    p = parameters_for(units, random_parameters, skip=skip)
    x, _ = units.pair(rows)
    latents = ReLU(0.0).encode(p, x)
    expected = (latents @ p.W_dec + p.offset(x)) / units.scale

    folded = units.folded(p)
    raw = torch.cat(rows, 1) if units.blocks else rows[0]
    raw_latents = ReLU(0.0).encode(folded, raw)
    size = latents.abs().max().item() / units.latents
    torch.testing.assert_close(raw_latents, latents / units.latents, rtol=0, atol=1e-5 * size)
    found = raw_latents @ folded.W_dec + folded.offset(raw)
    for ours, right in zip(
        *(t.split(units.blocks or len(t[0]), 1) for t in (found, expected)), strict=True
    ):
        assert (ours - right).norm() / right.norm() < 1e-5


@pytest.mark.parametrize("case", ["sae", "transcoder", "skip transcoder"])
def test_decoder_rows_keep_their_norms(random_parameters: Make, case: str) -> None:
    units, _, skip = CASES[case]
    folded = units.folded(parameters_for(units, random_parameters, skip=skip))
    torch.testing.assert_close(folded.W_dec.norm(dim=1), torch.ones(11))


def test_a_crosscoders_decoder_rows_have_unit_norm_in_normalised_units(
    random_parameters: Make,
) -> None:
    folded = OF_CROSSCODER.folded(parameters_for(OF_CROSSCODER, random_parameters))
    torch.testing.assert_close((folded.W_dec * OF_CROSSCODER.scale).norm(dim=1), torch.ones(11))


@pytest.mark.parametrize("case", ["transcoder", "skip transcoder"])
def test_a_folded_transcoder_takes_nothing_off_its_rows(random_parameters: Make, case: str) -> None:
    units, _, skip = CASES[case]
    folded = units.folded(parameters_for(units, random_parameters, skip=skip))
    assert folded.centre is not None
    assert torch.equal(folded.centre, torch.zeros(6))


@pytest.mark.parametrize("case", CASES)
def test_unfolding_is_the_inverse(random_parameters: Make, case: str) -> None:
    units, _, skip = CASES[case]
    p = parameters_for(units, random_parameters, skip=skip)
    back = units.unfolded(units.folded(p))
    assert back.state_dict().keys() == p.state_dict().keys()
    for name, tensor in p.state_dict().items():
        torch.testing.assert_close(back.state_dict()[name], tensor, rtol=1e-5, atol=1e-5)


def test_an_sae_is_folded_without_touching_its_weights(random_parameters: Make) -> None:
    p = parameters_for(OF_SAE, random_parameters)
    folded = OF_SAE.folded(p)
    assert torch.equal(folded.encoder, p.encoder)
    assert torch.equal(folded.W_dec, p.W_dec)
    assert torch.equal(folded.b_dec, p.b_dec / OF_SAE.scale)


def test_rows_that_are_all_equal_are_refused() -> None:
    flat = {**statistics_of(LARGE), "std": torch.zeros(4).numpy()}
    with pytest.raises(SaeflowError, match="rows are all equal"):
        Normalisation.of_transcoder(statistics_of(SMALL), flat, CPU)
