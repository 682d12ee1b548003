"""A real Chromium for tests of pages: found, started, and a visit that keeps what a page said and asked for."""

import os
import shutil
from contextlib import contextmanager

import pytest

CHROMIUM = os.environ.get("SINKSCOPE_CHROMIUM") or shutil.which("chromium") or shutil.which("google-chrome")
REQUIRED = os.environ.get("SINKSCOPE_REQUIRE_BROWSER") == "1"
ARGUMENTS = ["--no-sandbox", "--headless", "--disable-gpu", "--disable-background-networking"]

try:
    from axe_playwright_python.sync_playwright import Axe
    from playwright.sync_api import sync_playwright
except ImportError:
    Axe = sync_playwright = None


@contextmanager
def chromium():
    """Give a running browser; skip, or fail where one is required, if there is none."""
    if sync_playwright is None or CHROMIUM is None:
        reason = "no Chromium (set SINKSCOPE_CHROMIUM) or no playwright on this machine"
        if REQUIRED:
            pytest.fail(f"SINKSCOPE_REQUIRE_BROWSER=1, but there is {reason}")
        pytest.skip(reason)
    with sync_playwright() as driver:
        started = driver.chromium.launch(executable_path=CHROMIUM, args=ARGUMENTS)
        yield started
        started.close()


class Visit:
    """A loaded page with everything it said and asked for."""

    def __init__(self, browser, address, **viewport):
        self.page = browser.new_page(viewport=viewport or {"width": 1280, "height": 900})
        self.said, self.asked = [], []
        self.page.on("console", lambda message: self.said.append((message.type, message.text)))
        self.page.on("pageerror", lambda error: self.said.append(("error", str(error))))
        self.page.on("dialog", lambda dialog: (self.said.append(("dialog", dialog.message)), dialog.dismiss()))
        self.page.on("request", lambda request: self.asked.append(request.url))
        self.page.goto(address if isinstance(address, str) else address.as_uri())
        self.page.wait_for_selector("body[data-ready]", timeout=60_000)

    def quiet(self, own="file:"):
        """Say whether nothing was said, and nothing asked for but what is the page's own."""
        outside = [url for url in self.asked if not url.startswith(("data:", "blob:", own))]
        return self.said == [] and outside == []


def hindrances(page):
    """What axe finds in the way of anyone, of any weight, in the theme and at the width that is shown."""
    return [
        f"{each['id']}: {[n['html'][:90] for n in each['nodes'][:3]]}"
        for each in Axe().run(page).response["violations"]
    ]
