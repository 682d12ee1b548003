"""Shipping a run: files, checksums, the card and its page, at tiny scale."""

from __future__ import annotations

import dataclasses
import json

import pytest

from recipes import bigram_backcopy as bb
from recipes import facts, ship
from recipes import language_model as lm
from sinkscope import zoo
from sinkscope.errors import ModelError
from sinkscope.models import variants


@pytest.fixture
def weights_folder(tmp_path, monkeypatch):
    monkeypatch.setattr(zoo, "WEIGHTS", tmp_path / "weights_folder")
    monkeypatch.setattr(zoo, "CURVES", tmp_path / "curves")
    return tmp_path / "weights_folder"


def test_a_backcopy_run_is_shipped_with_card_and_page(weights_folder, tmp_path):
    folders = []
    for seed in (1, 2):
        config = dataclasses.replace(bb.BackcopyConfig(), steps=3, batch=4, length=16, width=8, seed=seed)
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
    assert "queries to `<s>`, layer 0 (dormant)" in text
    assert text.replace("`<s>`", "").count("<s>") == 0, "it would strike the rest of the line through"
    assert "# zoo:bb-1l" in text
    assert "**no**" in text
    assert card["command"] in text
    with pytest.raises(ModelError, match=r"holds no recipe.json and no checkpoint"):
        ship.ship("other", [tmp_path])


def test_a_language_model_is_shipped_in_half_precision_with_facts_of_the_shipped_weights(weights_folder, tmp_path):
    source = tmp_path / "lib"
    source.mkdir()
    for i in range(60):
        body = "\n".join(f"def function_{i}_{j}(x, y):\n    return x + {i * j}\n" for j in range(12))
        (source / f"m{i}.py").write_text(body)
    config = lm.LanguageModelConfig(
        layers=2, heads=2, width=16, mlp=24, vocab=300, length=24, batch=2, steps=2, warmup=1
    )
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


def test_figures_are_drawn_for_the_models_of_the_zoo(weights_folder, tmp_path):
    from recipes import figures

    config = dataclasses.replace(bb.BackcopyConfig(), steps=3, batch=4, length=16, width=8)
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
    (folder / "config.json").write_text(json.dumps({"normaliser": "softmax", "seed": 0, **recipe}))
    return folder


def test_the_curves_of_a_variant_are_shipped_without_weights(weights_folder, tmp_path):
    rows = [{"step": 1, "tokens": 10, "alpha_mean": 0.07}, {"step": 100, "tokens": 1000, "alpha_mean": 0.01}]
    first = run_of(tmp_path / "run", rows, normaliser="sigmoid", seed=3)
    second = run_of(tmp_path / "run2", rows[:1], normaliser="sigmoid", seed=1)
    target = ship.ship_curve("lm-python-sigmoid", [first, second])
    assert json.loads(target.read_text())["recipe"] == {"normaliser": "sigmoid"}
    assert zoo.curves() == zoo.curves("lm-") == ["lm-python-sigmoid"]
    assert zoo.curves("bb-") == []
    assert zoo.seeds("lm-python-sigmoid") == [3, 1]
    assert zoo.curve("zoo:lm-python-sigmoid") == rows == zoo.curve("lm-python-sigmoid", 3)
    assert zoo.curve("lm-python-sigmoid", 1) == rows[:1]
    assert zoo.entries() == []
    with pytest.raises(
        ModelError, match=r"zoo.curve\('gate'\): no training run of that name. There are lm-python-sigmoid"
    ):
        zoo.curve("gate")
    with pytest.raises(ModelError, match=r"seed=2\): no training run of that seed. There are 3, 1"):
        zoo.curve("lm-python-sigmoid", 2)
    other = run_of(tmp_path / "run3", rows, normaliser="softmax", seed=2)
    with pytest.raises(ModelError, match=r"run3 differs from .*run in normaliser. Ship it under another name"):
        ship.ship_curve("lm-python-sigmoid", [first, other])


def test_a_model_and_further_seeds_of_it_are_one_name(weights_folder, tmp_path):
    config = dataclasses.replace(bb.BackcopyConfig(), steps=3, batch=4, length=16, width=8, seed=5)
    model, curve, _ = bb.train(config)
    bb.save(model, curve, config, tmp_path / "run")
    ship.ship("bb-1l", [tmp_path / "run"])
    assert zoo.seeds("bb-1l") == [5]
    shelved = zoo.curve("bb-1l")
    ship.ship_curve("bb-1l", [run_of(tmp_path / "more", [{"step": 9}], seed=s) for s in (6,)])
    assert zoo.seeds("zoo:bb-1l") == [5, 6]
    assert zoo.curve("bb-1l") == shelved
    assert zoo.curve("bb-1l", 6) == [{"step": 9}]


def measured(step, heads, massive, **more):
    from recipes import emergence

    keys = dict.fromkeys(emergence.COLUMNS, 0.1)
    return {"step": step, "tokens": 1000 * step, **keys, "sink_rate_after_first": heads, "massive": massive, **more}


def line_with(text):
    from recipes import emergence

    (found,) = [line for line in emergence.page().splitlines() if text in line]
    return found


def test_the_page_on_emergence_compares_at_the_last_common_step(weights_folder, tmp_path):
    from recipes import emergence

    base = [measured(100, 0.4, 90.0), measured(200, 0.5, 95.0), measured(300, 0.9, 99.0)]
    ship.ship_curve("lm-python-softmax", [run_of(tmp_path / "a", base)])
    ship.ship_curve("lm-python", [run_of(tmp_path / "shipped", [*base[:1], measured(200, 0.6, 95.0), base[-1]])])
    ship.ship_curve("lm-python-sigmoid", [run_of(tmp_path / "b", [measured(100, 0.3, 5.0), measured(200, 0.25, 6.0)])])
    ship.ship_curve("lm-python-gate", [run_of(tmp_path / "c", [measured(100, 0.3, 5.0), measured(200, 0.1, 60.0)])])
    step, cells = emergence.common_step(emergence.compared(emergence.ARCHITECTURE))
    assert step == 200
    assert list(cells) == ["softmax", "sigmoid", "gate"]
    assert cells["sigmoid"].own["massive"].tolist() == [6.0]
    sigmoid = line_with("sigmoid attention")
    assert "heads over .3: -25 points; largest magnitude: -89 medians; loss: +0.00 nat" in sigmoid
    assert "| **no** (0 of 1 seeds): less than half the heads of softmax" in sigmoid
    assert "**no**" in line_with("a sigmoid gate"), "fewer sinks, but the massive activation stays"
    ship.ship_curve("lm-python-gate", [run_of(tmp_path / "d", [measured(200, 0.1, 40.0)])])
    assert "| yes: " in line_with("a sigmoid gate")
    assert "| yes: more heads over .3 than softmax |" in line_with("the recipe of `zoo:lm-python`")
    assert "`zoo:lm-python` after 0.3 million tokens: 90% of the" in emergence.page()


def test_a_token_that_always_stands_third_is_looked_for_there(weights_folder, tmp_path):

    ship.ship_curve("lm-python-softmax", [run_of(tmp_path / "a", [measured(5, 0.4, 9.0)])])
    ship.ship_curve("lm-python", [run_of(tmp_path / "b", [measured(5, 0.4, 9.0)])])
    found = measured(5, 0.0, 9.0, sink_rate_third=0.2)
    ship.ship_curve("lm-python-fixed-at", [run_of(tmp_path / "c", [found])])
    assert "| yes: some head over .3 on the third token" in line_with("a padding token stands third")
    ship.ship_curve("lm-python-fixed-at", [run_of(tmp_path / "d", [found | {"sink_rate_third": 0.0}])])
    assert "| **no** (0 of 1 seeds): some head" in line_with("a padding token stands third")


def test_runs_of_an_older_recipe_are_compared_in_what_both_measured(weights_folder, tmp_path):
    from recipes import emergence

    ship.ship_curve("lm-python-softmax", [run_of(tmp_path / f"s{n}", [measured(5, 0.3, 9.0)], seed=n) for n in (0, 1)])
    new, old = measured(5, 0.1, 4.0, off_keys_mean=0.2), measured(5, 0.2, 5.0)
    ship.ship_curve("lm-python-gate", [run_of(tmp_path / f"g{n}", [row], seed=n) for n, row in enumerate((new, old))])
    _, pairs = emergence.common_step(emergence.compared(emergence.ARCHITECTURE))
    assert pairs["gate"].own["massive"].tolist() == [4.0, 5.0]
    assert "off_keys_mean" not in pairs["gate"].own


def test_differences_are_paired_by_seed_with_an_interval_from_three_seeds(weights_folder, tmp_path):
    from scipy import stats

    from recipes import emergence, seeds

    heads = {0: (0.2, 0.0), 1: (0.3, 0.05), 2: (0.1, 0.1)}
    for name, column in (("lm-python-softmax", 0), ("lm-python-softmax1", 1)):
        runs = [run_of(tmp_path / f"{name}{s}", [measured(5, h[column], 10.0)], seed=s) for s, h in heads.items()]
        ship.ship_curve(name, runs)
    ship.ship_curve("lm-python", runs[:1])
    gaps = [-0.2, -0.25, 0.0]
    half = stats.t.ppf(0.975, 2) * stats.sem(gaps)
    mean, ends = seeds.mean_and_interval(gaps)
    assert (mean, *ends) == pytest.approx((-0.15, -0.15 - half, -0.15 + half))
    assert seeds.mean_and_interval(gaps[:2]) == (pytest.approx(-0.225), None)
    assert seeds.mean_and_interval([0.5, 0.5, 0.5]) == (0.5, None)
    assert seeds.text([0.5, 0.5], 100, "+.0f") == "+50"
    line = line_with("one more logit")
    assert f"heads over .3: -15 [{100 * ends[0]:+.0f}, {100 * ends[1]:+.0f}] points" in line
    assert "| **no** (2 of 3 seeds): " in line
    assert "| softmax | 3 | 0.1 (0.1 to 0.1) | 0.1 (0.1 to 0.1) | 0.2 (0.1 to 0.3) |" in emergence.page()


def test_a_variant_is_paired_with_the_plain_run_of_its_own_seeds(weights_folder, tmp_path):
    from recipes import emergence

    heads = {"softmax": {0: 0.2, 1: 0.6, 2: 0.4}, "gate": {2: 0.1, 1: 0.5, 7: 0.9}}
    for kind, by_seed in heads.items():
        runs = [run_of(tmp_path / f"{kind}{s}", [measured(5, share, 1.0)], seed=s) for s, share in by_seed.items()]
        ship.ship_curve(f"lm-python-{kind}", runs)
    _, pairs = emergence.common_step(emergence.compared(emergence.ARCHITECTURE))
    assert pairs["gate"].own["sink_rate_after_first"].tolist() == [0.1, 0.5]
    assert pairs["gate"].plain["sink_rate_after_first"].tolist() == [0.4, 0.6]
    assert pairs["softmax"].own["sink_rate_after_first"].tolist() == [0.2, 0.6, 0.4]


def test_a_window_is_judged_by_where_the_sink_is(weights_folder, tmp_path):
    for name in ("lm-python", "lm-python-softmax"):
        ship.ship_curve(name, [run_of(tmp_path / name, [measured(5, 0.2, 10.0)])])
    for oldest, verdict in (
        (0.1, "| yes: "),
        (0.5, "**no** (0 of 1 seeds): some head over .3 on the first token, none"),
    ):
        run = run_of(tmp_path / str(oldest), [measured(5, 0.2, 10.0, oldest_max=oldest)], window=32)
        ship.ship_curve("lm-python-window", [run])
        line = line_with("last 32 keys")
        assert verdict in line
        assert f"best head on the oldest key in view: {oldest}" in line


def test_variants_are_drawn_over_the_tokens_that_all_have(weights_folder, tmp_path):
    from recipes import figures

    keys = ("alpha_mean", "sink_rate_after_first", "value_ratio", "massive", "loss")
    steps = {("lm-python", 0): (1, 2, 3, 4), ("lm-python-gate", 0): (1, 2), ("lm-python-gate", 1): (1, 2)}
    runs: dict[str, list] = {}
    for (name, seed), at in steps.items():
        rows = [{"step": s, "tokens": 1_000_000 * s, **{k: s / 10 + seed for k in keys}} for s in at]
        runs.setdefault(name, []).append(run_of(tmp_path / f"{name}{seed}", rows, seed=seed))
    for name, folders in runs.items():
        ship.ship_curve(name, folders)
    figure = figures.compared(["lm-python", "lm-python-gate"])
    lines = figure.axes[0].lines
    assert [len(line.get_xdata()) for line in lines] == [2, 2, 2, 2]
    assert lines[-1].get_ydata().tolist() == pytest.approx([0.6, 0.7]), "the mean over the seeds"
    assert [text.get_text() for text in figure.axes[-1].get_legend().get_texts()] == ["lm-python", "lm-python-gate"]


def test_a_card_says_what_a_run_has_beside_a_llama():
    plain = lm.LanguageModelConfig()
    assert ship.changes_of(plain) == []
    made = dataclasses.replace(plain, extra_key=True, extra_value=True, gate=True, gate_elements=True, prefix=5)
    assert ship.changes_of(made) == [
        "a learned key and value in each head", "a gate on each element of a head", "a prefix of 5",
    ]  # fmt: skip
    assert ship.changes_of(dataclasses.replace(plain, extra_key=True, gate=True, positions="alibi", bos=False)) == [
        "a learned key in each head", "a gate on each head", "alibi positions", "no <s>",
    ]  # fmt: skip


def test_a_further_seed_goes_into_the_card_of_a_shipped_model(weights_folder, tmp_path, monkeypatch):
    recipe = {"align_lr": 0.001, "normaliser": "softmax"}
    target = weights_folder / "vlm-tiny"
    target.mkdir(parents=True)
    card = {"name": "vlm-tiny", "description": "tiny", "recipe": recipe | {"seed": 0}, "facts": {}, "claims": []}
    (target / "card.json").write_text(json.dumps(card))
    (target / "recipe.json").write_text(json.dumps(recipe | {"seed": 0}))
    row = {"description": "tiny", "licence": ship.vision_smol_card.LICENCE, "files": {}}
    (weights_folder / "manifest.json").write_text(json.dumps({"vlm-tiny": row}))
    runs = []
    for seed, more in ((1, {}), (0, {}), (2, {"normaliser": "relu"})):
        runs.append(run_of(tmp_path / f"run{seed}", [{"step": 1}], **recipe | more, seed=seed))
        (runs[-1] / "config.json").rename(runs[-1] / "recipe.json")

    def add_seed(content, folder, name):
        assert name == "zoo:vlm-tiny"
        content["facts"]["seed 1"] = {"accuracy": 0.5}

    monkeypatch.setattr(ship.vision_smol_card, "add_seed", add_seed)
    ship.ship_seeds("vlm-tiny", runs[:1])
    assert zoo.card("vlm-tiny") == card | {"facts": {"seed 1": {"accuracy": 0.5}}}
    assert json.loads((zoo.CURVES / "vlm-tiny.json").read_text())["runs"] == {"1": [{"step": 1}]}
    listed = json.loads((weights_folder / "manifest.json").read_text())["vlm-tiny"]
    assert (listed["licence"], sorted(listed["files"])) == (row["licence"], ["card.json", "recipe.json"])
    for again in runs[:2]:
        with pytest.raises(ModelError, match=r"the card of zoo:vlm-tiny holds seed \d already. Name another run"):
            ship.ship_seeds("vlm-tiny", [again])
    with pytest.raises(ModelError, match=r"differs from .*vlm-tiny in normaliser"):
        ship.ship_seeds("vlm-tiny", runs[2:])
    with pytest.raises(ModelError, match=r"zoo:nobody is no model of recipes.vision_smol that is shipped"):
        ship.ship_seeds("nobody", runs[:1])
