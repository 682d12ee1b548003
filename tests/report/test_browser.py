"""The page in a real Chromium: it loads in silence, asks the network for nothing, and a click shows the head."""

import os
import shutil

import numpy as np
import pytest
from PIL import Image

from sinkscope.report import write_report

CHROMIUM = os.environ.get("SINKSCOPE_CHROMIUM") or shutil.which("chromium") or shutil.which("google-chrome")
REQUIRED = os.environ.get("SINKSCOPE_REQUIRE_BROWSER") == "1"
ARGUMENTS = ["--no-sandbox", "--headless", "--disable-gpu", "--disable-background-networking"]

try:
    from playwright.sync_api import sync_playwright
except ImportError:
    sync_playwright = None


@pytest.fixture(scope="module")
def browser():
    if sync_playwright is None or CHROMIUM is None:
        reason = "no Chromium (set SINKSCOPE_CHROMIUM) or no playwright on this machine"
        if REQUIRED:
            pytest.fail(f"SINKSCOPE_REQUIRE_BROWSER=1, but there is {reason}")
        pytest.skip(reason)
    with sync_playwright() as driver:
        chromium = driver.chromium.launch(executable_path=CHROMIUM, args=ARGUMENTS)
        yield chromium
        chromium.close()


class Visit:
    """A loaded page with everything it said and asked for."""

    def __init__(self, browser, path, **viewport):
        self.page = browser.new_page(viewport=viewport or {"width": 1280, "height": 900})
        self.said, self.asked = [], []
        self.page.on("console", lambda message: self.said.append((message.type, message.text)))
        self.page.on("pageerror", lambda error: self.said.append(("error", str(error))))
        self.page.on("dialog", lambda dialog: (self.said.append(("dialog", dialog.message)), dialog.dismiss()))
        self.page.on("request", lambda request: self.asked.append(request.url))
        self.page.goto(path.as_uri())
        self.page.wait_for_selector("body[data-ready]", timeout=60_000)

    def quiet(self):
        outside = [url for url in self.asked if not url.startswith(("data:", "file:", "blob:"))]
        return self.said == [] and outside == []


@pytest.fixture(scope="module")
def written(build, tmp_path_factory):
    return write_report(build(), tmp_path_factory.mktemp("report") / "r.html")


@pytest.fixture
def visit(browser, written):
    seen = Visit(browser, written)
    yield seen
    seen.page.close()


def click_cell(page, layer, head, layers=6, heads=12):
    cells = page.locator("#grid .nsewdrag")
    cells.scroll_into_view_if_needed()
    box = cells.bounding_box()
    place = {"x": box["width"] * (head + 0.5) / heads, "y": box["height"] * (1 - (layer + 0.5) / layers)}
    cells.hover(position=place)
    page.locator("#grid .hovertext", has_text=f"layer {layer}, head {head}:").wait_for()
    cells.click(position=place)


def test_the_page_loads_in_silence(visit):
    assert visit.quiet(), (visit.said, visit.asked)
    assert visit.page.title() == "fake/six-layers"
    assert visit.page.locator("figure img").count() == 9
    widths = visit.page.eval_on_selector_all("figure img", "images => images.map(i => i.naturalWidth)")
    assert min(widths) > 300, "every figure was decoded"


def test_a_click_shows_that_head(visit, reading):
    page = visit.page
    for layer, head in ((3, 7), (0, 11)):
        click_cell(page, layer, head)
        page.locator("#detail-title", has_text=f"Layer {layer}, head {head},").wait_for()
        shown = page.evaluate("document.getElementById('c-mass').data[0].y")
        assert shown == pytest.approx(reading["key_mass"].values[0, layer, head].tolist(), rel=1e-6)
        kv = int(reading["kv_of_head"].values[head])
        norms = page.evaluate("document.getElementById('c-value').data[0].y")
        assert norms == pytest.approx(reading["value_norm"].values[0, layer, kv].tolist(), rel=1e-6)
    assert visit.quiet(), (visit.said, visit.asked)


def test_lists_serve_the_keyboard(visit, reading):
    page = visit.page
    page.select_option("#layer", "2")
    page.select_option("#head", "5")
    page.select_option("#prompt", "1")
    assert page.inner_text("#detail-title") == "Layer 2, head 5, prompt 1"
    assert page.locator("#tokens span").count() == 25
    shown = page.evaluate("document.getElementById('c-entropy').data[0].y")
    assert shown == pytest.approx(reading["entropy"].values[1, 2, 5, :25].tolist(), rel=1e-6)


def test_tokens_are_text(visit):
    page = visit.page
    texts = page.eval_on_selector_all("#tokens span", "spans => spans.map(s => s.textContent)")
    assert texts[7] == "␣</script><script>alert(1)</script>"[1:]
    assert texts[15] == "&amp;"
    assert texts[17] == "\\u202e"
    assert page.evaluate("document.querySelectorAll('#tokens script, #detail script').length") == 0
    assert not any(kind == "dialog" for kind, _ in visit.said)


def test_hover_tells_role_and_value(visit, reading):
    page = visit.page
    page.select_option("#layer", "5")
    page.select_option("#head", "0")
    page.locator("#tokens span").nth(10).hover()
    said = page.inner_text("#tip")
    mass, norm = reading["key_mass"].values[0, 5, 0, 10], reading["value_norm"].values[0, 5, 0, 10]
    assert said.splitlines()[:2] == [".", "position 10, role punctuation"]
    assert f"attention {mass:.3}"[:14] in said
    assert f"value norm {norm:.3}"[:14] in said


def test_other_map_and_small_screen(browser, evenly_spread, tmp_path):
    path = write_report(evenly_spread[["key_mass", "entropy"]], tmp_path / "r.html")
    seen = Visit(browser, path, width=390, height=800)
    page = seen.page
    assert "No sink found" in page.inner_text("#findings")
    page.select_option("#map", label="mean entropy [nat]")
    z = page.evaluate("document.getElementById('grid').data[0].z[0][0]")
    assert z == pytest.approx(float(evenly_spread["entropy"].isel(layer=0, head=0).mean()), rel=1e-4)
    assert page.evaluate("document.documentElement.scrollWidth") <= 390, "no sideways scrolling"
    assert page.locator("#c-value").is_hidden()
    assert seen.quiet(), (seen.said, seen.asked)
    page.close()


def test_attention_lies_on_the_prompts_picture(browser, reading, tmp_path):
    shape = (reading.sizes["prompt"], reading.sizes["key"])
    names = ("grid_row", "grid_col", "grid_tile", "grid_image", "box_left", "box_top", "box_right", "box_bottom")
    columns = {name: np.full(shape, np.nan) for name in names}
    for key, values in {3: (0, 0, 0, 0, 0, 0, 10, 8), 4: (0, 1, 0, 0, 10, 0, 20, 8)}.items():
        for name, value in zip(names, values, strict=True):
            columns[name][1, key] = value
    ds = reading.assign_coords({name: (("prompt", "key"), values) for name, values in columns.items()})
    path = write_report(ds, tmp_path / "r.html", images=[Image.new("RGB", (20, 8), "red")])
    seen = Visit(browser, path)
    page = seen.page
    assert page.locator("#views").is_hidden(), "prompt 0 holds no picture"
    page.select_option("#prompt", "1")
    page.select_option("#layer", "2")
    page.select_option("#head", "5")
    assert page.locator("#views svg").count() == 2, "with the attention laid on it, and as it is"
    cells = page.eval_on_selector_all(
        "#views rect", "rects => rects.map(r => [r.getAttribute('x'), r.getAttribute('fill-opacity')].map(Number))"
    )
    mass = reading["key_mass"].values[1, 2, 5, 3:5]
    assert [x for x, _ in cells] == [0, 10]
    assert [share for _, share in cells] == pytest.approx((0.85 * mass / mass.max()).tolist(), abs=1e-3)
    page.locator("#views rect").nth(1).hover()
    assert "position 4" in page.inner_text("#tip")
    assert page.evaluate("document.documentElement.scrollWidth") <= 1280
    assert seen.quiet(), (seen.said, seen.asked)
    page.close()
