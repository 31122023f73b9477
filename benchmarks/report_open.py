"""How large report.html is, and how long Chromium takes to open it, for 4,608 latents.

python benchmarks/report_open.py [--latents 4608] [--runs 5]

Opens the page from disk in a fresh headless Chromium, several times. Says when its scores are
painted, and when its latents can be searched, from the start of the navigation. Tokens are drawn
evenly from a vocabulary of 49,152, so that nothing compresses as well as real text.
"""

import argparse
import shutil
import statistics
import sys
import tempfile
import time
from pathlib import Path

from selenium import webdriver

from saeflow.evaluate.report.page import write_report

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests" / "harness"))

from made_results import made_latents, made_result  # the tests' own

VOCABULARY = 49_152
SIZE_BOUND, TIME_BOUND = 15e6, 2.0
SWITCHES = (
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
)
LISTED = "return document.querySelectorAll('[role=option]').length > 0 && performance.now()"
PAINTED = "return performance.getEntriesByName('first-contentful-paint')[0]?.startTime"


def main() -> int:
    arguments = argparse.ArgumentParser(description="Size of report.html, and time to open it.")
    arguments.add_argument("--latents", type=int, default=4608)
    arguments.add_argument("--runs", type=int, default=5)
    options = arguments.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        page = Path(folder) / "report.html"
        size = write(page, options.latents)
        times = [opened(page) for _ in range(options.runs)]
    painted, listed = (statistics.median(run[at] for run in times) for at in (0, 1))
    print(f"{options.latents:,} latents: {size / 1e6:.1f} MB")
    print(f"scores painted after {painted:.2f} s, latents listed after {listed:.2f} s (medians)")
    print(f"bounds: {SIZE_BOUND / 1e6:.0f} MB, {TIME_BOUND:.0f} s")
    return int(size >= SIZE_BOUND or listed >= TIME_BOUND)


def write(page: Path, latents: int) -> int:
    drawn = made_latents(latents, vocabulary=VOCABULARY)
    texts = {token: f" {token:x}" for token in range(VOCABULARY)}
    started = time.perf_counter()
    write_report(
        page, [made_result("sae")], title="", latents={"sae": drawn}, token_texts={"sae": texts}
    )
    print(f"written in {time.perf_counter() - started:.1f} s")
    return page.stat().st_size


def opened(page: Path) -> tuple[float, float]:
    """Seconds until the scores are painted, and until latents are listed and can be searched."""
    options = webdriver.ChromeOptions()
    options.binary_location = shutil.which("chromium") or shutil.which("google-chrome") or ""
    options.page_load_strategy = "none"
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        for switch in (*SWITCHES, f"--user-data-dir={folder}"):
            options.add_argument(switch)
        service = webdriver.ChromeService(shutil.which("chromedriver"))
        with webdriver.Chrome(options=options, service=service) as browser:
            browser.get(page.as_uri())
            listed = False
            while not listed:
                listed = browser.execute_script(LISTED)
            return browser.execute_script(PAINTED) / 1e3, listed / 1e3


if __name__ == "__main__":
    sys.exit(main())
