"""What the tests of the report share: one page of a run, and a browser to open pages in."""

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from made_results import TEXTS, made_latents, made_result, made_training

from saeflow.evaluate.latents.result import Latents
from saeflow.evaluate.report.page import write_report

if TYPE_CHECKING:
    from selenium.webdriver import Chrome

_BROWSERS = ("chromium", "chromium-browser", "google-chrome")
_SWITCHES = (
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
)


@pytest.fixture(scope="session")
def results() -> list[dict[str, Any]]:
    """Of three SAEs of a run, by L0."""
    return [
        made_result(f"topk-k{k}", l0=float(k), quality=quality)
        for k, quality in ((16, 0.87), (32, 0.93), (64, 0.958))
    ]


@pytest.fixture(scope="session")
def latents() -> Latents:
    return made_latents(240)


@pytest.fixture(scope="session")
def report(
    results: list[dict[str, Any]], latents: Latents, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """The page of the run: curves of all SAEs, latents of the first two."""
    path = tmp_path_factory.mktemp("report") / "report.html"
    names = [result["name"] for result in results]
    write_report(
        path,
        results,
        title="A run",
        latents=dict.fromkeys(names[:2], latents),
        token_texts=dict.fromkeys(names[:2], TEXTS),
        training={name: made_training(0.3 / (at + 1)) for at, name in enumerate(names)},
    )
    return path


@pytest.fixture(scope="session")
def chromium(tmp_path_factory: pytest.TempPathFactory) -> "Iterator[Chrome]":
    """A headless Chromium of its own, without the network."""
    webdriver = pytest.importorskip("selenium.webdriver", reason="selenium is not installed")
    found = next(filter(None, map(shutil.which, _BROWSERS)), None)
    driver = shutil.which("chromedriver")
    if found is None or driver is None:
        pytest.skip("there is no Chromium, or no chromedriver, on this machine")
    options = webdriver.ChromeOptions()
    options.binary_location = found
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    for switch in (*_SWITCHES, f"--user-data-dir={tmp_path_factory.mktemp('browser')}"):
        options.add_argument(switch)
    browser = webdriver.Chrome(options=options, service=webdriver.ChromeService(driver))
    yield browser
    browser.quit()
