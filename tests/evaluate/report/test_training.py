"""Curves of a run: whatever is wrong with its file, the page of an evaluation is written."""

import json
from pathlib import Path

import pytest

from saeflow.evaluate.report.training import training_of

LINES = [{"step": step, "rows": 64, "sae": sae, "fvu": 0.5} for step in (1, 2) for sae in "ab"]


@pytest.fixture
def run(tmp_path: Path) -> Path:
    for sae in "ab":
        (tmp_path / "sae" / sae).mkdir(parents=True)
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in LINES))
    return tmp_path


def curves(run: Path) -> dict[str, list[int]]:
    """Steps by SAE."""
    found = training_of({f"{sae} of it": run / "sae" / sae for sae in "ab"})
    return {name: [line["step"] for line in lines] for name, lines in found.items()}


def test_each_sae_has_its_own_lines(run: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    assert curves(run) == {"a of it": [1, 2], "b of it": [1, 2]}
    assert training_of({"a": run / "sae" / "a"}) == {"a": [LINES[0], LINES[2]]}
    alone = tmp_path_factory.mktemp("alone")
    assert training_of({"a": alone, "b": run / "sae" / "gone"}) == {}


@pytest.mark.parametrize("kept", [1, 30, -1])
def test_a_last_line_that_is_being_written_is_left_out(
    run: Path, capsys: pytest.CaptureFixture[str], kept: int
) -> None:
    text = (run / "metrics.jsonl").read_text()
    last = text.splitlines(keepends=True)[-1]
    (run / "metrics.jsonl").write_text(text.removesuffix(last) + last[:kept])
    assert curves(run) == {"a of it": [1, 2], "b of it": [1]}
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(
    "damage", [b"{", b"[]", b"\xff", b'{"step": 1}', b'{"sae": "a"}', b'{"step": "1", "sae": "a"}']
)
def test_damaged_lines_are_told_once_and_left_out(
    run: Path, capsys: pytest.CaptureFixture[str], damage: bytes
) -> None:
    first, _, *rest = (run / "metrics.jsonl").read_bytes().splitlines()
    (run / "metrics.jsonl").write_bytes(b"\n".join([first, damage, damage, *rest, b""]))
    assert curves(run) == {"a of it": [1, 2], "b of it": [2]}
    (told,) = capsys.readouterr().err.splitlines()
    assert told.startswith(f"warning: {run / 'metrics.jsonl'} is damaged: ")
    assert told.endswith("lack 2 of its 5 lines, from line 2 on")


def test_a_file_that_can_not_be_read_costs_the_curves_alone(
    run: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(path: Path) -> bytes:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(Path, "read_bytes", refuse)
    assert curves(run) == {}
    (told,) = capsys.readouterr().err.splitlines()
    assert told.endswith("can't be read: Permission denied; the page has no training curves")
