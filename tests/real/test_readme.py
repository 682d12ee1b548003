"""The numbers that the README says of SmolLM2 are those that ``make demo`` computes."""

import re
from decimal import Decimal
from pathlib import Path

import pytest

import sinkscope as sk
from sinkscope.cli import demo_language
from sinkscope.report.text import percent
from sinkscope.tasks import corpora

README = (Path(__file__).parents[2] / "README.md").read_text(encoding="utf-8")
NUMBER = r"[-+]?\d*\.\d+|\d+"
ROWS = {
    "set to zero at block": (r"dim \d+ to zero: (.*?) nats",),
    "set to its mean": (r"to its mean: (.*?) \(95",),
    "three other dimensions": (r"set to zero: at most ([\d.]+)\.(?:\s|$)",),
    "masked in the late third": (r"late: (.*?)(?:;| nats)",),
    "masked in all layers: the sink moves": (r"all layers: (.*?) nats", r"gets (\d+) ?%"),
    "another token, drawn at random": (r"at random: at most ([\d.]+)\.(?:\s|$)",),
}
"""Words of a row of the README's table -> where the demo says its numbers."""


def numbers(text: str) -> list[Decimal]:
    return [Decimal(found) for found in re.findall(NUMBER, text)]


def table() -> dict[str, str]:
    """Rows of the table of edits: what was done -> the numbers, with those in its words behind."""
    rows = [line.strip("| ").split(" | ") for line in README.splitlines() if line.startswith("| ")]
    begin = next(place for place, row in enumerate(rows) if row[0].startswith("edit of SmolLM2"))
    found = {}
    for what, said in rows[begin + 1 : begin + 1 + len(ROWS)]:
        more = re.search(r"gets (\d+) %", what)
        found[what] = f"{said} {more[1] if more else ''}"
    return found


def same(said: Decimal, told: Decimal) -> bool:
    """Whether a number of the README is the one that was told, rounded to the README's digits."""
    place = Decimal(1).scaleb(said.as_tuple().exponent)  # type: ignore[arg-type]
    # A hair more than half a unit: another processor may fall on the other side of a tie.
    return abs(said - told) <= place * Decimal("0.51")


@pytest.fixture(scope="module")
def told(need, tmp_path_factory):
    """What the demo says of SmolLM2, its reading, and the last stage of the massive activation."""
    model = sk.load_model(need("smollm2-135m"))
    prompts = sk.Prompts.from_texts(corpora.texts(), model)
    ds = sk.run(model, prompts, [sk.KeyMass(), sk.MassiveActivations(top=20)], batch_size=8)
    stage = demo_language.stages(demo_language.trace(ds))[-1]
    causal = demo_language.causal(model, prompts, stage, tmp_path_factory.mktemp("demo"))
    return " ".join(text for _, text in causal), ds, stage


def test_the_table_of_edits_says_what_the_demo_says(told):
    text, _, stage = told
    rows = table()
    assert len(rows) == len(ROWS)
    for words, wheres in ROWS.items():
        (what,) = [row for row in rows if words in row]
        said = numbers(rows[what])
        measured = [number for where in wheres for number in numbers(re.search(where, text)[1])]
        assert len(said) == len(measured), (what, said, measured)
        assert all(map(same, said, measured)), (what, said, measured)
    first = next(row for row in rows if "set to zero at block" in row)
    assert f"dimension {stage.dim} of the first token set to zero at block {stage.first}" in first


def test_a_number_that_is_changed_by_one_digit_is_another(told):
    text, *_ = told
    for words, wheres in ROWS.items():
        said = numbers(next(cells for row, cells in table().items() if words in row))
        measured = [number for where in wheres for number in numbers(re.search(where, text)[1])]
        for one, right in zip(said, measured, strict=True):
            step = Decimal(1).scaleb(one.as_tuple().exponent)  # type: ignore[arg-type]
            assert not same(one + step, right), (words, one)
            assert not same(one - step, right), (words, one)


def test_the_caption_says_what_the_demo_says(told):
    _, ds, stage = told
    caption = " ".join(README.split("*SmolLM2-135M-Instruct on 24 short texts")[1].split("*\n")[0].split())
    rate = percent(float(sk.metrics.sink_rate(ds).mean())).replace("%", " %")
    assert f"more than .3 in {rate} of the {ds.sizes['layer'] * ds.sizes['head']} heads" in caption
    assert f"dimension, {stage.dim}, stands at {round(stage.peak, -2):,.0f} at this token" in caption
    assert f"from block {stage.first} to {stage.last}" in caption
