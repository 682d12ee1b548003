"""Take docs/images/serve.png: ``sinkscope serve`` with SmolLM2, a typed text and gamma .2, in Chromium.

python docs/images/serve.py
"""

from __future__ import annotations

import shutil
import threading
from pathlib import Path

from playwright.sync_api import sync_playwright

import sinkscope as sk
from sinkscope.cli.live.bench import LiveModel
from sinkscope.cli.live.server import PageServer
from sinkscope.report.build import PageOptions, build_page

TEXT = (
    "The ferry left the harbour at six, while the lamps along the quay were still lit. Two gulls followed it as far as "
    "the breakwater, circled once, and then turned"
)
GAMMA = 0.2


def main() -> None:
    """Measure, serve, type, move gamma, take the picture."""
    model = sk.load_model("smollm2-135m")
    prompts = sk.Prompts.from_texts(sk.tasks.corpora.texts()[:4], model)
    reading = sk.run(model, prompts, [sk.KeyMass(), sk.Entropy(), sk.ValueNorm(), sk.MassiveActivations()])
    bench = LiveModel(model, reading)
    with PageServer(0) as server, sync_playwright() as driver:
        server.page = build_page(reading, PageOptions(figures=["sink_map"], live=bench.facts()))
        server.answers |= {"/run": bench.try_text, "/rows": bench.rows}
        threading.Thread(target=server.serve_forever, daemon=True).start()
        browser = driver.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox", "--headless"])
        page = browser.new_page(viewport={"width": 1280, "height": 1000})
        page.goto(server.address)
        page.fill("#live-text", TEXT)
        page.click("#live-run")
        page.locator("#live-status", has_text="Measured in").wait_for()
        page.locator("#live-gamma").fill(str(GAMMA))
        page.locator("#tried-said", has_text=f"With gamma {GAMMA} ").wait_for()
        target = Path(__file__).with_suffix(".png")
        page.locator("#live").screenshot(path=target)
        browser.close()
        server.shutdown()


if __name__ == "__main__":
    main()
