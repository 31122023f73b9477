import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from made_results import TEXTS, made_latents, made_result, made_training

from saeflow.errors import BadInputError
from saeflow.evaluate.latents.result import Latents
from saeflow.evaluate.report.page import report_page, write_report

HOSTILE = "</script><script>alert(1)</script><img src=x onerror=alert(1)>\"'&\u2028]]><!--"


class Elements(HTMLParser):
    """The start tags of a page, and the content of its scripts."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.addresses: list[str] = []
        self.feed(page)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.addresses += [value or "" for name, value in attrs if name in ("src", "href")]


def page_of(name: str = "one", latents: Latents | None = None, **other: Any) -> str:
    return report_page(
        [made_result(name, **other)],
        title=f"Report of {name}",
        latents={} if latents is None else {name: latents},
        token_texts={name: TEXTS},
        training={name: made_training()},
    )


def test_a_page_is_the_same_bytes_twice(tmp_path: Path, latents: Latents) -> None:
    for file in ("a.html", "b.html"):
        write_report(tmp_path / file, [made_result("one")], title="A", latents={"one": latents})
    assert (tmp_path / "a.html").read_bytes() == (tmp_path / "b.html").read_bytes()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.html", "b.html"]


def test_hostile_text_adds_no_element(latents: Latents) -> None:
    plain = Elements(page_of(latents=latents))
    hostile = Elements(
        page_of(
            HOSTILE,
            latents=latents,
            model=HOSTILE,
            verdict=HOSTILE,
            options={HOSTILE: HOSTILE},
            mismatches=[{"field": HOSTILE, "sae": HOSTILE, "here": HOSTILE}],
        )
    )
    assert hostile.tags == plain.tags


def test_what_could_end_a_script_or_a_line_is_escaped() -> None:
    page = page_of(HOSTILE, verdict=HOSTILE, model=HOSTILE)
    data = re.search(r'<script type="application/json" id="data">(.*?)</script>', page, re.DOTALL)
    assert data is not None
    assert not set("<>&\u2028\u2029\n") & set(data[1])


def test_nothing_is_from_elsewhere(latents: Latents) -> None:
    page = page_of(latents=latents)
    assert "http" not in page.replace("http-equiv", "")
    assert all(address.startswith(("#", "data:,")) for address in Elements(page).addresses)
    assert "default-src 'none'" in page
    for forbidden in ("fetch(", "XMLHttpRequest", "innerHTML", "insertAdjacentHTML", "eval("):
        assert forbidden not in page


def test_names_with_no_utf8_form_are_written(tmp_path: Path) -> None:
    write_report(tmp_path / "a.html", [made_result("sae-\udcff")], title="of \udcff")
    assert b"of ?" in (tmp_path / "a.html").read_bytes()


@pytest.mark.parametrize("vocabulary", [49_152, 256_000])
def test_4608_latents_are_under_15_mb(vocabulary: int) -> None:
    drawn = made_latents(4608, vocabulary=vocabulary)  # no words twice: the worst case
    texts = {token: f" {token:x}" for token in range(vocabulary)}
    page = report_page(
        [made_result("one")], title="A", latents={"one": drawn}, token_texts={"one": texts}
    )
    assert 1e6 < len(page.encode()) < 15e6


def test_a_page_needs_a_result() -> None:
    with pytest.raises(BadInputError, match="no result to show"):
        report_page([], title="A")


def test_two_results_of_one_name_are_refused() -> None:
    with pytest.raises(BadInputError, match="two results are named 'one'"):
        report_page([made_result("one"), made_result("one")], title="A")


def test_another_schema_is_refused() -> None:
    with pytest.raises(BadInputError, match="schema 1, and a page shows schema 2"):
        report_page([made_result("one", schema=1)], title="A")


def test_a_result_that_is_not_whole_is_refused() -> None:
    broken = made_result("one", kl={"value": "many", "low": None, "high": None})
    with pytest.raises(BadInputError, match=r"not whole, kl\.value"):
        report_page([broken], title="A")


def test_long_curves_are_thinned_and_keep_their_ends(latents: Latents) -> None:
    from saeflow.evaluate.report.data import training_curves

    lines = [{"step": step, "loss": 1 / (step + 1), "held_out_fvu": np.nan} for step in range(5000)]
    (curve,) = training_curves({"one": lines, "none": []})
    points = curve["series"]["loss"]
    assert len(points) <= 600
    assert points[0] == [0, 1.0]
    assert points[-1] == [4999, 1 / 5000]
    steps = [point[0] for point in points[:-1]]
    assert steps == list(range(0, 4999, curve["every"]))
    assert curve["series"]["held_out_fvu"][0] == [0, None]
