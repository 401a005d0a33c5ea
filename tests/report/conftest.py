"""Headless Chromium for the tests of a report's page."""

import os
import shutil
import warnings
from collections.abc import Iterator
from typing import Any

import pytest

FLAGS = (
    "--headless=new --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking "
    "--disable-component-update --disable-sync --disable-dev-shm-usage --window-size=1280,900"
)


@pytest.fixture(scope="session")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """Chromium with Debian's driver. Skips where it is missing; under CI=true that is a failure."""
    chromium, driver = shutil.which("chromium"), shutil.which("chromedriver")
    try:
        from selenium import webdriver
        from selenium.webdriver.chrome.service import Service
    except ImportError:
        chromium = None
    if not chromium or not driver:
        assert os.environ.get("CI") != "true", "CI needs chromium, chromium-driver (make browser) and selenium"
        pytest.skip("chromium, chromedriver or selenium is missing; `make browser` installs the first two")
    options = webdriver.ChromeOptions()
    options.binary_location = chromium
    for flag in FLAGS.split():
        options.add_argument(flag)
    options.add_argument(f"--user-data-dir={tmp_path_factory.mktemp('profile')}")
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    os.environ["SE_OFFLINE"] = "true"  # Selenium Manager must not look for drivers
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)
        session = webdriver.Chrome(options=options, service=Service(driver))
        yield session
        session.quit()
