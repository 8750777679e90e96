"""The page that `tread-ssm app` serves, used in a real browser as people use it."""

from __future__ import annotations

import io
import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tests.app.runs import write_run
from tread_ssm.app.play import CLASS, Choice, Player, images_of
from tread_ssm.command import device
from tread_ssm.commands import app

pytestmark = pytest.mark.slow  # a server and a browser have to start
ROOT = Path(__file__).parents[2]
BROWSER = shutil.which("chromium") or shutil.which("google-chrome")
DRIVER = shutil.which("chromedriver")


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    folder = tmp_path_factory.mktemp("runs")
    return write_run(folder / "routed"), write_run(folder / "dense", classes=(), routed=False)


@pytest.fixture(scope="module")
def address(runs: tuple[Path, Path]) -> Iterator[str]:
    """Of the page, served by the real command."""
    pytest.importorskip("gradio", reason="the page needs the extra `app`")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    line = ["app", *(f"--run={run}" for run in runs), "--port", str(port), "--device", "cpu"]
    server = subprocess.Popen(
        [sys.executable, "-m", "tread_ssm", *line],
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )
    try:
        yield _once_served(f"http://127.0.0.1:{port}/", server)
    finally:
        server.terminate()
        server.wait(30)


def _once_served(address: str, server: subprocess.Popen[bytes]) -> str:
    end = time.monotonic() + 120
    while time.monotonic() < end and server.poll() is None:
        try:
            with urllib.request.urlopen(address, timeout=10):
                return address
        except (urllib.error.URLError, OSError):
            time.sleep(0.2)
    server.kill()
    raise AssertionError(server.communicate()[0].decode())


@pytest.fixture(scope="module")
def browser(address: str) -> Iterator[Any]:
    if BROWSER is None or DRIVER is None:
        pytest.skip("needs chromium (or google-chrome) and chromedriver")
    pytest.importorskip("selenium")
    from selenium import webdriver

    options = webdriver.ChromeOptions()
    options.binary_location = BROWSER
    for flag in ("headless=new", "no-sandbox", "disable-dev-shm-usage", "window-size=1280,1500"):
        options.add_argument(f"--{flag}")
    driver = webdriver.Chrome(options, webdriver.ChromeService(DRIVER))
    try:
        driver.get(address)
        yield driver
    finally:
        driver.quit()


def until(browser: Any, reached: Callable[[Any], Any], what: str) -> Any:
    """What `reached` gives once it is true; elements are replaced while the page changes."""
    from selenium.common.exceptions import StaleElementReferenceException
    from selenium.webdriver.support.ui import WebDriverWait

    wait = WebDriverWait(browser, 60, ignored_exceptions=[StaleElementReferenceException])
    return wait.until(reached, what)


def find(browser: Any, path: str) -> Any:
    """The first shown element of an XPath, waited for."""

    def shown(driver: Any) -> Any:
        return next((e for e in driver.find_elements("xpath", path) if e.is_displayed()), None)

    return until(browser, shown, f"nothing shown at {path}")


def press(browser: Any, text: str) -> None:
    find(browser, f"//button[normalize-space()='{text}']").click()


def fetched(source: str) -> np.ndarray:
    with urllib.request.urlopen(source, timeout=30) as file:
        return np.asarray(Image.open(io.BytesIO(file.read())).convert("RGB"))


def test_sampling_shows_the_images_and_what_the_weak_pass_saw(
    browser: Any, runs: tuple[Path, Path]
) -> None:
    press(browser, "Sample")
    find(browser, "//*[contains(., 'but not the class')]")
    shown = [e.get_attribute("src") for e in browser.find_elements("css selector", "img")]
    shown = [source for source in shown if source.startswith("http")]
    player = Player.load(runs[0], device("cpu"))
    choice = Choice(kind=CLASS, scale=1.5, weak_drop=0.5, steps=3, name="cat", seed=0, n=4)
    for image in images_of(player, choice):
        large = image.repeat(160 // image.shape[0], 0).repeat(160 // image.shape[1], 1)
        assert any(np.array_equal(fetched(source), large) for source in shown)

    find(browser, "//label[normalize-space()='routes']").click()
    find(browser, "//*[contains(text(), 'The weak pass drops')]")
    press(browser, "Sample")
    find(browser, "//*[contains(., 'those shown here')]")
    overlay = find(browser, "//*[@id='tokens']//img[@src]")
    picture = fetched(overlay.get_attribute("src"))
    assert picture.shape[1] > 2 * picture.shape[0]  # the whole image and three steps, side by side


def test_a_press_while_sampling_runs_is_not_forgotten(browser: Any) -> None:
    from selenium.webdriver.common.keys import Keys

    find(browser, "//label[normalize-space()='none']").click()
    press(browser, "Sample")
    find(browser, "//*[contains(., 'there is no weak pass')]")
    steps = find(browser, "//input[@aria-label='number input for Steps']")
    steps.send_keys(Keys.CONTROL, "a")
    steps.send_keys("250", Keys.TAB)
    press(browser, "Sample")
    find(browser, "//label[normalize-space()='classifier-free']").click()
    press(browser, "Sample")
    find(browser, "//*[contains(., 'but not the class')]")
    steps.send_keys(Keys.CONTROL, "a")
    steps.send_keys("3", Keys.TAB)


@pytest.mark.parametrize("width", [1280, 390])
def test_no_picture_is_cut_off(browser: Any, width: int) -> None:
    """Where a window is too narrow for all images of a row, they take several."""
    press(browser, "Sample")
    size = {"width": width, "height": 1500, "deviceScaleFactor": 1, "mobile": False}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)

    def inside(driver: Any) -> bool:
        return driver.execute_script(
            """
            const edges = (e) => e.getBoundingClientRect();
            const box = edges(document.querySelector("#images"));
            const shown = [...document.querySelectorAll("#images img")].map(edges);
            const last = Math.max(...shown.map(e => e.bottom));
            return shown.length >= 4 && shown.every(e => e.left >= box.left && e.right <= box.right)
                && box.right <= innerWidth && box.bottom - last < 30;  // and no empty rows
            """
        )

    try:
        until(browser, inside, f"a picture is cut off at {width} pixels")
    finally:
        browser.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})


def test_another_run_has_other_controls(browser: Any) -> None:
    find(browser, "//input[@aria-label='Run']").click()
    find(browser, "//ul//li[contains(., 'dense')]").click()

    def kinds(driver: Any) -> list[str]:
        return [e.text for e in driver.find_elements("css selector", "fieldset label") if e.text]

    until(browser, lambda driver: kinds(driver) == ["none", "another run"], "the kinds stay")
    assert not [e for e in browser.find_elements("css selector", "input[aria-label='Class']")
                if e.is_displayed()]  # fmt: skip
    press(browser, "Sample")
    find(browser, "//*[contains(., 'there is no weak pass')]")


def test_the_browser_loads_nothing_from_elsewhere(browser: Any, address: str) -> None:
    names = browser.execute_script(
        "return performance.getEntriesByType('resource').map(e => e.name)"
    )
    assert names and [n for n in names if not n.startswith((address, "data:", "blob:"))] == []


def test_without_gradio_it_says_what_to_install(
    runs: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    import importlib.util

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(importlib.util, "find_spec", lambda name: None)
        assert app.main(["--run", str(runs[0])]) == 2
    assert 'pip install "tread_ssm[app]"' in capsys.readouterr().err
