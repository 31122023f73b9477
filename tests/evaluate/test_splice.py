"""The splice: what is replaced, what is scored, and that nothing else moves."""

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM

from saeflow.errors import BadInputError
from saeflow.evaluate.score import ReconstructionScore
from saeflow.evaluate.splice import (
    Replacement,
    check_spliceable,
    replaced_positions,
    scored_predictions,
    token_losses,
)
from saeflow.harvest.models import SourceModel
from saeflow.harvest.store import open_store

HOOKS = ("blocks.0.hook_resid_post", "blocks.1.attn.hook_z")
LAST = "blocks.1.hook_resid_post"
SPECIAL = (0, 1, 2)


@pytest.fixture(scope="module")
def tokens(taught_store: Path) -> Tensor:
    """Sixteen held-out sequences, with separators among their tokens."""
    store = open_store(taught_store)
    found = torch.from_numpy(store.sequences(store.held_out, 0, 16).astype(np.int64))
    assert (found[:, 1:] == 1).any()
    return found


def identity(rows: Tensor) -> Tensor:
    return rows


def test_masks_by_hand() -> None:
    tokens = torch.tensor([[0, 5, 1, 7, 9], [8, 8, 2, 2, 8]])
    replaced = replaced_positions(tokens, SPECIAL)
    assert replaced.int().tolist() == [[0, 1, 0, 1, 1], [0, 1, 0, 0, 1]]
    # The prediction at i is of token i + 1.
    assert scored_predictions(replaced).int().tolist() == [[0, 0, 0, 1], [0, 0, 0, 0]]


def test_without_special_tokens_all_but_position_0_is_replaced() -> None:
    replaced = replaced_positions(torch.zeros(2, 4, dtype=torch.long), [])
    assert replaced.int().tolist() == [[0, 1, 1, 1]] * 2


def test_clean_losses_are_the_transformers_models(
    source_model: SourceModel, taught_model: Path, tokens: Tensor
) -> None:
    reference = AutoModelForCausalLM.from_pretrained(str(taught_model)).eval()
    with torch.inference_mode():
        expected = reference(tokens, labels=tokens).loss.item()
    clean = token_losses(source_model, tokens, HOOKS[0], replaced_positions(tokens, SPECIAL), None)
    assert clean.mean().item() == pytest.approx(expected, abs=1e-4)
    assert clean.dtype == torch.float32
    assert clean.shape == (16, 16)


@pytest.mark.parametrize("hook", HOOKS)
def test_an_identity_in_the_place_of_the_sae_changes_no_bit(
    source_model: SourceModel, tokens: Tensor, hook: str
) -> None:
    replaced = replaced_positions(tokens, SPECIAL)

    def losses(replacement: Replacement | None) -> Tensor:
        return token_losses(source_model, tokens, hook, replaced, replacement)

    clean, same, zero = losses(None), losses(identity), losses(torch.zeros_like)
    assert torch.equal(same, clean)
    assert not torch.equal(zero, clean)
    score = ReconstructionScore()
    score.update(clean.flatten(), same.flatten(), zero.flatten())
    assert score.compute().item() == 1.0


@pytest.mark.parametrize(("hook", "width"), [(HOOKS[0], 32), (HOOKS[1], 32)])
def test_the_replacement_gets_the_rows_at_the_replaced_positions_only(
    source_model: SourceModel, tokens: Tensor, hook: str, width: int
) -> None:
    replaced = replaced_positions(tokens, SPECIAL)
    given: list[Tensor] = []
    seen: list[Tensor] = []
    everywhere: list[Tensor] = []

    def recording(rows: Tensor) -> Tensor:
        given.append(rows.clone())
        return rows * 0

    token_losses(source_model, tokens, hook, torch.ones_like(replaced), None, everywhere)
    token_losses(source_model, tokens, hook, replaced, recording, seen)
    assert [rows.shape for rows in given] == [(int(replaced.sum()), width)]
    assert torch.equal(given[0], seen[0])
    assert torch.equal(given[0], everywhere[0].view(16, 17, width)[replaced])


def test_unreplaced_positions_keep_their_activations(
    source_model: SourceModel, tokens: Tensor
) -> None:
    """After the last block each position is for itself, so that their losses keep every bit."""
    replaced = replaced_positions(tokens, SPECIAL)
    clean = token_losses(source_model, tokens, LAST, replaced, None)
    zero = token_losses(source_model, tokens, LAST, replaced, torch.zeros_like)
    touched = replaced[:, :-1]
    assert torch.equal(zero[~touched], clean[~touched])
    assert torch.all(zero[touched] != clean[touched])


def test_the_replacement_reaches_the_output(source_model: SourceModel, tokens: Tensor) -> None:
    """A shift after the last block is what a shift of the model's own last block would be."""
    everything = torch.ones_like(tokens, dtype=torch.bool)
    zero = token_losses(source_model, tokens, LAST, everything, torch.zeros_like)
    expected = torch.full_like(zero, np.log(source_model.bridge.cfg.d_vocab))
    torch.testing.assert_close(zero, expected)  # all logits are equal


def test_seen_rows_are_those_of_the_store(source_model: SourceModel, taught_store: Path) -> None:
    store = open_store(taught_store)
    hook_point = store.hook_point(HOOKS[0])
    tokens = torch.from_numpy(store.sequences(store.held_out, 0, 4).astype(np.int64))
    seen: list[Tensor] = []
    not_first = torch.ones_like(tokens, dtype=torch.bool)
    not_first[:, 0] = False
    token_losses(source_model, tokens, HOOKS[0], not_first, None, seen)
    names = zip(*(np.asarray(store.array(f"heldout/{n}")[:]) for n in ("seq", "pos")), strict=True)
    rows = [row for row, (seq, _) in enumerate(names) if seq < 4]
    seq, pos = (np.asarray(store.array(f"heldout/{n}")[:])[rows] for n in ("seq", "pos"))
    stored = torch.cat([store.rows(hook_point, store.held_out, [range(r, r + 1)]) for r in rows])
    expected = seen[0].view(4, 16, 32)[seq, pos.astype(np.int64) - 1]
    assert torch.equal(stored, expected.bfloat16())


def test_resid_mid_is_refused() -> None:
    check_spliceable("blocks.3.hook_resid_post")
    with pytest.raises(BadInputError, match="train on hook_resid_post or hook_resid_pre"):
        check_spliceable("blocks.3.hook_resid_mid")
