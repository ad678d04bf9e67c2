"""A real browser that a test drives: Chromium and its driver from the system's packages."""

import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from selenium import webdriver
from selenium.webdriver.support.ui import WebDriverWait

_PATIENCE_SECONDS = 60


class Browser:
    """One window."""

    def __init__(self, driver: webdriver.Chrome) -> None:
        self._driver = driver

    def open(self, url: str) -> None:
        self._driver.get(url)

    def run(self, script: str) -> Any:
        """What a script returns."""
        return self._driver.execute_script(script)

    def wait(self, script: str, wanted: Callable[[Any], bool] = bool) -> Any:
        """What a script returns as soon as that is wanted; while the page loads anew there may be nothing to ask."""
        ignored = (Exception,)
        waiting = WebDriverWait(self._driver, _PATIENCE_SECONDS, poll_frequency=0.03, ignored_exceptions=ignored)
        found: list[Any] = []

        def is_there(driver: webdriver.Chrome) -> bool:
            found[:] = [driver.execute_script(script)]
            return wanted(found[0])

        waiting.until(is_there, f"{script}: {found}")
        return found[0]

    def resize(self, width: int, height: int) -> None:
        """To any size, a telephone's too."""
        size = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": False}
        self._driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)

    def prefer(self, scheme: str) -> None:
        """light or dark."""
        wish = {"features": [{"name": "prefers-color-scheme", "value": scheme}]}
        self._driver.execute_cdp_cmd("Emulation.setEmulatedMedia", wish)

    def complaints(self) -> list[str]:
        """Errors that the page or its scripts caused since the last question."""
        return [entry["message"] for entry in self._driver.get_log("browser") if entry["level"] == "SEVERE"]

    def picture(self, path: Path) -> None:
        """The whole page as a PNG, however long it is."""
        width, height = self.run("return [innerWidth, Math.ceil(document.body.getBoundingClientRect().height)]")
        self.resize(width, height)
        self._driver.save_screenshot(str(path))


@contextmanager
def browser(folder: Path) -> Iterator[Browser]:
    """A browser with an empty profile in `folder`; the test is left out, with the reason, where there is none."""
    program, driver = shutil.which("chromium"), shutil.which("chromedriver")
    if program is None or driver is None:
        pytest.skip("Chromium is not installed: apt-get install chromium chromium-driver")
    options = webdriver.ChromeOptions()
    options.binary_location = program
    for word in ("--headless=new", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", f"--user-data-dir={folder}"):
        options.add_argument(word)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    opened = webdriver.Chrome(options, webdriver.ChromeService(driver))
    try:
        yield Browser(opened)
    finally:
        opened.quit()
