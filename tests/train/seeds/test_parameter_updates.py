"""Resampled latents in the weights: they alone change, and training goes on with them."""

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F

from saeflow import ActivationResampler, AdamWithReset
from saeflow.train.seeds.itemwise import sparse_autoencoder_loss
from saeflow.train.seeds.parameter_updates import (
    ParameterUpdateResults,
    apply_updates,
    n_resampled,
)

Weights = dict[str, nn.Parameter]


def weights(n_components: int | None, n_latents: int, width: int, *, rows: bool) -> Weights:
    """Random ones; decoder vectors as rows or as columns."""
    first = () if n_components is None else (n_components,)
    decoder = torch.randn(*first, n_latents, width)
    return {
        "encoder_weight": nn.Parameter(torch.randn(*first, n_latents, width)),
        "encoder_bias": nn.Parameter(torch.randn(*first, n_latents)),
        "decoder_weight": nn.Parameter(decoder if rows else decoder.mT.contiguous()),
    }


def everything(p: Weights, optimizer: AdamWithReset) -> list[Tensor]:
    """Copies of each weight, its gradient and its moments."""
    found: list[Tensor] = []
    for parameter in p.values():
        assert parameter.grad is not None
        state = optimizer.state[parameter]
        parts = (parameter.detach(), parameter.grad, state["exp_avg"], state["exp_avg_sq"])
        found.extend(part.clone() for part in parts)
    return found


def write(
    p: Weights, updates: list[ParameterUpdateResults], axis: int, optimizer: AdamWithReset
) -> None:
    apply_updates(
        updates,
        encoder_weight=p["encoder_weight"],
        encoder_bias=p["encoder_bias"],
        decoder_weight=p["decoder_weight"],
        decoder_axis=axis,
        optimizer=optimizer,
    )


def updates_of(dead: list[list[int]], width: int) -> list[ParameterUpdateResults]:
    found = []
    for indices in dead:
        new = F.normalize(torch.randn(len(indices), width) + 3, dim=-1)
        latents = torch.tensor(indices, dtype=torch.int64)
        found.append(ParameterUpdateResults(latents, new / 5, torch.zeros(len(indices)), new.T))
    return found


@given(
    dead=st.lists(st.sets(st.integers(0, 6)), min_size=1, max_size=3),
    with_axis=st.booleans(),
    rows=st.booleans(),
    seed=st.integers(0, 1000),
)
@settings(max_examples=60, deadline=None)
def test_only_dead_latents_and_their_moments_change(
    dead: list[set[int]], with_axis: bool, rows: bool, seed: int
) -> None:
    torch.manual_seed(seed)
    if not with_axis:
        dead = dead[:1]
    p = weights(len(dead) if with_axis else None, 7, 3, rows=rows)
    optimizer = AdamWithReset(p.values(), has_components_dim=with_axis)
    for parameter in p.values():
        parameter.grad = torch.randn_like(parameter)
    optimizer.step()
    before = everything(p, optimizer)
    updates = updates_of([sorted(each) for each in dead], 3)
    axis = -2 if rows else -1
    write(p, updates, axis, optimizer)
    after = everything(p, optimizer)
    axes = [-2] * 4 + [-1] * 4 + [axis] * 4
    for old, new, along in zip(before, after, axes, strict=True):
        for component, indices in enumerate(dead):
            was, now = (old[component], new[component]) if with_axis else (old, new)
            for latent in range(7):
                same = torch.equal(was.select(along, latent), now.select(along, latent))
                assert same == (latent not in indices)
    for component, update in enumerate(updates):
        decoder = p["decoder_weight"][component] if with_axis else p["decoder_weight"]
        columns = (decoder.T if rows else decoder)[:, update.dead_neuron_indices]
        assert torch.equal(columns, update.dead_decoder_weight_updates)
    assert n_resampled(updates) == [len(each) for each in dead]


def forward(p: Weights, x: Tensor) -> tuple[Tensor, Tensor]:
    learned = torch.einsum("b...i,...li->b...l", x, p["encoder_weight"]) + p["encoder_bias"]
    learned = learned.relu()
    decoded = torch.einsum("b...l,...il->b...i", learned, p["decoder_weight"])
    return learned, sparse_autoencoder_loss(x, learned, decoded)


@pytest.mark.parametrize("n_components", [None, 1, 2])
@pytest.mark.parametrize("n_dead", [1, 3])
def test_dead_latents_come_to_life_in_a_training_loop(
    n_components: int | None, n_dead: int
) -> None:
    """The whole path, in float32: forward, backward, step, resample, and the next steps."""
    torch.manual_seed(0)
    p = weights(n_components, 8, 5, rows=False)
    p["encoder_bias"].data[..., :n_dead] = -1e6
    optimizer = AdamWithReset(p.values(), lr=1e-3, has_components_dim=n_components is not None)
    resampler = ActivationResampler(
        8,
        n_components,
        resample_interval=64,
        n_activations_activity_collate=64,
        resample_dataset_size=32,
    )
    n_done: list[Any] = []
    shape = (16, 5) if n_components is None else (16, n_components, 5)
    for _ in range(4):
        x = torch.randn(shape)
        learned, loss = forward(p, x)
        assert not learned[..., :n_dead].any()
        resampler.update(x, learned, loss)
        loss.mean(0).sum().backward()
        optimizer.step()
        optimizer.zero_grad()
    if resampler.due:
        kept = resampler.state_dict()["current.rows"]
        updates = resampler.compute(
            p["encoder_weight"],
            loss_of=lambda rows: forward(p, rows)[1],
            bias=None,
        )
        write(p, updates, -1, optimizer)
        n_done = n_resampled(updates)
    assert n_done == [n_dead] * (n_components or 1)
    rows = kept if n_components else kept[:, 0]
    learned, loss = forward(p, rows)
    assert (learned[..., :n_dead] > 0).any(0).all()  # each at least for its own row
    loss.mean(0).sum().backward()
    optimizer.step()
    assert all(parameter.isfinite().all() for parameter in p.values())
