"""docs/seeds.md: every test that it names is there, and its code runs."""

import re
from pathlib import Path

import pytest
import torch

import saeflow

HERE = Path(__file__).parent
PAGE = (Path(__file__).parents[3] / "docs/seeds.md").read_text(encoding="utf-8")
NAMED = sorted(set(re.findall(r"`(test_\w+\.py)::(test_\w+)`", PAGE)))


@pytest.mark.parametrize(("file", "test"), NAMED)
def test_a_test_that_the_page_names_is_there(file: str, test: str) -> None:
    assert f"\ndef {test}(" in (HERE / file).read_text(encoding="utf-8")


def test_the_page_names_a_test_in_each_row() -> None:
    rows = re.findall(r"^\| D-S[AV]-\d\d.*$", PAGE, re.MULTILINE)
    assert len(rows) > 20
    assert all("::test_" in row.split("|")[4] for row in rows)


def test_the_pages_code_runs() -> None:
    names: dict[str, object] = {}
    for block in re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL):
        exec(block, names)  # the page's own code
    assert names["L0NormMetric"] is saeflow.L0NormMetric
    step = names["step"]
    assert callable(step)
    x = torch.ones(2, 4)
    loss, values = step(x, torch.ones(2, 4096, requires_grad=True), x)
    assert loss.item() == pytest.approx(4.096)
    assert values["train/l0_norm/blocks.0.hook_mlp_out"].item() == 4096
