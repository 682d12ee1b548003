"""The page in a real Chromium: it loads in silence, asks the network for nothing, and a click shows the head."""

import csv
import io
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
import xarray as xr
from chromium import Visit, hindrances
from PIL import Image

from sinkscope.report import write_report


@pytest.fixture(scope="module")
def written(build, tmp_path_factory):
    return write_report(build(), tmp_path_factory.mktemp("report") / "r.html")


@pytest.fixture
def visit(browser, written):
    seen = Visit(browser, written)
    yield seen
    seen.page.close()


def cell(page, layer, head):
    return page.locator(f'#map .cell[data-layer="{layer}"][data-head="{head}"]').first


def test_the_page_loads_in_silence(visit):
    assert visit.quiet(), (visit.said, visit.asked)
    assert visit.page.title() == "fake/six-layers"
    assert visit.page.locator("figure[data-figure] img").count() == 9
    for image in visit.page.locator("figure[data-figure] img").all():
        image.scroll_into_view_if_needed()
    widths = visit.page.eval_on_selector_all("figure[data-figure] img", "images => images.map(i => i.naturalWidth)")
    assert min(widths) > 300, "every figure was decoded"


def test_a_click_shows_that_head(visit, reading):
    page = visit.page
    for layer, head in ((3, 7), (0, 11)):
        cell(page, layer, head).click()
        page.locator("#detail-title", has_text=f"Layer {layer}, head {head},").wait_for()
        shown = rows(page, "#chart-mass")
        assert [row["attention"] for row in shown] == pytest.approx(
            reading["key_mass"].values[0, layer, head].tolist(), rel=2e-3
        )
        kv = int(reading["kv_of_head"].values[head])
        shown = rows(page, "#chart-value")
        assert [row["value norm"] for row in shown] == pytest.approx(
            reading["value_norm"].values[0, layer, kv].tolist(), rel=2e-3
        )
    assert visit.quiet(), (visit.said, visit.asked)


def rows(page, box):
    """What the CSV button of a panel gives, as rows of numbers where they are numbers."""
    with page.expect_download() as found:
        page.locator(f"{box} .downloads button", has_text="CSV").click()
    text = Path(found.value.path()).read_text("utf-8")
    return [{k: _number(v) for k, v in row.items()} for row in csv.DictReader(io.StringIO(text))]


def _number(text):
    try:
        return float(text)
    except ValueError:
        return text


def test_lists_serve_the_keyboard(visit, reading):
    page = visit.page
    page.select_option("#layer", "2")
    page.select_option("#head", "5")
    page.select_option("#prompt", "1")
    assert page.inner_text("#detail-title") == "Layer 2, head 5, prompt 1"
    assert page.locator(".tokens button").count() == 25
    shown = [row["entropy"] for row in rows(page, "#chart-entropy")]
    assert shown == pytest.approx(reading["entropy"].values[1, 2, 5, :25].tolist(), rel=2e-3)


def test_keys_move_on_the_map_and_change_the_page(visit):
    page = visit.page
    cell(page, 2, 5).click()
    page.locator("#map .chart").focus()
    for key in ("ArrowUp", "ArrowRight", "ArrowRight", "ArrowLeft"):
        page.keyboard.press(key)
    assert page.inner_text("#detail-title").startswith("Layer 3, head 6,")
    for key in ("j", "l", "]"):
        page.keyboard.press(key)
    assert page.inner_text("#detail-title") == "Layer 2, head 7, prompt 1"
    page.keyboard.press("/")
    page.keyboard.type("tea")
    assert page.inner_text("#find-count") == "5 tokens"
    assert page.locator(".tokens button.hit").count() == 1
    page.locator("#hits button").first.click()
    assert page.inner_text("#detail-title").endswith("prompt 0")
    page.keyboard.press("ArrowRight")
    assert page.evaluate("document.activeElement.dataset.i") == "7"
    page.keyboard.press("?")
    assert page.locator("#help").is_visible()
    page.keyboard.press("Escape")
    page.locator("#help").wait_for(state="hidden")
    assert visit.quiet(), (visit.said, visit.asked)


def test_every_control_is_reached_by_tab(visit):
    page, seen = visit.page, set()
    for _ in range(120):
        page.keyboard.press("Tab")
        seen.add(page.evaluate("document.activeElement.id || document.activeElement.className"))
    assert {"theme", "measure", "order", "layer", "head", "prompt", "find", "massive-prompt", "massive-site"} <= seen


def test_heads_are_ranked_by_each_measure(visit, reading):
    page = visit.page
    page.locator("#ranking button.sort", has_text="entropy").click()
    order = page.eval_on_selector_all(
        "#ranking tbody tr", "rows => rows.map(r => [r.dataset.layer, r.dataset.head].map(Number))"
    )
    entropy = reading["entropy"].mean(["prompt", "query"]).values
    assert order[0] == list(np.unravel_index(entropy.argmax(), entropy.shape))
    assert page.locator("#ranking th[aria-sort=descending]").count() == 1
    assert page.locator("#measure").input_value() == "1", "the map shows what the list is ranked by"
    page.locator("#ranking tbody button").first.click()
    assert page.inner_text("#detail-title").startswith(f"Layer {order[0][0]}, head {order[0][1]},")
    page.select_option("#order", "measure")
    first = page.eval_on_selector_all('#map .cell[data-layer="0"][data-column="0"]', "cells => cells[0].dataset.head")
    assert int(first) == entropy[0].argmax()


def test_tokens_are_text(visit):
    page = visit.page
    texts = page.eval_on_selector_all(".tokens button", "spans => spans.map(s => s.textContent)")
    assert texts[7] == "␣</script><script>alert(1)</script>"[1:]
    assert texts[15] == "&amp;"
    assert texts[17] == "\\u202e"
    assert page.evaluate("document.querySelectorAll('.tokens script, #detail script').length") == 0
    assert not any(kind == "dialog" for kind, _ in visit.said)


def test_hover_tells_role_and_value(visit, reading):
    page = visit.page
    page.select_option("#layer", "5")
    page.select_option("#head", "0")
    page.locator(".tokens button").nth(10).hover()
    said = page.inner_text("#tip")
    mass, norm = reading["key_mass"].values[0, 5, 0, 10], reading["value_norm"].values[0, 5, 0, 10]
    assert said.splitlines()[:2] == [".", "position 10, role punctuation"]
    assert float(said.splitlines()[2].split()[-1]) == pytest.approx(mass, rel=5e-3)
    assert float(said.splitlines()[3].split()[-1]) == pytest.approx(norm, rel=5e-3)


def test_other_map_and_small_screen(browser, evenly_spread, tmp_path):
    path = write_report(evenly_spread[["key_mass", "entropy"]], tmp_path / "r.html")
    seen = Visit(browser, path, width=390, height=800)
    page = seen.page
    assert "No sink found" in page.inner_text("#findings")
    page.select_option("#measure", label="mean entropy [nat]")
    z = float(cell(page, 0, 0).get_attribute("data-value"))
    assert z == pytest.approx(float(evenly_spread["entropy"].isel(layer=0, head=0).mean()), rel=1e-4)
    assert page.evaluate("document.documentElement.scrollWidth") <= 390, "no sideways scrolling"
    assert page.locator("#chart-value").is_hidden()
    assert seen.quiet(), (seen.said, seen.asked)
    page.close()


def with_maps(reading):
    """Maps of two heads: each query attends to the first token and to itself."""
    size = reading.sizes["key"]
    maps = np.full((3, 6, 12, size, size), np.nan, "float32")
    for head in (5, 6):
        maps[:, 2, head] = np.eye(size) * 0.25
        maps[:, 2, head, :, 0] += 0.75
    return reading.assign(attention=(("prompt", "layer", "head", "query", "key"), maps))


def test_a_query_shows_its_row(browser, reading, tmp_path):
    seen = Visit(browser, write_report(with_maps(reading), tmp_path / "r.html", figures=[]))
    page = seen.page
    cell(page, 3, 1).click()
    assert page.locator("#maps").is_hidden()
    assert "AttentionMap(layers=[3], heads=[1])" in page.inner_text("#hint")
    cell(page, 2, 5).click()
    assert page.locator("#maps").is_visible()
    assert page.locator("#lines path").count() == 1 + 2 * 39
    page.locator(".tokens button").nth(9).hover()
    assert "attention from query 9 0.250" in page.inner_text("#tip")
    assert page.locator("#lines path").count() == 2
    assert "from query 9" in page.inner_text("#legend")
    page.locator(".tokens button").nth(9).click()
    page.mouse.move(5, 5)
    assert page.locator(".tokens button.query").count() == 1, "a click keeps the query"
    assert "from query 9" in page.inner_text("#legend")
    assert len(rows(page, "#matrix")) == 1 + 2 * 39
    page.keyboard.press("Escape")
    assert "mean over queries" in page.inner_text("#legend")
    assert seen.quiet(), (seen.said, seen.asked)
    page.close()


def test_massive_activations_are_shown_by_site_and_dimension(visit, reading):
    page = visit.page
    page.select_option("#massive-site", label="3.post")
    first = page.locator("#massive-table tbody tr").first.locator("td").all_inner_texts()
    assert first[:3] == ["17", "<s>", "0"]
    assert float(first[3]) == pytest.approx(reading["top_value"].sel(site="3.post").values[0, 0], abs=0.5)
    page.get_by_role("button", name="dimension 42").click()
    assert page.locator("#massive-table tbody tr").count() == 1
    page.select_option("#massive-prompt", "1")
    shown = {row["site"]: row["dimension 17"] for row in rows(page, "#massive-chart")}
    assert shown["3.post"] == pytest.approx(float(reading["top_value"].sel(site="3.post").values[1, 0]), rel=1e-4)
    assert visit.quiet(), (visit.said, visit.asked)


def test_two_readings_side_by_side(browser, reading, tmp_path):
    changed = reading.copy(deep=True)
    changed["key_mass"].values[..., 0] *= 0.5
    path = write_report(changed, tmp_path / "r.html", against=reading, figures=[], labels=("halved", "plain"))
    seen = Visit(browser, path)
    page = seen.page
    assert page.locator("#map .cell").count() == 3 * 72, "one run, the other, the difference"
    cells = page.locator('#map .cell[data-layer="5"][data-head="3"]')
    values = [float(c.get_attribute("data-value")) for c in cells.all()]
    assert values[2] == pytest.approx(values[0] - values[1], rel=1e-4)
    assert page.locator(".tokens").count() == 3
    page.select_option("#against", label="nothing")
    assert page.locator("#map .cell").count() == 72
    page.select_option("#run", label="plain")
    cell(page, 5, 3).click()
    shown = [row["attention"] for row in rows(page, "#chart-mass")]
    assert shown == pytest.approx(reading["key_mass"].values[0, 5, 3].tolist(), rel=2e-3)
    assert seen.quiet(), (seen.said, seen.asked)
    page.close()


def test_a_sweep_is_drawn_along_its_numbers(browser, build, tmp_path):
    one = build((12, 14), layers=2, heads=3, kv_heads=1)
    gammas = [0.0, 0.5, 1.0, 2.0]
    grid = xr.concat([one] * 4, xr.DataArray(gammas, dims="gamma", name="gamma"))
    grid["key_mass"] = grid["key_mass"] * (0.2 + 0.2 * grid["gamma"])
    grid["key_mass"] = grid["key_mass"].transpose("gamma", "prompt", "layer", "head", "key")
    seen = Visit(browser, write_report(grid, tmp_path / "r.html", figures=["sink_map"]))
    page = seen.page
    shown = rows(page, "#curve")
    assert [row["gamma"] for row in shown] == gammas
    expected = grid["key_mass"].isel(key=0).mean(["prompt", "layer", "head"]).values
    assert [row["mean over all heads"] for row in shown] == pytest.approx(expected.tolist(), rel=1e-4)
    page.locator('#curve circle[data-run="3"]').click()
    assert page.input_value("#run") == "3"
    assert page.locator("#curve-loss").is_hidden(), "no loss was read"
    assert hindrances(page) == []
    assert seen.quiet(), (seen.said, seen.asked)
    page.close()


def test_every_panel_is_downloaded_as_picture_and_numbers(browser, written):
    panels, at_a_time = "figure:has(.downloads button):visible", 4
    for start in range(0, 9 + 5, at_a_time):  # Chromium lets a page under automation have ten downloads
        visit = Visit(browser, written)
        page = visit.page
        boxes = page.locator(panels)
        assert boxes.count() == 9 + 5
        for i in range(start, min(start + at_a_time, 9 + 5)):
            with page.expect_download() as found:
                boxes.nth(i).locator(".downloads button", has_text="SVG").click()
            root = ElementTree.parse(found.value.path()).getroot()
            assert root.tag == "{http://www.w3.org/2000/svg}svg"
            with page.expect_download() as found:
                boxes.nth(i).locator(".downloads button", has_text="CSV").click()
            assert found.value.suggested_filename.endswith(".csv")
            assert len(Path(found.value.path()).read_text("utf-8").splitlines()) > 1
        assert visit.quiet(), (visit.said, visit.asked)
        page.close()


@pytest.mark.parametrize("kind", ["one", "two", "phone"])
def test_nothing_that_axe_knows_is_in_the_way_of_anyone(browser, reading, tmp_path, kind):
    other = {"against": reading, "labels": ("one", "other")} if kind == "two" else {}
    path = write_report(with_maps(reading), tmp_path / "r.html", figures=["sink_map"], **other)
    seen = Visit(browser, path, width=390 if kind == "phone" else 1280, height=900)
    cell(seen.page, 2, 5).click()
    for _ in ("light", "dark"):
        assert hindrances(seen.page) == []
        seen.page.keyboard.press("t")
    assert seen.quiet(), (seen.said, seen.asked)
    seen.page.close()


def test_the_theme_follows_the_system_and_the_button(browser, written):
    page = browser.new_page(color_scheme="dark")
    page.goto(written.as_uri())
    page.wait_for_selector("body[data-ready]")
    ground = "getComputedStyle(document.body).backgroundColor"
    dark = page.evaluate(ground)
    page.keyboard.press("t")
    assert page.evaluate("document.documentElement.dataset.theme") == "light"
    assert page.evaluate(ground) != dark
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
        "#views .patch", "rects => rects.map(r => [r.getAttribute('x'), r.getAttribute('fill-opacity')].map(Number))"
    )
    mass = reading["key_mass"].values[1, 2, 5, 3:5]
    assert [x for x, _ in cells] == [0, 10]
    assert [share for _, share in cells] == pytest.approx((0.85 * mass / mass.max()).tolist(), abs=2e-3)
    page.locator("#views .patch").nth(1).hover()
    assert "position 4" in page.inner_text("#tip")
    assert page.evaluate("document.documentElement.scrollWidth") <= 1280
    assert seen.quiet(), (seen.said, seen.asked)
    page.close()
