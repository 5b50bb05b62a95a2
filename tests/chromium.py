"""A browser to look at pages with.

Needs Chromium, its driver and selenium; DIFFREG_BROWSER=required makes their lack a failure.
"""

import importlib.util
import os
import shutil
from pathlib import Path

import pytest

DEFECTS = Path(__file__).with_name("browser.js").read_text(encoding="utf-8")
CHROMIUM = ("chromium", "chromium-browser", "google-chrome")
# A4 less the page's margins, at 96 pixels an inch.
PRINTED = round((210 - 2 * 14) / 25.4 * 96)
VIEWS = {"400": 400, "700": 700, "1000": 1000, "1400": 1400, "print": PRINTED}


def missing() -> str:
    """What there is no browser test without; "" where all of it is there."""
    lacks = [] if importlib.util.find_spec("selenium") else ["selenium (pip install selenium)"]
    if not any(map(shutil.which, CHROMIUM)):
        lacks.append("Chromium (Debian, Ubuntu: apt install chromium)")
    if not shutil.which("chromedriver"):
        lacks.append("chromedriver (Debian, Ubuntu: apt install chromium-driver)")
    return ", ".join(lacks)


def started():
    """The browser, until it is no longer needed; skips or fails where there is none."""
    lacks = missing()
    if lacks and os.environ.get("DIFFREG_BROWSER") == "required":
        pytest.fail(f"DIFFREG_BROWSER is required, but there is no {lacks}")
    if lacks:
        pytest.skip(f"no browser to look at the pages with: {lacks}")
    from selenium import webdriver

    options = webdriver.ChromeOptions()
    options.binary_location = next(filter(None, map(shutil.which, CHROMIUM)))
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    for option in (
        "--headless=new",
        "--no-sandbox",
        "--disable-dev-shm-usage",
        "--hide-scrollbars",
    ):
        options.add_argument(option)
    service = webdriver.ChromeService(shutil.which("chromedriver"))
    driver = webdriver.Chrome(options=options, service=service)
    yield driver
    driver.quit()


def look(browser, page: Path, view: str) -> None:
    """Opens a page as wide as asked, or as it is printed."""
    size = {"width": VIEWS[view], "height": 900, "deviceScaleFactor": 1, "mobile": False}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    media = {"media": "print" if view == "print" else "screen"}
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", media)
    browser.get(page.as_uri())


def defects(browser, page: Path, view: str) -> list[str]:
    look(browser, page, view)
    return browser.execute_script(DEFECTS)
