"""What SAE folders are called, and what makes no sense."""

import pytest

from saeflow.errors import BadInputError
from saeflow.harvest.layout import HookPoint
from saeflow.train.architectures import MAKERS
from saeflow.train.kinds import FORMS, Form, cfg_of, check_kind, hook_metadata
from saeflow.train.normalisation import Kind
from saeflow.train.topk import TopK

A, B = HookPoint("blocks.0.hook_mlp_in", (6,)), HookPoint("blocks.0.attn.hook_z", (2, 4))


@pytest.mark.parametrize(
    ("form", "name", "in_saelens"),
    [
        (Form("topk"), "topk", True),
        (Form("standard"), "standard", True),
        (Form("standard", "transcoder"), "transcoder", True),
        (Form("standard", "transcoder", skip=True), "skip_transcoder", True),
        (Form("jumprelu", "transcoder"), "jumprelu_transcoder", True),
        (Form("jumprelu", "transcoder", skip=True), "jumprelu_skip_transcoder", True),
        (Form("topk", "transcoder"), "topk_transcoder", False),
        (Form("gated", "transcoder", skip=True), "gated_skip_transcoder", False),
        (Form("standard", "crosscoder"), "crosscoder", False),
        (Form("topk", "crosscoder"), "topk_crosscoder", False),
    ],
)
def test_names_are_saelens_own_or_after_its_pattern(
    form: Form, name: str, in_saelens: bool
) -> None:
    assert form.name == name
    assert FORMS[name] == form
    assert form.in_saelens == in_saelens


def test_no_two_have_one_name() -> None:
    assert len(FORMS) == 16
    assert {form.name for form in FORMS.values()} == set(FORMS)


def refused(arch: str, kind: Kind) -> bool:
    try:
        check_kind(arch, kind)
    except BadInputError:
        return True
    return False


def test_every_architecture_is_for_transcoders_and_most_are_for_crosscoders() -> None:
    kinds: tuple[Kind, ...] = ("sae", "transcoder", "crosscoder")
    assert {(arch, kind) for arch in MAKERS for kind in kinds if refused(arch, kind)} == {
        ("gated", "crosscoder"),
        ("p-anneal", "crosscoder"),
    }


@pytest.mark.parametrize("arch", ["gated", "p-anneal"])
def test_the_others_are_refused_by_name(arch: str) -> None:
    with pytest.raises(BadInputError, match=f"--arch {arch} is not for crosscoders, "):
        check_kind(arch, "crosscoder")


def test_an_sae_of_heads_says_so_to_saelens() -> None:
    assert cfg_of(TopK(3), [B], None, 11) == {
        **TopK(3).to_cfg(),
        "d_in": 8,
        "d_sae": 11,
        "dtype": "float32",
        "device": "cpu",
        "apply_b_dec_to_input": True,
        "normalize_activations": "none",
        "reshape_activations": "hook_z",
    }
    assert hook_metadata([B], None) == {"hook_name": B.name}


def test_a_transcoder_names_both_hook_points_and_widths() -> None:
    cfg = cfg_of(TopK(3), [A], B, 11, skip=True)
    assert (cfg["architecture"], cfg["d_in"], cfg["d_out"]) == ("topk_skip_transcoder", 6, 8)
    assert cfg["reshape_activations"] == "none"  # SAELens's transcoders don't
    assert hook_metadata([A], B) == {"hook_name": A.name, "hook_name_out": B.name}


def test_a_crosscoder_names_all_of_them() -> None:
    cfg = cfg_of(TopK(3), [A, B], None, 11)
    assert (cfg["architecture"], cfg["d_in"], cfg["d_ins"]) == ("topk_crosscoder", 14, [6, 8])
    assert cfg["hook_names"] == [A.name, B.name]
    assert hook_metadata([A, B], None) == {"hook_names": [A.name, B.name]}
