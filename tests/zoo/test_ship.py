"""Shipping a run: files, checksums, the card and its page, at tiny scale."""

from __future__ import annotations

import dataclasses
import json

import pytest

from sinkscope import zoo
from sinkscope.errors import ModelError
from sinkscope.zoo import variants
from sinkscope.zoo.recipes import bigram_backcopy as bb
from sinkscope.zoo.recipes import facts, ship
from sinkscope.zoo.recipes import language_model as lm


@pytest.fixture
def shelf(tmp_path, monkeypatch):
    monkeypatch.setattr(zoo, "WEIGHTS", tmp_path / "shelf")
    monkeypatch.setattr(zoo, "CURVES", tmp_path / "curves")
    return tmp_path / "shelf"


def test_a_backcopy_run_is_shipped_with_card_and_page(shelf, tmp_path):
    folders = []
    for seed in (1, 2):
        config = dataclasses.replace(bb.Config(), steps=3, batch=4, length=16, width=8, seed=seed)
        model, curve, _ = bb.train(config)
        bb.save(model, curve, config, tmp_path / str(seed))
        folders.append(tmp_path / str(seed))
    ship.ship("bb-1l", folders)
    card = zoo.card("bb-1l")
    assert list(card["facts"]["final_by_seed"]) == ["1", "2"]
    assert len(card["claims"][0]["measured"]) == 2
    assert card["claims"][0]["agrees"] is False
    assert card["recipe"]["steps"] == 3
    assert [e.name for e in zoo.entries()] == ["bb-1l"]
    page, index = ship.pages(tmp_path / "docs")
    assert "zoo:bb-1l: Attention from non-trigger queries" in index.read_text()
    text = page.read_text()
    assert "# zoo:bb-1l" in text
    assert "**no**" in text
    assert card["command"] in text
    with pytest.raises(ModelError, match=r"holds no recipe.json and no checkpoint"):
        ship.ship("other", [tmp_path])


def test_a_language_model_is_shipped_in_half_precision_with_facts_of_the_shipped_weights(shelf, tmp_path):
    source = tmp_path / "lib"
    source.mkdir()
    for i in range(60):
        body = "\n".join(f"def function_{i}_{j}(x, y):\n    return x + {i * j}\n" for j in range(12))
        (source / f"m{i}.py").write_text(body)
    config = lm.Config(layers=2, heads=2, width=16, mlp=24, vocab=300, length=24, batch=2, steps=2, warmup=1)
    run = tmp_path / "run"
    lm.train(config, run, source, measure_every=2)
    (run / "config.json").write_text(json.dumps(dataclasses.asdict(config)))
    folder = ship.ship("lm", [run])
    card = zoo.card("lm")
    assert card["facts"]["training"]["steps"] == 2
    assert "--layers 2" in card["command"]
    assert "PSF" in zoo.entries()[0].licence
    model = variants.load(folder)
    assert card["facts"]["parameters"] == sum(p.numel() for p in model.parameters())
    assert (folder / "model.safetensors").stat().st_size < 3 * card["facts"]["parameters"]
    assert set(card["facts"]["alpha_mean_by_input"]) == {
        "natural",
        "repeated span",
        "random tokens",
        "one token repeated",
    }


def test_log_growth_recovers_a_planted_slope():
    import numpy as np

    curve = [{"step": s, "sink_logit_gap": [2.5 * np.log(s) + 1]} for s in range(10, 1000, 50)]
    out = facts.log_growth(curve)
    assert out["slope"] == pytest.approx(2.5)
    assert out["r2"] == pytest.approx(1.0)
    assert np.isnan(facts.log_growth(curve[:2])["slope"])


def test_figures_are_drawn_for_the_models_on_the_shelf(shelf, tmp_path):
    from sinkscope.zoo.recipes import figures

    config = dataclasses.replace(bb.Config(), steps=3, batch=4, length=16, width=8)
    model, curve, _ = bb.train(config)
    bb.save(model, curve, config, tmp_path / "run")
    ship.ship("bb-1l", [tmp_path / "run"])
    written = figures.draw(tmp_path / "figures")
    assert [p.name for p in written] == ["backcopy-dynamics.png"]
    figure = figures.dynamics(["bb-1l"])
    line = figure.axes[0].lines[0]
    risks = [row["backcopy_risk"] for row in zoo.curve("bb-1l")]
    assert list(line.get_ydata()) == pytest.approx([r / max(risks) for r in risks])


def run_of(folder, rows, **recipe):
    folder.mkdir()
    (folder / "curve.jsonl").write_text(
        "".join(json.dumps(row | {"detail": {"alpha": [[0.1]]}}) + "\n" for row in rows)
    )
    (folder / "config.json").write_text(json.dumps({"normaliser": "softmax", **recipe}))
    return folder


def test_the_curve_of_a_variant_is_shipped_without_weights(shelf, tmp_path):
    rows = [{"step": 1, "tokens": 10, "alpha_mean": 0.07}, {"step": 100, "tokens": 1000, "alpha_mean": 0.01}]
    target = ship.ship_curve("lm-python-sigmoid", run_of(tmp_path / "run", rows, normaliser="sigmoid"))
    assert json.loads(target.read_text())["recipe"]["normaliser"] == "sigmoid"
    assert zoo.curves() == zoo.curves("lm-") == ["lm-python-sigmoid"]
    assert zoo.curves("bb-") == []
    assert zoo.curve("zoo:lm-python-sigmoid") == rows
    assert zoo.entries() == []
    with pytest.raises(
        ModelError, match=r"zoo.curve\('gate'\): no training run of that name. There are lm-python-sigmoid"
    ):
        zoo.curve("gate")


def test_the_page_on_emergence_compares_at_the_last_common_step(shelf, tmp_path):
    from sinkscope.zoo.recipes import emergence

    def row(step, heads, massive):
        keys = dict.fromkeys(emergence.COLUMNS, 0.1)
        return {"step": step, "tokens": 1000 * step, **keys, "sink_rate_after_first": heads, "massive": massive}

    ship.ship_curve(
        "lm-python", run_of(tmp_path / "a", [row(100, 0.4, 90.0), row(200, 0.5, 95.0), row(300, 0.9, 99.0)])
    )
    ship.ship_curve("lm-python-sigmoid", run_of(tmp_path / "b", [row(100, 0.3, 5.0), row(200, 0.25, 6.0)]))
    ship.ship_curve("lm-python-gate", run_of(tmp_path / "c", [row(100, 0.3, 5.0), row(200, 0.1, 60.0)]))
    at = emergence.common_step(["lm-python", "lm-python-sigmoid", "lm-python-gate"])
    assert {name: found["step"] for name, found in at.items()} == dict.fromkeys(at, 200)
    lines = emergence.page().splitlines()
    (sigmoid,) = [line for line in lines if "sigmoid attention" in line]
    assert "heads over .3: 25% against 50%" in sigmoid
    assert sigmoid.endswith("| **no** |")
    (gate,) = [line for line in lines if "a sigmoid gate" in line]
    assert gate.endswith("| **no** |"), "fewer sinks, but the massive activation stays"
    ship.ship_curve("lm-python-gate", run_of(tmp_path / "d", [row(200, 0.1, 40.0)]))
    assert next(line for line in emergence.page().splitlines() if "a sigmoid gate" in line).endswith("| yes |")
    assert "`zoo:lm-python` after 0.3 million tokens: 90% of the" in emergence.page()


def test_variants_are_drawn_over_the_tokens_that_all_have(shelf, tmp_path):
    from sinkscope.zoo.recipes import figures

    keys = ("alpha_mean", "sink_rate_after_first", "value_ratio", "massive", "loss")
    for name, steps in (("lm-python", (1, 2, 3, 4)), ("lm-python-gate", (1, 2))):
        rows = [{"step": s, "tokens": 1_000_000 * s, **{k: s / 10 for k in keys}} for s in steps]
        ship.ship_curve(name, run_of(tmp_path / name, rows))
    figure = figures.compared(["lm-python", "lm-python-gate"])
    assert [len(line.get_xdata()) for line in figure.axes[0].lines] == [2, 2]
    assert figure.axes[0].get_legend().get_texts()[1].get_text() == "lm-python-gate"
