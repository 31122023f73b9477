"""Which SAEs a run trains: of sweeps, of tables, of hook points; what they are called."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from saeflow.errors import BadInputError
from saeflow.harvest.store import Store
from saeflow.train.config import TrainConfig
from saeflow.train.members import Member, make_members

HOOK, OTHER = "blocks.0.hook_resid_post", "blocks.1.attn.hook_z"


@pytest.fixture
def members(
    train_config: Callable[..., TrainConfig], store: Store
) -> Callable[..., tuple[Member, ...]]:
    """The members of a run of `train_config`, with any of its options changed."""

    def make(**changed: Any) -> tuple[Member, ...]:
        return make_members(train_config(**changed), store)

    return make


Members = Callable[..., tuple[Member, ...]]


def test_one_sae_is_named_by_hook_point_architecture_and_width(members: Members) -> None:
    (only,) = members()
    assert only.name == f"{HOOK}-topk-48"
    assert (only.d_in, only.d_sae, only.config.k) == (32, 48, 4)


def test_a_sweep_is_every_combination_of_its_values(members: Members) -> None:
    found = members(sweep=("k=2,4", "lr=1e-3,3e-3"))
    assert [(m.config.k, m.config.lr) for m in found] == [
        (2, 1e-3),
        (2, 3e-3),
        (4, 1e-3),
        (4, 3e-3),
    ]
    assert found[0].name == f"{HOOK}-topk-48-k=2-lr=0.001"


def test_a_sweep_in_one_text_is_the_same(members: Members) -> None:
    one, other = members(sweep=("k=2,4 lr=1e-3",)), members(sweep=("--k=2,4", "lr=1e-3"))
    assert [m.name for m in one] == [m.name for m in other]


def test_each_table_is_an_sae_with_options_of_its_own(members: Members) -> None:
    tables = ({"arch": "relu", "l1": 2}, {"k": 3, "name": "mine"}, {"expansion": 2.0})
    changed = {"d_sae": None, "k": None}
    tables = ({**tables[0], "d_sae": 40}, {**tables[1], "d_sae": 40}, tables[2])
    relu, mine, wide = members(sae=tables, **changed)
    assert (relu.config.arch, relu.config.l1, relu.config.k) == ("relu", 2.0, None)
    assert (mine.name, mine.config.k) == ("mine", 3)
    assert wide.d_sae == 64


def test_hook_points_that_only_tables_or_a_sweep_name_are_enough(members: Members) -> None:
    for given in (
        {"sae": ({"hook": [HOOK]}, {"hook": [OTHER]})},
        {"sweep": (f"hook={HOOK},{OTHER}",)},
    ):
        assert [m.inputs[0].name for m in members(hook=(), **given)] == [HOOK, OTHER]


def test_a_folder_in_a_name_is_its_last_part(members: Members, tmp_path: Path) -> None:
    folders = ",".join(str(tmp_path / name) for name in ("one", "two"))
    found = members(sweep=(f"init-from={folders}",))
    assert [m.name.rpartition("=")[2] for m in found] == ["one", "two"]


def test_several_hook_points_are_an_sae_each(members: Members) -> None:
    found = members(hook=(HOOK, OTHER))
    assert [m.name for m in found] == [f"{HOOK}-topk-48", f"{OTHER}-topk-48"]
    assert [[h.name for h in m.hook_points] for m in found] == [[HOOK], [OTHER]]


def test_a_crosscoder_is_one_sae_of_all_its_hook_points(members: Members) -> None:
    (only,) = members(hook=(HOOK, OTHER), crosscoder=True)
    assert (only.name, only.d_in) == (f"{HOOK}+{OTHER}-topk-48", 64)
    assert only.target is None


def test_a_transcoder_reads_one_hook_point_and_reconstructs_another(members: Members) -> None:
    (only,) = members(target_hook=OTHER)
    assert only.name == f"{HOOK}-to-{OTHER}-topk-48"
    assert [h.name for h in only.hook_points] == [HOOK, OTHER]
    assert only.d_in == 32


def test_a_member_is_trained_by_options_that_it_could_be_trained_by_alone(
    members: Members, store: Store
) -> None:
    for member in members(sweep=("k=2,4",), hook=(HOOK, OTHER)):
        (alone,) = make_members(member.config, store)
        assert alone.config == member.config


@pytest.mark.parametrize(
    ("changed", "told"),
    [
        ({"sweep": ("kk=1",)}, "--sweep kk=1: unknown option 'kk': known are hook, "),
        ({"sweep": ("k",)}, "--sweep k has no values: give an option and its values"),
        ({"sweep": ("k=2,",)}, "--sweep k=2, has no values"),
        ({"sweep": ("k=two",)}, "--sweep k=two: k: Input should be a valid integer"),
        ({"sweep": ("batch-size=64,128",)}, "batch_size is of the whole run"),
        ({"sweep": ("k=2", "k=4")}, "--sweep names k twice: give all its values at once"),
        ({"sweep": ("k=4,4",)}, "two SAEs of this run would be called"),
        ({"sweep": ("k=2,4",), "name": "mine"}, "a --name is of one SAE"),
        ({"name": "x" * 250}, "too long for a folder"),
        ({"name": "a.partial"}, "or with .partial in it"),
        ({"sweep": ("arch=topk,relu",)}, "--k is for --arch topk, batchtopk, matryoshka"),
        ({"sae": ({"width": 3},)}, "[[sae]] table 1: unknown option 'width'"),
        ({"sae": ({}, {"tokens": 3})}, "[[sae]] table 2: tokens is of the whole run"),
        ({"sae": ({"k": "many"},)}, "[[sae]] table 1: k: Input should be a valid integer"),
        ({"sae": ({"name": "../up"},)}, "--name is '../up': it becomes a folder"),
        ({"name": "mine", "hook": (HOOK, OTHER)}, "--name mine is of one SAE, and there are 2"),
        ({"hook": (HOOK, "blocks.9.mlp")}, "blocks.9.mlp"),
        ({"hook": (HOOK, HOOK)}, f"--hook {HOOK} is given twice"),
        ({"target_hook": HOOK}, "a transcoder has two hook points"),
        ({"skip": True}, "--skip is for transcoders: give --target-hook"),
        ({"crosscoder": True}, "--crosscoder is of several hook points"),
        (
            {"hook": (HOOK, OTHER), "crosscoder": True, "target_hook": "x"},
            "give --target-hook or --crosscoder, not both",
        ),
        ({"cycles": 3}, "--cycles is for --schedule restarts: add that"),
        ({"resample_rows": 3}, "--resample-rows is for --resample: add that"),
        ({"resample": True, "target_hook": OTHER}, "--resample is for SAEs of one hook point"),
        ({"resample": True, "optimizer": "muon"}, "--resample takes memory out of Adam's moments"),
        ({"checkpoint_every": "soon"}, "--checkpoint-every is 'soon': give steps, like 500"),
        ({"accumulate": 300}, "--accumulate 300 parts of a batch of 256: lower it"),
    ],
)
def test_what_makes_no_sense_is_refused(
    members: Members, changed: dict[str, Any], told: str
) -> None:
    with pytest.raises(BadInputError) as refused:
        members(**changed)
    assert told in str(refused.value)
