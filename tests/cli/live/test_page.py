"""The served page in Chromium: type, run, move gamma, click a head and a query; silence, nothing asked elsewhere."""

import pytest
from chromium import Visit, hindrances

TEXT = "while True:\n    line = input()\n    if not line:\n        break\n    print(line.strip())\n"


@pytest.fixture
def visit(browser, server):
    seen = Visit(browser, server.address)
    seen.page.wait_for_selector("body[data-live]")
    yield seen
    seen.page.close()


def run(page, text):
    page.fill("#live-text", text)
    page.click("#live-run")
    page.locator("#live-status", has_text="Measured in").wait_for()


def move_gamma(page, gamma):
    page.locator("#live-gamma").fill(str(gamma))
    page.locator("#tried-said", has_text=f"With gamma {gamma} ").wait_for()


def test_type_run_and_move_gamma(visit, server):
    page = visit.page
    run(page, TEXT)
    assert page.inner_text("#tried-told h3 >> nth=0") == "The sink is the first token “<s>”"
    assert page.locator("#tried-tokens .tokens").count() == 1
    assert page.locator("#tried-tokens button.sink").all_inner_texts() == ["<s>"]
    plain = page.inner_text("#tried-said")
    assert "Loss" in plain
    assert page.input_value("#source") == "tried"
    move_gamma(page, 0.1)
    assert page.locator("#tried-tokens .tokens").count() == 2
    said = page.inner_text("#tried-said")
    assert said.startswith(plain)
    assert "on “<s>” at position 0 in all layers the loss is" in said
    page.locator("#tried-tokens .tokens >> nth=0").locator("button").nth(3).click()
    page.locator("#tried-said", has_text="at position 3 in all layers").wait_for()
    page.select_option("#live-first", "2")
    page.locator("#tried-said", has_text="in layers 2 to 5").wait_for()
    assert page.locator("#tried-next tbody tr").count() >= 8
    assert page.locator("#tried-loss svg").count() == 1
    assert page.inner_text("#detail-title").endswith("prompt 0")
    assert [option.strip() for option in page.locator("#run option").all_inner_texts()] == ["as it is", "gamma 0.1"]
    page.select_option("#source", "reading")
    assert page.locator("#prompt option").count() == 2
    page.select_option("#source", "tried")
    assert page.locator("#prompt option").count() == 1
    assert visit.quiet(server.origins[0]), (visit.said, visit.asked)


def test_a_click_on_a_token_reads_the_rows_of_any_head(visit, server, reading):
    page = visit.page
    page.locator('#map .cell[data-layer="3"][data-head="2"]').first.click()
    assert page.locator("#maps").is_hidden()
    page.select_option("#prompt", "1")
    page.locator("#strips .tokens button").nth(9).click()
    page.locator("#maps").wait_for()
    assert page.locator("#strips button[aria-pressed=true]").get_attribute("data-i") == "9"
    assert "from query 9" in page.inner_text("#legend").replace("attention from query", "from query")
    run(page, TEXT)
    move_gamma(page, 0.5)
    page.locator("#strips .tokens >> nth=0").locator("button").nth(4).click()
    page.locator("#maps").wait_for()
    assert visit.quiet(server.origins[0]), (visit.said, visit.asked)


def test_what_cannot_be_run_is_said_on_the_page(visit, server):
    page = visit.page
    page.fill("#live-text", "x = 1\n" * 80)
    page.click("#live-run")
    page.locator("#live-status.wrong", has_text="This text has 321 tokens; up to 256 are measured here.").wait_for()
    assert page.locator("#tried").is_hidden()
    page.route("**/run", lambda route: route.abort())
    page.click("#live-run")
    page.locator("#live-status.wrong", has_text="sinkscope serve does not answer").wait_for()


@pytest.mark.parametrize("width", [1280, 390])
def test_axe_finds_nothing_in_the_way(browser, server, width):
    seen = Visit(browser, server.address, width=width, height=900)
    run(seen.page, TEXT)
    move_gamma(seen.page, 0.5)
    for _ in ("light", "dark"):
        assert hindrances(seen.page) == []
        assert seen.page.evaluate("document.documentElement.scrollWidth <= innerWidth")
        seen.page.locator("#theme").click()
    seen.page.close()
