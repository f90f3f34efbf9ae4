"""The first page in a real JupyterLab, in a headless browser: a slider is moved, and the picture changes."""

import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request

import pytest

from sparserobust import notebook_runner

BROWSERS = ("chromium", "chromium-browser", "google-chrome")
browser_path = next((found for name in BROWSERS if (found := shutil.which(name))), None)


@pytest.fixture
def lab(tmp_path):
    """The address of a JupyterLab that serves a copy of the first notebook."""
    folder = tmp_path / "notebooks"
    folder.mkdir()
    shutil.copy(notebook_runner.find("00_start_here"), folder)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    options = ["--no-browser", "--allow-root", f"--port={port}", f"--notebook-dir={folder}", "--ServerApp.token=",
               "--ServerApp.password=", f"--LabApp.workspaces_dir={tmp_path / 'workspaces'}"]
    elsewhere = {"SPARSEROBUST_STORE": str(tmp_path / "runs"), "SPARSEROBUST_FIGURES": str(tmp_path / "figures")}
    server = subprocess.Popen([sys.executable, "-m", "jupyterlab", *options], env=os.environ | elsewhere,
                              stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    address = f"http://127.0.0.1:{port}/lab"
    try:
        for _ in range(120):
            try:
                urllib.request.urlopen(address, timeout=5).close()
                break
            except (urllib.error.URLError, OSError):
                assert server.poll() is None, "JupyterLab ended"
                time.sleep(0.5)
        yield address
    finally:
        server.terminate()
        server.wait()


def idle(page) -> bool:
    """Whether the kernel is there and has nothing to do; waits for that up to a minute."""
    for _ in range(60):
        if page.get_by_text("| Idle").count():
            return True
        page.wait_for_timeout(1000)
    return False


@pytest.mark.slow
@pytest.mark.skipif(browser_path is None, reason=f"no browser: install one of {', '.join(BROWSERS)}")
def test_sliders_redraw_their_pictures(lab):
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=browser_path, args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": 1400, "height": 9_000})  # all cells at once
        page.goto(f"{lab}/tree/00_start_here.ipynb?reset")
        page.locator(".jp-Notebook").first.wait_for(timeout=120_000)
        handles, pictures = page.locator(".noUi-handle"), page.locator(".widget-html-content img")
        for second in range(300):
            # asked again now and then: on a busy machine the kernel may not have been there the first time
            if second % 60 == 0 and pictures.count() == 0 and idle(page):
                page.get_by_role("menuitem", name="Run", exact=True).click()
                page.get_by_text("Run All Cells", exact=True).click()
            page.wait_for_timeout(1000)  # while a selector is waited for, JupyterLab may stand still
            if pictures.count() == 3:
                break
        assert handles.count() == pictures.count() == 3
        for number in range(3):
            handle, picture = handles.nth(number), pictures.nth(number)
            before = picture.get_attribute("src")  # the picture itself; each redrawing is another element
            assert picture.evaluate("picture => picture.naturalWidth") > 300
            handle.focus()
            handle.press("ArrowRight")
            handle.press("ArrowRight")
            deadline = time.monotonic() + 30
            while picture.get_attribute("src") == before and time.monotonic() < deadline:
                page.wait_for_timeout(200)
            assert picture.get_attribute("src") != before, f"slider {number} changes nothing"
        if shown := os.environ.get("SPARSEROBUST_SCREENSHOT"):
            page.screenshot(path=shown)
        browser.close()
