"""The encoders of several SAEs in one product: the same numbers as one by one."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from saeflow.train.architecture import Architecture
from saeflow.train.batchtopk import BatchTopK
from saeflow.train.gated import Gated
from saeflow.train.jumprelu import JumpReLU
from saeflow.train.normalisation import Normalisation
from saeflow.train.relu import ReLU
from saeflow.train.shared import share_encoders
from saeflow.train.topk import TopK
from saeflow.train.trainer import Trainer

Rows = Callable[..., Tensor]
Make = Callable[[Architecture, Normalisation], Trainer]
ARCHITECTURES: dict[str, Architecture] = {
    "topk": TopK(3),
    "k 5": TopK(5),
    "batchtopk": BatchTopK(3),
    "relu": ReLU(1.0),
    "jumprelu": JumpReLU(weight=0.3),
    "gated": Gated(1.0),
}


@pytest.fixture
def made(
    make_trainer: Make, normalisation_of: Callable[[Tensor], Normalisation], sparse_rows: Rows
) -> Callable[[], dict[str, Trainer]]:
    """An untrained SAE of each architecture."""
    units = normalisation_of(sparse_rows(5000))
    return lambda: {name: make_trainer(a, units) for name, a in ARCHITECTURES.items()}


def test_steps_are_those_that_each_would_take_alone(
    made: Callable[[], dict[str, Trainer]], sparse_rows: Rows
) -> None:
    alone, together = made(), made()
    (group,) = share_encoders(together, 256)
    assert group.names == tuple(ARCHITECTURES)
    for step in range(20):
        rows = (sparse_rows(256, seed=step),)
        batches = {name: trainer.batch(rows, step) for name, trainer in together.items()}
        for name, batch in group.with_known(batches).items():
            assert batch.known is not None
            together[name].step_on(batch)
            alone[name].step(rows, step)
    for name in ARCHITECTURES:
        mine = dict(together[name].parameters.named_parameters())
        for key, tensor in alone[name].parameters.named_parameters():
            torch.testing.assert_close(mine[key], tensor, rtol=1e-5, atol=1e-5, msg=f"{name} {key}")


def test_an_encoder_stays_where_it_is_shared_when_state_is_loaded(
    made: Callable[[], dict[str, Trainer]], sparse_rows: Rows
) -> None:
    trainers = made()
    (group,) = share_encoders(trainers, 256)
    other = made()["topk"]
    other.step((sparse_rows(256),), 0)
    trainers["topk"].load_state_dict(other.state_dict())
    assert torch.equal(group.encoders[0], other.parameters.encoder)


def test_only_equal_shapes_share_and_not_more_than_fit(
    made: Callable[[], dict[str, Trainer]],
) -> None:
    trainers = made()
    assert share_encoders({"one": trainers["topk"]}, 256) == []
    rows_of_two = 2**30 // (4 * 64) // 2
    assert [len(g.names) for g in share_encoders(trainers, rows_of_two)] == [2, 2, 2]
    assert share_encoders(trainers, 2**30) == []
