"""The splice of notebooks: whatever forward pass is made inside has the SAE in it."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from bridges import random_model
from torch import Tensor
from transformers import AutoTokenizer, DynamicCache

from saeflow.errors import BadInputError
from saeflow.evaluate.config import PositionChoice
from saeflow.evaluate.positions import chosen_positions
from saeflow.evaluate.replay import Replay
from saeflow.evaluate.splice import _chosen, splice
from saeflow.harvest.models import SourceModel
from saeflow.train.architectures import LOADERS
from saeflow.train.folder import load_sae
from saeflow.train.parameters import Parameters
from saeflow.train.sae import SAE

POST, HEADS, MID = (
    "blocks.0.hook_resid_post",
    "blocks.1.attn.hook_z",
    "blocks.1.hook_resid_mid",
)
SPECIAL = (0, 1, 2)


@pytest.fixture(scope="module")
def tokens() -> Tensor:
    """Sequences with a BOS token first, and a separator in them."""
    found = torch.randint(3, 300, (4, 12), generator=torch.Generator().manual_seed(0))
    found[:, 0], found[:, 6] = 0, 1
    return found


@torch.inference_mode()
def logits_of(model: SourceModel, tokens: Tensor, **options: Any) -> Tensor:
    logits: Tensor = model.bridge(tokens, **options)
    return logits


def halved(rows: Tensor) -> Tensor:
    return rows / 2


def replayed(
    model: SourceModel,
    tokens: Tensor,
    hook: str,
    change: Callable[[Tensor], Tensor],
    which: PositionChoice = "text",
    reads: str | None = None,
) -> Tensor:
    """The logits that an evaluation would have."""
    replay = Replay(model, [hook, reads or hook])
    clean = replay.clean(tokens)
    own = torch.ones_like(tokens, dtype=torch.bool)
    replaced = chosen_positions(tokens, own, SPECIAL, which)
    return replay.spliced(clean, replaced, {hook: change(clean.rows(reads or hook, replaced))})


def transcoder(reads: str, replaces: str, *, skip: bool = False, kind: str = "transcoder") -> SAE:
    """A random one of 8 latents, on rows 32 wide."""
    draw = torch.Generator().manual_seed(3)
    encoder, decoder, square = (
        torch.randn(*shape, generator=draw) / 4 for shape in ((8, 32), (8, 32), (32, 32))
    )
    parameters = Parameters(
        encoder,
        torch.zeros(8),
        decoder,
        torch.full((32,), 0.1),
        centre=torch.zeros(32),
        W_skip=square if skip else None,
    )
    cfg = {
        "architecture": "skip_transcoder" if skip else kind,
        "hook_names": [reads, replaces],
        "metadata": {"hook_name": reads, "hook_name_out": replaces},
    }
    return SAE(LOADERS["standard"]({**cfg, "architecture": "standard"}), parameters, cfg)


@pytest.mark.parametrize("which", ["text", "no-first", "all"])
@pytest.mark.parametrize("hook", [POST, HEADS, MID])
def test_any_forward_pass_has_the_function_in_it(
    source_model: SourceModel, tokens: Tensor, hook: str, which: PositionChoice
) -> None:
    expected = replayed(source_model, tokens, hook, halved, which)
    clean = logits_of(source_model, tokens)
    with splice(source_model, halved, hook, positions=which):
        assert torch.equal(logits_of(source_model, tokens), expected)
        with torch.inference_mode():
            assert torch.equal(source_model.bridge.run_with_hooks(tokens, fwd_hooks=[]), expected)
            by_cache, cache = source_model.bridge.run_with_cache(tokens)
            plain = source_model.bridge.original_model(input_ids=tokens).logits
        torch.testing.assert_close(by_cache, expected)
        assert torch.equal(plain, expected)
        assert "blocks.1.hook_resid_post" in cache
    assert torch.equal(logits_of(source_model, tokens), clean)
    assert not torch.equal(expected, clean)


@pytest.mark.parametrize("fixture", ["sae", "sae_of_heads"])
def test_a_trained_sae_goes_where_it_is_from(
    source_model: SourceModel, tokens: Tensor, fixture: str, request: pytest.FixtureRequest
) -> None:
    sae = load_sae(request.getfixturevalue(fixture))
    expected = replayed(source_model, tokens, sae.hook_point, sae)
    with splice(source_model, sae):
        assert torch.equal(logits_of(source_model, tokens), expected)
    with splice(source_model.bridge, sae, sae.hook_point):
        assert torch.equal(logits_of(source_model, tokens), expected)
        assert not source_model.bridge(tokens).is_inference()  # outside of inference mode too


@pytest.mark.parametrize("hook", [POST, HEADS, MID, "blocks.1.ln2.hook_normalized"])
def test_with_its_error_kept_no_bit_changes(
    source_model: SourceModel, tokens: Tensor, hook: str
) -> None:
    given: list[Tensor] = []

    def poor(rows: Tensor) -> Tensor:
        given.append(rows)
        return rows * 0.3 + 7

    clean = logits_of(source_model, tokens)
    with splice(source_model, poor, hook, keep_error=True):
        assert torch.equal(logits_of(source_model, tokens), clean)
    (rows,) = given
    assert rows.shape == (4 * 10, 32)  # all but the first position and the separator
    assert rows.dtype == torch.float32


@pytest.mark.parametrize("skip", [False, True])
def test_a_transcoder_reads_here_and_replaces_there(
    source_model: SourceModel, tokens: Tensor, skip: bool
) -> None:
    reads, replaces = "blocks.1.ln2.hook_normalized", "blocks.1.hook_mlp_out"
    made = transcoder(reads, replaces, skip=skip)
    expected = replayed(source_model, tokens, replaces, made, reads=reads)
    with splice(source_model, made):
        assert torch.equal(logits_of(source_model, tokens), expected)
    with splice(source_model, made, keep_error=True):
        assert torch.equal(logits_of(source_model, tokens), logits_of(source_model, tokens))


def test_splices_nest(source_model: SourceModel, tokens: Tensor) -> None:
    """The later hook point sees what the earlier splice makes of the model."""
    own = torch.ones_like(tokens, dtype=torch.bool)
    replaced = chosen_positions(tokens, own, SPECIAL)
    replay = Replay(source_model, [POST, HEADS])
    first = replay.clean(tokens)
    with splice(source_model, halved, POST):
        changed = replay.clean(tokens)
        with splice(source_model, torch.neg, HEADS):
            both = logits_of(source_model, tokens)
    rows = {POST: first.rows(POST, replaced) / 2, HEADS: -changed.rows(HEADS, replaced)}
    assert torch.equal(both, replay.spliced(first, replaced, rows))


@pytest.mark.parametrize("side", ["left", "right"])
def test_padding_is_left_alone_on_either_side(
    source_model: SourceModel, tokens: Tensor, side: str
) -> None:
    """Its ids need not be special: the mask tells."""
    short, pad = tokens[:, :9], torch.full((4, 3), 8)
    mask = torch.cat([torch.ones_like(short), torch.zeros_like(pad)], 1)
    padded = torch.cat([short, pad], 1)
    if side == "left":
        mask, padded = mask.flip(1), torch.cat([pad, short], 1)
    given: list[Tensor] = []

    def look(rows: Tensor) -> Tensor:
        given.append(rows)
        return rows / 2

    with splice(source_model, look, POST, positions="no-first"):
        logits = logits_of(source_model, padded, attention_mask=mask)
        expected = logits_of(source_model, short)
    assert [len(rows) for rows in given] == [4 * 8] * 2
    torch.testing.assert_close(logits[mask.bool()].view_as(expected), expected)


@pytest.mark.parametrize("name", ["past_key_values", "cache"])
def test_a_token_after_cached_ones_is_no_first_position(name: str) -> None:
    cache = DynamicCache()
    cache.update(torch.zeros(2, 1, 3, 4), torch.zeros(2, 1, 3, 4), 0)
    step = torch.tensor([[8], [1]])
    chosen = _chosen(step, {name: cache}, SPECIAL, "text")
    assert chosen.tolist() == [[True], [False]]
    assert not _chosen(step, {name: DynamicCache()}, SPECIAL, "text").any()
    # Three places of padding, of which the cache holds all.
    mask = torch.tensor([[0, 0, 0, 1], [1, 1, 1, 1]])
    chosen = _chosen(step, {name: cache, "attention_mask": mask}, SPECIAL, "no-first")
    assert chosen.tolist() == [[False], [True]]


def test_embeddings_do_not_tell_special_tokens(source_model: SourceModel, tokens: Tensor) -> None:
    with torch.inference_mode():
        embedded = source_model.bridge.original_model.get_input_embeddings()(tokens)
        with splice(source_model, halved, POST), pytest.raises(BadInputError, match="token ids"):
            source_model.bridge.original_model(inputs_embeds=embedded)
        with splice(source_model, halved, POST, positions="all"):
            logits = source_model.bridge.original_model(inputs_embeds=embedded).logits
    torch.testing.assert_close(logits, replayed(source_model, tokens, POST, halved, "all"))


def test_hooks_are_gone_after_an_error(source_model: SourceModel, tokens: Tensor) -> None:
    clean = logits_of(source_model, tokens)

    def broken(rows: Tensor) -> Tensor:
        raise RuntimeError(f"of {len(rows)} rows")

    with pytest.raises(RuntimeError, match="of 40 rows"), splice(source_model, broken, MID):
        logits_of(source_model, tokens)
    assert torch.equal(logits_of(source_model, tokens), clean)
    assert all(not point.fwd_hooks for point in source_model.bridge.hook_dict.values())
    assert not source_model.bridge.original_model._forward_pre_hooks


def test_what_can_not_be_spliced_is_refused(
    source_model: SourceModel, tokens: Tensor, sae: Path
) -> None:
    def refused(match: str, made: Any, *args: Any) -> None:
        with pytest.raises(BadInputError, match=match), splice(source_model, made, *args):
            logits_of(source_model, tokens)

    trained = load_sae(sae)
    refused("give hook_point", halved)
    refused("does not exist", halved, "blocks.9.hook_resid_post")
    refused("32 wide, but the model's are 64", trained, "blocks.0.mlp.hook_post")
    refused("gave rows of shape", lambda rows: rows[:, :5], POST)
    refused("leave out hook_point", transcoder(POST, "blocks.1.hook_mlp_out"), POST)
    refused("comes after", transcoder("blocks.1.hook_resid_pre", "blocks.0.hook_mlp_out"))
    refused("crosscoder can't", transcoder(POST, POST, kind="crosscoder"))
    cfg = {**trained.cfg, "metadata": {}}
    nameless = SAE(trained.architecture, trained.parameters, cfg)
    refused("does not say its hook point", nameless)


def test_a_model_without_a_tokenizer_needs_another_choice(
    source_model: SourceModel, tokens: Tensor
) -> None:
    bare = SourceModel(source_model.bridge, None, source_model.spec)
    with pytest.raises(BadInputError, match="no tokenizer"), splice(bare, halved, POST):
        pass
    with splice(bare, halved, POST, positions="no-first"):
        logits_of(source_model, tokens)
    with pytest.raises(BadInputError, match="give a SourceModel"), splice(object(), halved, POST):
        pass


def test_a_bfloat16_model_gets_rows_in_float32(tiny_model: Path, tokens: Tensor) -> None:
    tokenizer = AutoTokenizer.from_pretrained(str(tiny_model))
    model = random_model("gpt2", tokenizer, "bfloat16")
    seen: list[Tensor] = []

    def identity(rows: Tensor) -> Tensor:
        seen.append(rows)
        return rows

    clean = logits_of(model, tokens)
    with splice(model.bridge, identity, POST):
        assert torch.equal(logits_of(model, tokens), clean)
    assert seen[0].dtype == torch.float32
