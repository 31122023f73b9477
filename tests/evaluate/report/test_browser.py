"""The page as Chromium shows it."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from made_results import TEXTS, made_latents, made_result

from saeflow.evaluate.latents.result import Latents
from saeflow.evaluate.report.page import write_report

if TYPE_CHECKING:
    from selenium.webdriver import Chrome
    from selenium.webdriver.remote.webelement import WebElement

LAPTOP, PHONE = (1440, 900), (390, 844)
HOSTILE = "<img src=x onerror='window.hacked = 1'></script><script>window.hacked = 1</script>"

Open = Callable[..., "Page"]


class Page:
    """A page that was opened, and what a person does with it."""

    def __init__(self, browser: "Chrome") -> None:
        self.browser = browser

    def find(self, selector: str) -> "WebElement":
        return self.browser.find_element("css selector", selector)

    def text(self, selector: str) -> str:
        return str(self.find(selector).get_property("textContent"))

    def run(self, script: str) -> Any:
        return self.browser.execute_script(script)

    def until(self, script: str) -> None:
        """Wait for something to be so."""
        from selenium.webdriver.support.wait import WebDriverWait

        WebDriverWait(self.browser, 20, 0.02).until(lambda _: self.run(f"return {script}"))

    def press(self, *keys: str) -> None:
        """Press keys, wherever the focus is."""
        from selenium.webdriver import ActionChains
        from selenium.webdriver.common.keys import Keys

        named = [getattr(Keys, key.upper()) if len(key) > 1 else key for key in keys]
        ActionChains(self.browser).send_keys(*named).perform()

    def latents_are_there(self) -> None:
        self.until("document.querySelectorAll('[role=option]').length > 0")

    def search(self, words: str, told: str) -> None:
        box = self.find("#search")
        box.clear()
        box.send_keys(words)
        self.until(f"document.querySelector('.told').textContent.startsWith({told!r})")

    def numbers(self) -> list[int]:
        """Of the latents whose rows are drawn."""
        rows = self.run(
            "return [...document.querySelectorAll('.row .number')].map(e => e.textContent)"
        )
        return [int(number) for number in rows]


@pytest.fixture
def open_page(chromium: "Chrome") -> Open:
    """Open a page at a size, light or dark, as a new one."""

    def opened(path: Path, size: tuple[int, int] = LAPTOP, scheme: str = "light") -> Page:
        chromium.get("about:blank")
        log(chromium, "browser")
        log(chromium, "performance")
        metrics = {"width": size[0], "height": size[1], "deviceScaleFactor": 1}
        chromium.execute_cdp_cmd(
            "Emulation.setDeviceMetricsOverride", {**metrics, "mobile": size == PHONE}
        )
        features = [
            {"name": "prefers-color-scheme", "value": scheme},
            {"name": "prefers-reduced-motion", "value": "reduce"},  # nothing slides under a click
        ]
        chromium.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})
        chromium.get(path.as_uri())
        return Page(chromium)

    return opened


def log(browser: "Chrome", of: str) -> list[dict[str, Any]]:
    """What a browser has noted since this was last asked for."""
    return list(browser.get_log(of))  # type: ignore[no-untyped-call]


def requests(browser: "Chrome") -> list[str]:
    """The addresses of everything that the page has asked for."""
    events = [json.loads(entry["message"])["message"] for entry in log(browser, "performance")]
    return [
        event["params"]["request"]["url"]
        for event in events
        if event["method"] == "Network.requestWillBeSent"
    ]


def test_it_opens_from_disk_without_an_error_or_a_request(report: Path, open_page: Open) -> None:
    page = open_page(report)
    page.latents_are_there()
    assert log(page.browser, "browser") == []
    asked = [address for address in requests(page.browser) if not address.startswith("data:")]
    assert asked == [report.as_uri()]


def test_everything_of_a_result_is_in_the_page(
    report: Path, results: list[dict[str, Any]], open_page: Open
) -> None:
    page = open_page(report)
    assert page.text(".verdict") == results[0]["verdict"]
    assert json.loads(page.text(".raw pre")) == results[0]
    tiles = page.text(".tiles")
    score = results[0]["scores"]["zero"]["ratio_of_sums"]
    assert f"{score['value']:.4f}{score['low']:.4f} to {score['high']:.4f}" in tiles
    assert page.run("return document.querySelectorAll('#scores .bar').length") == 5
    for section in ("breakdown", "reconstruction", "sparsity", "training", "provenance"):
        assert page.find(f"#{section} h2").is_displayed()


def test_a_figure_that_is_missing_is_said(tmp_path: Path, open_page: Open) -> None:
    none = {"value": None, "low": None, "high": None}
    score = {"ratio_of_sums": none, "mean_of_ratios": none, "items": 0, "left_out": 9}
    write_report(tmp_path / "a.html", [made_result("one", scores={"zero": score})], title="A")
    page = open_page(tmp_path / "a.html")
    page.until("document.querySelector('#scores svg')")
    assert "Score against zero\N{EN DASH}no interval" in page.text(".tiles")
    assert "this ablation costs next to nothing" in page.text("#scores .chart")
    assert not page.find("#latents").is_displayed()
    assert not page.find("#comparison").is_displayed()
    assert log(page.browser, "browser") == []


def test_a_latents_details_are_its_own(report: Path, latents: Latents, open_page: Open) -> None:
    page = open_page(report)
    page.latents_are_there()
    page.search("17", "11 of 240")  # and 170 to 179
    assert page.numbers()[0] == 17
    page.until("document.querySelector('#latent-name').textContent === 'Latent 17'")
    facts = page.text(".latent .pairs")
    assert f"{latents.fired[17]:,} of {latents.rows:,}" in facts
    contexts = page.run(
        "return [...document.querySelectorAll('blockquote')].map(e => e.textContent)"
    )
    words = [TEXTS[int(token)] for token in latents.contexts.tokens[17, 0]]
    assert contexts[0] == "".join(words).replace("\n", "↵").lstrip(" ")
    assert latents.output_tokens is not None
    first = TEXTS[int(latents.output_tokens.top[17, 0])]
    assert page.text(".outputs.top code").replace("␣", " ").replace("↵", "\n") == first


def test_search_by_words(report: Path, latents: Latents, open_page: Open) -> None:
    page = open_page(report)
    page.latents_are_there()
    falcon = next(token for token, text in TEXTS.items() if text == " falcon")
    tokens, shares = latents.contexts.tokens, latents.contexts.activations
    assert latents.output_tokens is not None
    outputs = [latents.output_tokens.top, latents.output_tokens.bottom]
    expected = {
        "active": ((tokens == falcon) & (shares > 0.0005)).any((1, 2)),
        "output": sum((ids == falcon).any(1) for ids in outputs) > 0,
        "context": (tokens == falcon).any((1, 2)),
    }
    for where, there in expected.items():
        page.run(f"""const where = document.querySelector('[aria-label=Where]');
            where.value = {where!r}; where.dispatchEvent(new Event('change'))""")
        page.search("falcon", f"{there.sum()} of 240")
        assert page.numbers()[0] == there.argmax()
        assert "falcon" in page.text(".latent .hit")


def test_filter_and_order(report: Path, latents: Latents, open_page: Open) -> None:
    page = open_page(report)
    page.latents_are_there()

    def pick(label: str, value: str) -> None:
        page.run(f"""const choice = document.querySelector('[aria-label={label}]');
            choice.value = {value!r}; choice.dispatchEvent(new Event('change'))""")

    pick("Filter", "dead")
    dead = (latents.fired == 0).nonzero()[0]
    page.until(f"document.querySelector('.told').textContent === '{len(dead)} of 240 latents'")
    assert page.numbers()[:3] == list(dead[:3])
    pick("Filter", "all")
    pick("Order", "strong")
    strongest = int(latents.maximum.argmax())
    page.until(f"document.querySelector('.row .number').textContent === '{strongest}'")


def test_the_keyboard_alone_is_enough(report: Path, open_page: Open) -> None:
    page = open_page(report)
    page.latents_are_there()
    page.press("tab")
    assert page.run("return document.activeElement.className") == "skip"
    page.press("/")
    assert page.run("return document.activeElement.id") == "search"
    page.press("1", "0")
    page.until("document.querySelector('.told').textContent.includes(' of ')")
    page.until("document.querySelector('#latent-name').textContent.startsWith('Latent 10')")
    page.press("down")
    assert page.run("return document.activeElement.getAttribute('role')") == "listbox"
    page.press("down")
    assert page.text("#latent-name").startswith("Latent 100")
    selected = (
        "document.getElementById(document.activeElement.getAttribute('aria-activedescendant'))"
    )
    assert page.run(f"return {selected}.getAttribute('aria-selected')") == "true"
    page.press("end")
    assert page.text("#latent-name").startswith("Latent 109")
    page.press("home")
    assert page.text("#latent-name").startswith("Latent 10")


def test_a_point_of_the_frontier_chooses_its_sae(
    report: Path, results: list[dict[str, Any]], open_page: Open
) -> None:
    page = open_page(report)
    page.until("document.querySelectorAll('.point').length === 3")
    page.run("document.querySelectorAll('.point')[1].focus()")
    assert "L0  32" in page.text("#tip")
    page.press("enter")
    page.until(f"document.querySelector('.verdict').textContent === {results[1]['verdict']!r}")
    page.until("document.activeElement.id === 'chosen-point'")
    page.find("#comparison tr:nth-child(3) button").click()
    page.until(f"document.querySelector('.verdict').textContent === {results[2]['verdict']!r}")
    page.until("document.activeElement.id === 'chosen-row'")
    assert not page.find("#latents").is_displayed()  # of this one, none are there


def test_the_address_keeps_what_is_shown(report: Path, open_page: Open) -> None:
    page = open_page(report)
    page.browser.get("about:blank")
    page.browser.get(report.as_uri() + "#sae=topk-k32&latent=42")
    page.latents_are_there()
    assert page.text("#latent-name") == "Latent 42"
    assert page.run("return document.querySelector('#sae').selectedOptions[0].text") == "topk-k32"


@pytest.mark.parametrize("size", [LAPTOP, PHONE], ids=["laptop", "phone"])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_it_fits_every_screen(
    report: Path, size: tuple[int, int], scheme: str, open_page: Open
) -> None:
    page = open_page(report, size, scheme)
    page.latents_are_there()
    assert page.run("return document.documentElement.scrollWidth") <= size[0]
    light = page.run("return getComputedStyle(document.body).color.match(/[0-9]+/)[0] > 128")
    assert light == (scheme == "dark")
    page.find("#theme").click()
    assert (
        page.run("return getComputedStyle(document.body).color.match(/[0-9]+/)[0] > 128") != light
    )
    page.run("localStorage.clear()")
    assert log(page.browser, "browser") == []


def test_hostile_text_is_shown_and_not_run(tmp_path: Path, open_page: Open) -> None:
    name = f"sae {HOSTILE}"
    result = made_result(
        name,
        model=HOSTILE,
        verdict=HOSTILE,
        options={HOSTILE: HOSTILE},
        mismatches=[{"field": HOSTILE, "sae": HOSTILE, "here": HOSTILE}],
    )
    write_report(
        tmp_path / "a.html",
        [result, made_result("__proto__")],
        title=HOSTILE,
        latents={name: made_latents(40)},
        token_texts={name: dict.fromkeys(TEXTS, HOSTILE + "\u202e\0")},
        training={name: [{"step": 1, "loss": 1.0, HOSTILE: 2.0}]},
        notes=[HOSTILE],
    )
    page = open_page(tmp_path / "a.html")
    page.latents_are_there()
    assert page.run("return window.hacked") is None
    assert page.run("return document.images.length") == 0
    assert page.text(".verdict") == HOSTILE
    assert page.text("blockquote").startswith(HOSTILE + "\\u202e\\u0000")
    assert log(page.browser, "browser") == []
