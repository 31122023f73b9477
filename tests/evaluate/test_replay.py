"""One clean pass, and restarts from it: the same bits as a whole pass with a hook."""

import math
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from bridges import KINDS, random_model
from torch import Tensor
from torch.nn import functional as F
from transformers import AutoModelForCausalLM, AutoTokenizer

from saeflow.errors import BadInputError
from saeflow.evaluate.ablation import mean_rows, zero_rows
from saeflow.evaluate.positions import chosen_positions, scored_predictions
from saeflow.evaluate.predictions import prediction_losses
from saeflow.evaluate.replay import CleanPass, Replay
from saeflow.harvest.capture import capture, probe_hook_points
from saeflow.harvest.models import ModelSpec, SourceModel, load_model
from saeflow.harvest.store import open_store

Models = Callable[..., SourceModel]
COSTS = {  # hook point in each kind of model: blocks that run again, of three
    "hook_embed": 3,
    "blocks.0.hook_resid_pre": 3,
    "blocks.0.hook_resid_post": 2,
    "blocks.1.hook_resid_pre": 2,
    "blocks.1.ln1.hook_normalized": 2,
    "blocks.1.attn.hook_q": 2,
    "blocks.1.attn.hook_z": 2,
    "blocks.1.hook_attn_out": 2,
    "blocks.1.hook_resid_mid": 2,
    "blocks.1.mlp.hook_pre": 2,
    "blocks.1.mlp.hook_post": 2,
    "blocks.1.hook_mlp_out": 2,
    "blocks.1.hook_resid_post": 1,
    "blocks.1.hook_out": 1,
    "blocks.2.hook_mlp_out": 1,
    "blocks.2.hook_resid_mid": 1,
    "blocks.2.hook_resid_post": 0,
    "ln_final.hook_normalized": 0,
}


@pytest.fixture(scope="module")
def models(tiny_model: Path) -> Models:
    """A random bridge of a kind, made once."""
    tokenizer = AutoTokenizer.from_pretrained(str(tiny_model))
    made: dict[tuple[str, str], SourceModel] = {}

    def model(kind: str, dtype: str = "float32") -> SourceModel:
        if (kind, dtype) not in made:
            made[kind, dtype] = random_model(kind, tokenizer, dtype)
        return made[kind, dtype]

    return model


def some_tokens(batch: int = 3, positions: int = 11) -> Tensor:
    draw = torch.Generator().manual_seed(1)
    return torch.randint(3, 300, (batch, positions), generator=draw)


def some_positions(tokens: Tensor) -> Tensor:
    return torch.rand(tokens.shape, generator=torch.Generator().manual_seed(2)) < 0.6


def hook_points_of(model: SourceModel) -> list[str]:
    known = model.bridge.hook_dict
    return [name for name in COSTS if name in known]


@contextmanager
def counted(model: SourceModel) -> Iterator[list[int]]:
    """Which blocks of the model itself have run, in their order."""
    ran: list[int] = []
    with ExitStack() as stack:
        for block, module in enumerate(model.bridge.blocks):
            hook = module.original_component.register_forward_hook(
                lambda m, a, o, block=block: ran.append(block)
            )
            stack.callback(hook.remove)
        yield ran


def whole_pass(
    model: SourceModel, tokens: Tensor, changes: dict[str, Tensor], at: Tensor
) -> Tensor:
    """Logits of a forward pass of all blocks, as people write it with TransformerLens."""

    def hook_of(rows: Tensor) -> Any:
        def hook(activation: Tensor, hook: Any) -> Tensor:
            changed = activation.clone().flatten(2)
            changed[at] = rows.to(changed.dtype)
            return changed.view_as(activation)

        return hook

    with torch.inference_mode():
        logits: Tensor = model.bridge.run_with_hooks(
            tokens,
            fwd_hooks=[(name, hook_of(rows)) for name, rows in changes.items()],
            use_cache=False,
        )
    return logits


@pytest.mark.parametrize("kind", KINDS)
def test_the_clean_pass_is_the_models_own(models: Models, kind: str) -> None:
    model, tokens = models(kind), some_tokens()
    names = hook_points_of(model)
    clean = Replay(model, names).clean(tokens)
    with torch.inference_mode():
        assert torch.equal(clean.logits, model.bridge(tokens, use_cache=False))
    expected = capture(model, tokens, probe_hook_points(model, names))
    for name in names:
        assert torch.equal(clean.activations[name], expected[name])


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_an_identity_changes_no_bit_and_runs_the_later_blocks_only(
    models: Models, kind: str, dtype: str
) -> None:
    model, tokens = models(kind, dtype), some_tokens()
    replaced = some_positions(tokens)
    names = hook_points_of(model)
    replay = Replay(model, names)
    with counted(model) as ran:
        clean = replay.clean(tokens)
        assert ran == [0, 1, 2]
        for name in names:
            ran.clear()
            rows = clean.rows(name, replaced)
            assert rows.dtype == torch.float32
            assert torch.equal(replay.spliced(clean, replaced, {name: rows}), clean.logits), name
            assert ran == list(range(3 - COSTS[name], 3)), name


@pytest.mark.filterwarnings("ignore:A forward hook edited")  # of the reference
@pytest.mark.parametrize("kind", KINDS)
def test_a_splice_is_a_whole_pass_with_a_hook(models: Models, kind: str) -> None:
    model, tokens = models(kind), some_tokens()
    replaced = some_positions(tokens)
    names = [name for name in hook_points_of(model) if not name.endswith("resid_mid")]
    replay = Replay(model, names)
    clean = replay.clean(tokens)
    for name in names:
        rows = clean.rows(name, replaced)
        rows = rows.roll(1, 0) * 0.5 + 0.1
        spliced = replay.spliced(clean, replaced, {name: rows})
        expected = whole_pass(model, tokens, {name: rows}, replaced)
        if name.endswith("hook_normalized"):  # rows that stay are rounded by the model's own norm
            torch.testing.assert_close(spliced, expected, rtol=1e-4, atol=1e-4)
        else:
            assert torch.equal(spliced, expected), name
        assert not torch.equal(spliced, clean.logits), name


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "neox"])
def test_the_middle_of_a_block_reaches_the_residual_stream(models: Models, kind: str) -> None:
    """As a change of what attention adds to the stream would, which needs no such care."""
    model, tokens = models(kind), some_tokens()
    replaced = some_positions(tokens)
    mid, pre, attn = (f"blocks.1.hook_{name}" for name in ("resid_mid", "resid_pre", "attn_out"))
    replay = Replay(model, [mid, pre, attn])
    clean = replay.clean(tokens)
    rows = clean.rows(mid, replaced).roll(1, 0)
    spliced = replay.spliced(clean, replaced, {mid: rows})
    through_attention = rows - clean.rows(pre, replaced)
    expected = replay.spliced(clean, replaced, {attn: through_attention})
    scored = torch.ones(3, 10, dtype=torch.bool)
    torch.testing.assert_close(
        prediction_losses(spliced, tokens, scored),
        prediction_losses(expected, tokens, scored),
        rtol=0,
        atol=1e-5,
    )
    assert not torch.equal(spliced, clean.logits)


def test_zeros_in_the_middle_leave_the_mlps_answer_to_zeros(models: Models) -> None:
    """The known answer of the last block: what comes out is MLP(norm(0)) = 0, and equal logits."""
    model, tokens = models("llama"), some_tokens()
    everywhere = torch.ones_like(tokens, dtype=torch.bool)
    replay = Replay(model, ["blocks.2.hook_resid_mid"])
    clean = replay.clean(tokens)
    zeros = zero_rows(clean.rows("blocks.2.hook_resid_mid", everywhere))
    spliced = replay.spliced(clean, everywhere, {"blocks.2.hook_resid_mid": zeros})
    assert not spliced.any()


def test_a_block_whose_output_is_no_such_sum_is_refused(
    models: Models, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = models("gpt2")
    block = model.bridge.blocks[1].original_component
    forward = block.forward

    def gated(*args: Any, **kwargs: Any) -> Any:
        output = forward(*args, **kwargs)
        return (output[0] * 0.5, *output[1:]) if isinstance(output, tuple) else output * 0.5

    monkeypatch.setattr(block, "forward", gated)
    with pytest.raises(BadInputError, match=r"use an SAE of hook_resid_post or hook_resid_pre"):
        Replay(model, ["blocks.1.hook_resid_mid"]).clean(some_tokens())


def test_parallel_blocks_have_no_middle(models: Models) -> None:
    with pytest.raises(BadInputError, match="does not exist"):
        Replay(models("neox"), ["blocks.1.hook_resid_mid"])


@pytest.mark.parametrize(
    ("names", "runs"),
    [
        (["blocks.0.hook_resid_post", "blocks.1.hook_resid_post"], [1, 2]),
        (["blocks.2.hook_mlp_out", "blocks.1.hook_resid_post"], [2]),
        (["blocks.1.hook_resid_post", "blocks.1.attn.hook_z", "blocks.2.hook_resid_post"], [1, 2]),
        (["blocks.1.hook_resid_post", "hook_embed"], [0, 1, 2]),
    ],
)
def test_several_hook_points_at_once(models: Models, names: list[str], runs: list[int]) -> None:
    """A crosscoder's: from the earliest, and each of them from the clean activations."""
    model, tokens = models("llama"), some_tokens()
    replaced = some_positions(tokens)
    replay = Replay(model, names)
    clean = replay.clean(tokens)
    rows = {name: clean.rows(name, replaced).roll(1, 0) for name in names}
    with counted(model) as ran:
        spliced = replay.spliced(clean, replaced, rows)
    assert ran == runs
    assert torch.equal(spliced, whole_pass(model, tokens, rows, replaced))
    own = {name: clean.rows(name, replaced) for name in names}
    assert torch.equal(replay.spliced(clean, replaced, own), clean.logits)


def test_the_middle_and_what_is_made_of_it_at_once(models: Models) -> None:
    """The MLP's output that is put in is part of the sum; a block's output that is put in is it."""
    model, tokens = models("llama"), some_tokens()
    replaced = some_positions(tokens)
    mid, mlp, post = (f"blocks.1.hook_{name}" for name in ("resid_mid", "mlp_out", "resid_post"))
    replay = Replay(model, [mid, mlp, post])
    clean = replay.clean(tokens)
    rows = {name: clean.rows(name, replaced).roll(1, 0) for name in (mid, mlp, post)}
    total = rows[mid] + rows[mlp]
    assert torch.equal(
        replay.spliced(clean, replaced, {mid: rows[mid], mlp: rows[mlp]}),
        replay.spliced(clean, replaced, {post: total}),
    )
    assert torch.equal(
        replay.spliced(clean, replaced, rows), replay.spliced(clean, replaced, {post: rows[post]})
    )


def test_a_hook_runs_once_in_compatibility_mode(tiny_model: Path) -> None:
    """TransformerLens's run_with_hooks would run it once for each of a hook point's names."""
    model = load_model(ModelSpec(name=str(tiny_model), compatibility_mode=True))
    tokens = some_tokens()
    names = ["blocks.0.hook_resid_post", "blocks.1.attn.hook_z", "blocks.1.hook_resid_mid"]
    replay = Replay(model, names)
    clean = replay.clean(tokens)
    replaced = some_positions(tokens)
    for name in names:
        rows = {name: clean.rows(name, replaced)}
        assert torch.equal(replay.spliced(clean, replaced, rows), clean.logits)


def test_the_model_is_left_as_it_was(models: Models, monkeypatch: pytest.MonkeyPatch) -> None:
    model, tokens = models("gpt2"), some_tokens()
    replaced = some_positions(tokens)
    name = "blocks.1.attn.hook_z"
    replay = Replay(model, [name])
    clean = replay.clean(tokens)
    rows = {name: clean.rows(name, replaced)}
    replay.spliced(clean, replaced, rows)

    def broken(*args: Any, **kwargs: Any) -> Any:
        raise RuntimeError("out of memory")

    with monkeypatch.context() as patch:
        patch.setattr(model.bridge.blocks[2].original_component, "forward", broken)
        with pytest.raises(RuntimeError, match="out of memory"):
            replay.spliced(clean, replaced, rows)
        with pytest.raises(RuntimeError, match="out of memory"):
            replay.clean(tokens)
    assert all("forward" not in vars(block) for block in model.bridge.blocks)
    assert all(not block._forward_hooks for block in model.bridge.blocks)
    assert all(not point.fwd_hooks for point in model.bridge.hook_dict.values())
    with torch.inference_mode():
        assert torch.equal(model.bridge(tokens, use_cache=False), clean.logits)


def test_rows_that_do_not_fit_are_refused(models: Models) -> None:
    model, tokens = models("llama"), some_tokens()
    replaced = some_positions(tokens)
    name = "blocks.1.hook_resid_post"
    replay = Replay(model, [name])
    clean = replay.clean(tokens)
    rows = clean.rows(name, replaced)
    for wrong in (rows[:-1], torch.cat([rows, rows[:1]]), rows[:, :-1]):
        with pytest.raises(ValueError, match="they must be"):
            replay.spliced(clean, replaced, {name: wrong})


def losses_of(replay: Replay, clean: CleanPass, name: str, rows: Tensor, at: Tensor) -> Tensor:
    logits = replay.spliced(clean, at, {name: rows})
    return prediction_losses(logits, clean.tokens, scored_predictions(at))


@pytest.fixture(scope="module")
def text(source_model: SourceModel) -> Tensor:
    """Sequences that begin with a BOS token, of unequal texts, with separators."""
    draw = torch.Generator().manual_seed(0)
    tokens = torch.randint(1, 300, (12, 17), generator=draw)
    tokens[:, 0], tokens[:, 9] = 0, 1
    return tokens


def test_clean_losses_are_transformers_own(
    source_model: SourceModel, taught_model: Path, text: Tensor
) -> None:
    reference = AutoModelForCausalLM.from_pretrained(str(taught_model)).eval()
    with torch.inference_mode():
        expected = reference(text, labels=text).loss.item()
    clean = Replay(source_model, []).clean(text)
    losses = prediction_losses(clean.logits, text, torch.ones(12, 16, dtype=torch.bool))
    assert losses.mean().item() == pytest.approx(expected, abs=1e-4)


@pytest.mark.parametrize("layer", [0, 1])
def test_mean_ablation_against_plain_transformers(
    source_model: SourceModel, taught_model: Path, text: Tensor, layer: int
) -> None:
    """A forward hook on a decoder layer of a model that TransformerLens has never seen."""
    reference = AutoModelForCausalLM.from_pretrained(
        str(taught_model), attn_implementation="eager"
    ).eval()
    replaced = chosen_positions(text, torch.ones_like(text, dtype=torch.bool), (0, 1, 2))
    scored = scored_predictions(replaced)
    kept: list[Tensor] = []

    def keep(module: Any, args: Any, output: Tensor) -> None:
        kept.append(output[replaced].mean(0))

    def ablate(module: Any, args: Any, output: Tensor) -> Tensor:
        changed = output.clone()
        changed[replaced] = kept[0]
        return changed

    with torch.inference_mode():
        for hook in (keep, ablate):
            handle = reference.model.layers[layer].register_forward_hook(hook)
            logits = reference(text).logits
            handle.remove()
        expected = F.cross_entropy(logits[:, :-1][scored], text[:, 1:][scored], reduction="none")
    name = f"blocks.{layer}.hook_resid_post"
    replay = Replay(source_model, [name])
    clean = replay.clean(text)
    rows = clean.rows(name, replaced)
    losses = losses_of(replay, clean, name, mean_rows(rows.mean(0), rows), replaced)
    torch.testing.assert_close(losses, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", ["blocks.0.hook_resid_post", "blocks.1.attn.hook_z"])
def test_losses_do_not_depend_on_the_batch(
    source_model: SourceModel, text: Tensor, name: str
) -> None:
    def losses(batch: int) -> Tensor:
        replay, found = Replay(source_model, [name]), []
        for tokens in text.split(batch):
            own = torch.ones_like(tokens, dtype=torch.bool)
            replaced = chosen_positions(tokens, own, (0, 1, 2))
            clean = replay.clean(tokens)
            rows = clean.rows(name, replaced) * 0.7
            found.append(losses_of(replay, clean, name, rows, replaced))
        return torch.cat(found)

    together = losses(12)
    for batch in (1, 5):
        torch.testing.assert_close(losses(batch), together, rtol=0, atol=1e-5)
        assert losses(batch).double().mean() == pytest.approx(
            float(together.double().mean()), abs=1e-6
        )


def test_the_last_block_by_hand(source_model: SourceModel, text: Tensor) -> None:
    """Zeros there make all logits equal; and each position is for itself."""
    name = "blocks.1.hook_resid_post"
    replay = Replay(source_model, [name])
    clean = replay.clean(text)
    replaced = chosen_positions(text, torch.ones_like(text, dtype=torch.bool), (0, 1, 2))
    zeros = zero_rows(clean.rows(name, replaced))
    logits = replay.spliced(clean, replaced, {name: zeros})
    assert torch.equal(logits[~replaced], clean.logits[~replaced])
    assert not logits[replaced].any()
    losses = prediction_losses(logits, text, scored_predictions(replaced))
    torch.testing.assert_close(losses, torch.full_like(losses, math.log(300)))


def test_clean_rows_are_those_of_the_store(source_model: SourceModel, taught_store: Path) -> None:
    store = open_store(taught_store)
    names = [hook_point.name for hook_point in store.layout.hook_points]
    tokens = torch.from_numpy(store.sequences(store.held_out, 0, 4).astype(np.int64))
    seq, pos = (np.asarray(store.array(f"heldout/{name}")[:]) for name in ("seq", "pos"))
    rows = [int(row) for row in np.flatnonzero(seq < 4)]
    clean = Replay(source_model, names).clean(tokens)
    for name in names:
        stored = torch.cat(
            [store.rows(store.hook_point(name), store.held_out, [range(r, r + 1)]) for r in rows]
        )
        found = clean.activations[name][seq[rows].astype(np.int64), pos[rows].astype(np.int64)]
        assert torch.equal(stored, found.bfloat16())


def test_padding_on_the_right_changes_nothing_before_it(
    source_model: SourceModel, text: Tensor
) -> None:
    name = "blocks.0.hook_resid_post"
    short = text[:, :11]
    padded = torch.cat([short, torch.full((12, 6), 2)], 1)
    own = torch.arange(17)[None].expand(12, -1) < 11
    replay = Replay(source_model, [name])

    def losses(tokens: Tensor, own: Tensor) -> Tensor:
        replaced = chosen_positions(tokens, own, (0, 1, 2))
        clean = replay.clean(tokens)
        return losses_of(replay, clean, name, clean.rows(name, replaced) * 0.7, replaced)

    expected = losses(short, torch.ones_like(short, dtype=torch.bool))
    torch.testing.assert_close(losses(padded, own), expected, rtol=0, atol=1e-5)
