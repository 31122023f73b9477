"""`rows where`: exactly the rows asked for are trained on, and what can't be known is refused."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from jaxtyping import Bool

from saeflow.errors import BadInputError
from saeflow.harvest.store import Store
from saeflow.train.config import TrainConfig
from saeflow.train.filters import kept_bits
from saeflow.train.row_filter import RowFilter
from saeflow.train.run import plan_training, train_sae

HOOK = "blocks.0.hook_resid_post"
Make = Callable[..., TrainConfig]


def kept(store: Store, wanted: RowFilter) -> Bool[np.ndarray, " rows"]:
    bits = kept_bits(store, store.hook_point(HOOK), wanted)
    assert bits is not None
    unpacked = np.unpackbits(bits, bitorder="little")
    assert not unpacked[store.train.n_rows :].any()
    return unpacked[: store.train.n_rows].astype(bool)


def values(store: Store, name: str) -> np.ndarray:
    return np.asarray(store.array(name)[:])


def test_no_filter_needs_no_bits(store: Store) -> None:
    assert kept_bits(store, store.hook_point(HOOK), RowFilter()) is None


def test_special_tokens_are_the_stores_own(store: Store) -> None:
    """The tiny tokenizer's bos is 0 and its eos, the separator, is 1."""
    dropped = ~kept(store, RowFilter(special=True))
    assert np.array_equal(dropped, np.isin(values(store, "token"), [0, 1]))
    assert 0 < dropped.mean() < 0.2


def test_more_tokens_can_be_named(store: Store) -> None:
    wanted = RowFilter(tokens=(40, 41), special=True)
    assert np.array_equal(~kept(store, wanted), np.isin(values(store, "token"), [0, 1, 40, 41]))


def test_positions_are_from_to_both_included(store: Store) -> None:
    pos = values(store, "pos")
    between = kept(store, RowFilter(first_position=3, last_position=7))
    assert np.array_equal(between, (pos >= 3) & (pos <= 7))
    assert np.array_equal(kept(store, RowFilter(first_position=10)), pos >= 10)


def test_massive_rows_are_those_over_ten_times_their_shards_median(
    tiny_store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, store: Store
) -> None:
    """The random model has none, so here a row is massive from 1.2 times the median on."""
    monkeypatch.setattr("saeflow.train.filters.MASSIVE", 1.2)
    norms = values(store, f"norm/{HOOK}").astype(np.float64)
    shards = [norms[k * 512 : (k + 1) * 512] for k in range(store.train.n_shards)]
    medians = [np.sort(shard)[(len(shard) - 1) // 2] for shard in shards]
    expected = np.concatenate([s <= 1.2 * m for s, m in zip(shards, medians, strict=True)])
    assert np.array_equal(kept(store, RowFilter(massive=True)), expected)
    assert 0 < (~expected).mean() < 0.5


def test_filters_add_up(store: Store) -> None:
    parts = RowFilter(special=True), RowFilter(first_position=3), RowFilter(tokens=(40,))
    whole = RowFilter(special=True, first_position=3, tokens=(40,))
    assert np.array_equal(kept(store, whole), np.all([kept(store, p) for p in parts], axis=0))


def test_blocks_of_any_size_give_the_same_bits(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = kept(store, RowFilter(special=True, first_position=3))
    monkeypatch.setattr("saeflow.train.filters._ROWS_AT_ONCE", 512)
    assert np.array_equal(kept(store, RowFilter(special=True, first_position=3)), whole)


@pytest.mark.parametrize(
    ("drop_tokens", "positions", "expected"),
    [
        (None, None, RowFilter()),
        ("special", None, RowFilter(special=True)),
        ("13, special,198", None, RowFilter(tokens=(13, 198), special=True)),
        (None, "10-100", RowFilter(first_position=10, last_position=100)),
        (None, "10-", RowFilter(first_position=10)),
        (None, "-100", RowFilter(last_position=100)),
        (None, "5-5", RowFilter(first_position=5, last_position=5)),
    ],
)
def test_options_become_a_filter(
    drop_tokens: str | None, positions: str | None, expected: RowFilter
) -> None:
    assert RowFilter.parse(drop_tokens, positions, massive=False) == expected


@pytest.mark.parametrize("drop_tokens", ["", "bos", "13;14", "-1", "1.5", "special,"])
def test_tokens_that_make_no_sense(train_config: Make, drop_tokens: str) -> None:
    with pytest.raises(BadInputError, match=r"--drop-tokens is .*: give token ids and the word"):
        train_config(drop_tokens=drop_tokens)


@pytest.mark.parametrize("positions", ["", "-", "10", "a-b", "1-2-3", "10-5"])
def test_positions_that_make_no_sense(train_config: Make, positions: str) -> None:
    with pytest.raises(BadInputError, match="--positions "):
        train_config(positions=positions)


def test_a_filter_that_keeps_nothing_is_refused(train_config: Make) -> None:
    with pytest.raises(BadInputError, match=r"no training row of store .* is kept: ask less of"):
        plan_training(train_config(positions="500-"))


def test_fewer_kept_rows_than_a_batch_are_refused(train_config: Make) -> None:
    with pytest.raises(BadInputError, match=r"training rows, that are kept, fewer than one batch"):
        plan_training(train_config(positions="16-", batch_size=2048))


@pytest.mark.parametrize(
    ("changed", "wanted", "message"),
    [
        ({"row_values": ()}, RowFilter(tokens=(3,)), "does not know the token .*--drop-tokens out"),
        ({"row_values": ("token",)}, RowFilter(last_position=9), "the pos of .*--positions out"),
        ({"packing": None}, RowFilter(special=True), "special tokens, .*instead of special"),
    ],
    ids=["token", "pos", "special"],
)
def test_what_an_imported_store_does_not_know_is_refused(
    store: Store, changed: dict[str, Any], wanted: RowFilter, message: str
) -> None:
    imported = replace(store, layout=replace(store.layout, **changed))
    with pytest.raises(BadInputError, match=message):
        kept_bits(imported, imported.hook_point(HOOK), wanted)


def test_a_run_on_filtered_rows_says_so_everywhere(
    train_config: Make, store: Store, capsys: pytest.CaptureFixture[str]
) -> None:
    config = train_config(drop_tokens="special", positions="2-", tokens=None, drop_massive=True)
    plan = plan_training(config)
    n_kept = int(kept(store, RowFilter(special=True, massive=True, first_position=2)).sum())
    assert plan.to_json()["rows_kept"] == n_kept
    assert plan.to_json()["share_kept"] == n_kept / store.train.n_rows
    assert plan.n_steps == n_kept // config.batch_size
    result = train_sae(config)
    assert result.rows_kept == n_kept
    assert f"training on {n_kept:,} of {store.train.n_rows:,} rows (" in capsys.readouterr().err
    recorded = result.sae.cfg["metadata"]["saeflow"]
    assert recorded["rows_kept"] == n_kept
    assert (recorded["train"]["drop_tokens"], recorded["train"]["positions"]) == ("special", "2-")
    assert 'drop_tokens = "special"' in (config.out / "config.toml").read_text()
    with pytest.raises(BadInputError, match=r"positions: 2- there|positions: '2-' there, None now"):
        train_sae(replace(config, positions=None))


def test_speed_is_written_beside_the_metrics(train_config: Make) -> None:
    result = train_sae(train_config(reader="process"))
    lines = (train_config().out / "speed.jsonl").read_text().splitlines()
    speeds = [json.loads(line) for line in lines]
    assert [line["step"] for line in speeds] == [3, 6, 9, 10]
    assert all(line["rows_per_s"] > 0 and 0 <= line["waited"] <= 1 for line in speeds)
    assert result.reading is not None
    assert result.waited == result.reading["waited"]
    assert train_sae(train_config(reader="thread")).already_complete  # who reads changes nothing
