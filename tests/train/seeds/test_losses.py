"""The three losses: means and items, graphs that end, and the component axis."""

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from saeflow import (
    BadInputError,
    L1AbsoluteLoss,
    L2ReconstructionLoss,
    SparseAutoencoderLoss,
)
from saeflow.train.seeds.itemwise import absolute_sum, mean_square, sparse_autoencoder_loss

LOSSES = [L1AbsoluteLoss, L2ReconstructionLoss, SparseAutoencoderLoss]
every_loss = pytest.mark.parametrize("loss", LOSSES)


@every_loss
def test_without_updates_the_mean_is_nan_and_there_are_no_items(loss: Any) -> None:
    with pytest.warns(UserWarning, match="before the ``update``"):
        assert loss(2).compute().isnan().tolist() == [True, True]
    with pytest.warns(UserWarning, match="before the ``update``"):
        assert loss(2, keep_batch_dim=True).compute().shape == (0,)


def test_l2_is_a_mean_over_the_width_not_a_sum() -> None:
    source, decoded = torch.zeros(3, 10), torch.full((3, 10), 2.0)
    assert L2ReconstructionLoss()(decoded, source).item() == 4.0


def test_the_total_is_the_weighted_l1_and_the_l2(activations: Any) -> None:
    batch = activations(20, components=3)
    total = SparseAutoencoderLoss(3, 0.25)(**batch)
    parts = 0.25 * L1AbsoluteLoss(3)(**batch) + L2ReconstructionLoss(3)(**batch)
    torch.testing.assert_close(total, parts)


def test_no_penalty_is_allowed_and_a_negative_one_is_not(activations: Any) -> None:
    batch = activations(5)
    torch.testing.assert_close(
        SparseAutoencoderLoss(l1_coefficient=0.0)(**batch), L2ReconstructionLoss()(**batch)
    )
    for bad in (-0.1, float("nan"), float("inf")):
        with pytest.raises(BadInputError, match=r"l1_coefficient is .*: give a number of at least"):
            SparseAutoencoderLoss(l1_coefficient=bad)


@every_loss
def test_setting_keep_batch_dim_to_what_it_is_changes_nothing(loss: Any, activations: Any) -> None:
    metric = loss(2, keep_batch_dim=True)
    metric.update(**activations(4, components=2))
    metric.keep_batch_dim = True
    metric.update(**activations(3, components=2, seed=1))
    assert metric.compute().shape == (7, 2)


@every_loss
def test_setting_keep_batch_dim_to_another_value_resets(loss: Any, activations: Any) -> None:
    metric, fresh = loss(2), loss(2)
    metric.update(**activations(4, components=2))
    metric.keep_batch_dim = True
    metric.update(**activations(3, components=2, seed=1))
    assert metric.compute().shape == (3, 2)
    metric.keep_batch_dim = False
    for each in (metric, fresh):
        each.update(**activations(5, components=2, seed=2))
    assert metric.compute().tolist() == fresh.compute().tolist()


@every_loss
def test_the_items_are_empty_again_after_reset(loss: Any, activations: Any) -> None:
    metric = loss(keep_batch_dim=True)
    for seed in range(3):
        metric.update(**activations(4, seed=seed))
        metric.reset()
    metric.update(**activations(4))
    assert metric.compute().shape == (4,)


@every_loss
@pytest.mark.parametrize("keep", [False, True])
def test_forward_carries_the_graph_and_what_is_kept_does_not(
    loss: Any, keep: bool, activations: Any
) -> None:
    metric = loss(keep_batch_dim=keep)
    for seed in range(3):
        batch = {name: x.requires_grad_() for name, x in activations(4, seed=seed).items()}
        assert metric(**batch).requires_grad
    kept = [x for name in metric.terms for x in [getattr(metric, name)]]
    tensors: list[Tensor] = [y for x in kept for y in (x if isinstance(x, list) else [x])]
    assert len(tensors) == len(metric.terms) * (3 if keep else 1)
    assert not any(tensor.requires_grad for tensor in tensors)


def test_the_gradient_is_the_plain_functions(activations: Any) -> None:
    gradients = []
    for value in (
        lambda batch: SparseAutoencoderLoss(2, 0.1)(**batch).sum(),
        lambda batch: SparseAutoencoderLoss(2, 0.1, keep_batch_dim=True)(**batch).mean(0).sum(),
        lambda batch: sparse_autoencoder_loss(**batch, l1_coefficient=0.1).mean(0).sum(),
    ):
        batch = {name: x.requires_grad_() for name, x in activations(6, components=2).items()}
        gradients.append(torch.autograd.grad(value(batch), list(batch.values())))
    for other in gradients[1:]:
        torch.testing.assert_close(gradients[0], other)


def test_a_component_does_not_feel_how_many_there_are(activations: Any) -> None:
    """The sum over components of means over items: the gradient of SAEs trained alone."""
    batch = activations(6, components=3)
    batch["learned_activations"].requires_grad_()
    sparse_autoencoder_loss(**batch, l1_coefficient=0.1).mean(0).sum().backward()
    alone = {name: x[:, 1].detach() for name, x in batch.items()}
    alone["learned_activations"].requires_grad_()
    sparse_autoencoder_loss(**alone, l1_coefficient=0.1).mean(0).sum().backward()
    torch.testing.assert_close(
        batch["learned_activations"].grad[:, 1], alone["learned_activations"].grad
    )


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_does_not_overflow(dtype: torch.dtype) -> None:
    huge = torch.full((2, 4), 3e4, dtype=dtype)
    assert absolute_sum(huge).tolist() == [4 * huge[0, 0].item()] * 2
    assert mean_square(huge, torch.zeros_like(huge)).tolist() == [huge[0, 0].item() ** 2] * 2


def test_ten_million_items_do_not_wear_out_the_sum() -> None:
    metric = L1AbsoluteLoss()
    metric.absolute_loss = torch.full((1,), 2.0**30, dtype=torch.float64)
    for _ in range(64):
        metric.update(torch.full((1, 1), 0.5))
    assert metric.absolute_loss.tolist() == [2.0**30 + 32]  # float32 would have stayed at 2^30


@given(
    cuts=st.lists(st.integers(1, 29), max_size=5, unique=True),
    components=st.sampled_from([None, 1, 3]),
    keep=st.booleans(),
    loss=st.sampled_from(LOSSES),
)
def test_batching_makes_no_difference(
    cuts: list[int], components: int | None, keep: bool, loss: Any, activations: Any
) -> None:
    batch = activations(30, components)
    whole, parts = (loss(components, keep_batch_dim=keep) for _ in range(2))
    whole.update(**batch)
    for first, stop in zip([0, *sorted(cuts)], [*sorted(cuts), 30], strict=True):
        parts(**{name: x[first:stop] for name, x in batch.items()})
    torch.testing.assert_close(parts.compute(), whole.compute(), rtol=1e-6, atol=0)


@given(loss=st.sampled_from(LOSSES), keep=st.booleans(), seed=st.integers(0, 99))
def test_components_together_are_components_alone(
    loss: Any, keep: bool, seed: int, activations: Any
) -> None:
    batch = activations(12, components=3, seed=seed)
    together = loss(3, keep_batch_dim=keep)(**batch)
    alone = [
        loss(None, keep_batch_dim=keep)(**{name: x[:, c] for name, x in batch.items()})
        for c in range(3)
    ]
    torch.testing.assert_close(together, torch.stack(alone, -1))


@every_loss
def test_other_numbers_of_components_are_refused(loss: Any, activations: Any) -> None:
    for given_components, expected in ((3, 1), (3, None), (2, 3), (None, 2)):
        with pytest.raises(BadInputError, match="num_components says how long it is"):
            loss(expected).update(**activations(4, given_components))
    with pytest.raises(BadInputError, match="num_components is 0: give at least 1"):
        loss(0)


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize("shape", [(1, 3), (4, 1), (4, 2, 3)])
def test_rows_that_would_be_broadcast_are_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(BadInputError, match="give the same rows"):
        L2ReconstructionLoss()(torch.rand(4, 3), torch.rand(shape))


@pytest.mark.usefixtures("unchecked")
def test_terms_of_other_rows_are_refused() -> None:
    with pytest.raises(BadInputError, match="the terms are of different items"):
        SparseAutoencoderLoss()(torch.rand(4, 3), torch.rand(5, 6), torch.rand(4, 3))


def test_items_that_are_kept_are_all_in_one_form() -> None:
    loss = L1AbsoluteLoss(keep_batch_dim=True)
    loss.update(torch.rand(4, 3))
    with pytest.raises(BadInputError, match="give all in one form"):
        loss.update(torch.rand(4, 1, 3))
