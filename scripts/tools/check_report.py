"""A report in a browser: it loads without errors or requests, its tables sort, its charts draw.

Needs Chromium with its driver (Debian: ``apt install chromium chromium-driver``) and ``pip install
selenium``. Writes pictures of the page in light mode, in dark mode and on a phone into the folder
``--pictures``, or beside the report. The exit status is 1 if anything is wrong.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from selenium import webdriver
from selenium.webdriver.chrome.service import Service
from selenium.webdriver.common.by import By
from selenium.webdriver.support.ui import WebDriverWait

VIEWS = {"light": (1000, 1400), "dark": (1000, 1400), "phone": (390, 844)}
WAIT_S = 30
PAPER = 700  # pixels between the margins of a page


@contextmanager
def opened(page: Path, view: str) -> Iterator[Any]:
    """Open a page in Chromium without a network."""
    options = webdriver.ChromeOptions()
    for argument in ("--headless=new", "--no-sandbox", "--disable-gpu", "--hide-scrollbars"):
        options.add_argument(argument)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    browser = webdriver.Chrome(options=options, service=Service(shutil.which("chromedriver")))
    try:
        width, height = VIEWS[view]
        size = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": view == "phone"}
        browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
        scheme = [{"name": "prefers-color-scheme", "value": "dark" if view == "dark" else "light"}]
        browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": scheme})
        browser.get(page.resolve().as_uri())
        charts = len(browser.find_elements(By.CSS_SELECTOR, ".plotly-graph-div"))
        WebDriverWait(browser, WAIT_S).until(
            lambda b: len(b.find_elements(By.CSS_SELECTOR, ".plotly-graph-div .main-svg")) >= charts
        )
        yield browser
    finally:
        browser.quit()


def problems(browser: Any, page: Path) -> list[str]:
    """List what is wrong with an open page."""
    wrong = [f"the console says: {entry['message']}" for entry in browser.get_log("browser")]
    for entry in browser.get_log("performance"):
        message = json.loads(entry["message"])["message"]
        if message["method"] == "Network.requestWillBeSent":
            url = message["params"]["request"]["url"]
            if url != page.resolve().as_uri() and not url.startswith("data:"):
                wrong.append(f"it requests {url[:80]}")
    bars = "g.points path, g.points .point, path.js-line"
    if not browser.find_elements(By.CSS_SELECTOR, bars):
        wrong.append("no chart is drawn")
    wide = browser.execute_script("return document.body.scrollWidth - window.innerWidth")
    if wide > 0:
        wrong.append(f"it is {wide} pixels wider than the screen")
    return wrong + unsorted(browser) + cut_off_on_paper(browser)


def cut_off_on_paper(browser: Any) -> list[str]:
    """List the charts that are wider than a page of paper when it is printed."""
    browser.execute_script("dispatchEvent(new Event('beforeprint'))")
    widths = browser.execute_script(
        "return [...document.querySelectorAll('.plotly-graph-div')].map(c => c._fullLayout.width)"
    )
    browser.execute_script("dispatchEvent(new Event('afterprint'))")
    return [f"on paper a chart is {width} pixels wide" for width in widths if width > PAPER]


def unsorted(browser: Any) -> list[str]:
    """Sort the layers by every column, both ways, and list the columns that are not in order."""
    wrong = []
    heads = browser.find_elements(By.CSS_SELECTOR, "#layers th")
    for number, head in enumerate(heads):
        for way in ("ascending", "descending"):
            browser.execute_script("arguments[0].click()", head)
            cells = f"#layers td:nth-child({number + 1})"
            values = browser.execute_script(
                "return [...document.querySelectorAll(arguments[0])].map(c => c.dataset.value)",
                cells,
            )
            numbers = [float(v) for v in values if v and _number(v)]
            if numbers and numbers != sorted(numbers, reverse=way == "descending"):
                wrong.append(f"column {head.text!r} is not {way}")
    return wrong


def _number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def main() -> int:
    """Check one page, print what is wrong, and take pictures."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("page", type=Path)
    parser.add_argument("--pictures", type=Path, help="folder; that of the page if left out")
    options = parser.parse_args()
    if not options.page.is_file():
        raise SystemExit(f"{options.page} does not exist.")
    folder, wrong = options.pictures or options.page.parent, list[str]()
    for view in VIEWS:
        with opened(options.page, view) as browser:
            browser.save_screenshot(str(folder / f"{options.page.stem}_{view}.png"))
            wrong += [f"{view}: {problem}" for problem in problems(browser, options.page)]
    print("\n".join(wrong) or f"{options.page}: nothing is wrong")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
