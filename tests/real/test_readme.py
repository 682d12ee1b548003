"""The numbers that the README says of SmolLM2 are those that ``make demo`` computes."""

import re
from decimal import Decimal
from pathlib import Path

import pytest

import sinkscope as sk
from sinkscope import schema
from sinkscope.cli import demo_language
from sinkscope.report.text import percent
from sinkscope.tasks import corpora

README = (Path(__file__).parents[2] / "README.md").read_text(encoding="utf-8")
ROWS = {
    "set to zero at block": "to zero",
    "set to its mean": "to its mean",
    "three other dimensions": "other dimensions",
    "masked in the late third": "first token masked, late",
    "masked in all layers: the sink moves": "first token masked, all layers",
    "another token, drawn at random, masked in all": "other tokens",
}
"""Words of a row of the README's table -> the edit, as ``measured`` names it."""


def table() -> dict[str, tuple[bool, list[str]]]:
    """Rows of the table of edits: what was done -> whether the number is a bound, and its numbers.

    Those in the words of the row are last.
    """
    rows = [line.strip("| ").split(" | ") for line in README.splitlines() if line.startswith("| ")]
    begin = next(place for place, row in enumerate(rows) if row[0].startswith("edit of SmolLM2"))
    return {
        what: ("at most" in said, re.findall(r"[-+]?\d*\.\d+", said) + re.findall(r"gets (\d+) %", what))
        for what, said in rows[begin + 1 : begin + 1 + len(ROWS)]
    }


def same(said: str, measured: float, bound: bool = False) -> bool:
    """Whether a number of the README is the one that was measured, rounded to the README's digits; a bound upwards."""
    place = 10.0 ** Decimal(said).as_tuple().exponent  # type: ignore[operator]
    if bound:
        return 0 <= float(said) - measured < place
    # A hair more than half a unit: another processor may fall on the other side of a tie.
    return abs(float(said) - measured) <= 0.51 * place


def test_a_number_that_is_changed_by_one_digit_is_another():
    assert same("+.68", 0.6832)
    assert same(".12", 0.1196)
    assert not same("+.69", 0.6832)
    assert not same("+.67", 0.6832)
    assert not same("61", 62.0)
    assert same(".12", 0.1146, bound=True)
    assert not same(".11", 0.1146, bound=True)
    assert not same(".13", 0.1146, bound=True)


@pytest.fixture(scope="module")
def told(need, tmp_path_factory):
    """The demo's reading of SmolLM2, the stages of its massive activation, and its causal test."""
    model = sk.load_model(need("smollm2-135m"))
    prompts = sk.Prompts.from_texts(corpora.texts(), model)
    ds = sk.run(model, prompts, [sk.KeyMass(), sk.MassiveActivations(top=20)], batch_size=8)
    stage, folder = demo_language.stages(demo_language.trace(ds))[-1], tmp_path_factory.mktemp("demo")
    text = " ".join(text for _, text in demo_language.causal(model, prompts, stage, folder))
    return ds, stage, schema.open(folder / f"{demo_language.NAME}-causal.nc"), text


def measured(swept, text, dim) -> dict[str, list[float]]:
    """What the causal test found, by edit: change of the loss with its interval, or the largest of the controls."""
    change = sk.metrics.compare(swept["token_loss"].mean("query"), to="none")
    rows = {
        str(label): [float(change[name].sel(edit=label)) for name in ("difference", "low", "high")]
        for label in change["edit"].values
    }
    zeroed = {label: row[0] for label, row in rows.items() if re.fullmatch(r"dim \d+ to zero", label)}
    others = [value for label, value in zeroed.items() if label != f"dim {dim} to zero"]
    masked = [row[0] for label, row in rows.items() if re.fullmatch(r"token \d+ masked, all layers", label)]
    rows |= {"to zero": rows[f"dim {dim} to zero"], "to its mean": rows[f"dim {dim} to its mean"]}
    moved = re.search(r"gets (\d+) ?%", text)
    rows["first token masked, all layers"] = [*rows["first token masked, all layers"], float(moved[1])]
    return rows | {"other dimensions": [max(map(abs, others))], "other tokens": [max(map(abs, masked))]}


def test_the_table_of_edits_says_what_the_demo_measures(told):
    _, stage, swept, text = told
    found, rows = measured(swept, text, stage.dim), table()
    assert len(rows) == len(ROWS)
    for words, edit in ROWS.items():
        (what,) = [row for row in rows if words in row]
        bound, said = rows[what]
        assert len(said) == len(found[edit]), (what, said, found[edit])
        right = [same(one, other, bound) for one, other in zip(said, found[edit], strict=True)]
        assert all(right), (what, said, found[edit])
    assert any(f"dimension {stage.dim} of the first token set to zero at block {stage.first}" in row for row in rows)


def test_the_caption_says_what_the_demo_measures(told):
    ds, *_ = told
    caption = " ".join(README.split("*SmolLM2-135M-Instruct on 24 short texts")[1].split("*\n")[0].split())
    rate = percent(float(sk.metrics.sink_rate(ds).mean())).replace("%", " %")
    assert f"more than .3 in {rate} of the {ds.sizes['layer'] * ds.sizes['head']} heads" in caption
    stage = sk.metrics.massive_stages(ds).isel(stage=0)
    dim, first, last = (int(stage[name]) for name in ("dim", "first", "last"))
    size = round(float(stage["magnitude"]), -2)
    assert f"residual dimension, {dim}, stands at {size:,.0f} at this token from block {first} to {last}" in caption
    assert float(stage["ratio"]) > 2000, "more than two thousand times the median"
