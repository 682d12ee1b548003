import runpy

import matplotlib.pyplot as plt
import numpy as np
import pytest
import xarray as xr
from PIL import Image

import sinkscope as sk
from analyses.scripts import ANALYSES, run

SCRIPTS = {
    "backcopy_picture": 3,
    "who_does_what": 2,
    "dynamics": 5,
    "theorem": 1,
    "residual_peak": 7,
    "active_dormant": 2,
    "basics": 3,
    "joint_arms": 2,
}
MODELS = {"residual_peak": ("--model", "zoo:lm-python", "zoo:bb-3l"), "active_dormant": ("--model", "zoo:lm-python")}
MODELS |= dict.fromkeys(("basics", "joint_arms"), ("--model", "zoo:lm-python"))


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    """Every script once, on the model it is made for."""
    folder = tmp_path_factory.mktemp("guo2024")
    with pytest.MonkeyPatch.context() as patch:
        return {name: run(f"guo2024/{name}.py", folder, patch, *MODELS.get(name, ())) for name in SCRIPTS}


@pytest.mark.parametrize("name", SCRIPTS)
def test_claims_and_a_figure_with_something_on_it(results, name):
    said, figures = results[name]
    assert said["paper"] == "guo2024"
    assert len(said["claims"]) == SCRIPTS[name]
    assert len(figures) == {"residual_peak": 3, "active_dormant": 2}.get(name, 1)
    with Image.open(figures[0]) as picture:
        assert min(picture.size) > 300
        assert len(picture.convert("RGB").getcolors(1 << 24)) > 20


def claims(results, name):
    return results[name][0]["claims"]


def test_the_head_sleeps_on_all_but_triggers_and_the_first_value_is_the_smallest(results):
    assert [claim["agrees"] for claim in claims(results, "backcopy_picture")] == [True] * 3
    assert "0 of 65 tokens are smaller" in claims(results, "backcopy_picture")[2]["found"]


def test_extreme_tokens_are_judged_on_texts_and_not_on_the_sentence_that_is_drawn(results):
    found = claims(results, "basics")
    assert all(claim["number"].endswith("(n = 8)") and "[" in claim["number"] for claim in found)
    assert "heads of layer 4 above one half" in found[0]["found"], "a late layer is one of the second half"


def test_attention_copies_and_the_mlp_knows_the_bigrams(results):
    assert [claim["agrees"] for claim in claims(results, "who_does_what")] == [True, True]


@pytest.mark.parametrize("name", ["backcopy_picture", "who_does_what"])
def test_a_model_of_another_task_is_refused_in_one_line(tmp_path, monkeypatch, name):
    with pytest.raises(SystemExit, match=r"all-MiniLM-L6-v2: this analysis needs a model trained on Bigram-Backcopy"):
        run(f"guo2024/{name}.py", tmp_path, monkeypatch, "--model", "minilm")


def test_training_curves_take_no_model(tmp_path, monkeypatch, capsys):
    with pytest.raises(SystemExit):
        run("guo2024/dynamics.py", tmp_path, monkeypatch, "--model", "minilm")
    assert "unrecognized arguments: --model minilm" in capsys.readouterr().err


def test_the_theorem_is_not_judged_on_runs_that_train_the_value(results):
    rise, along, drain, *relu = claims(results, "dynamics")
    assert rise["agrees"] is True
    assert along["paper"] == ""
    assert along["number"].startswith("-0.0")
    assert drain["agrees"] is True
    assert drain["number"].endswith("(n = 5)")
    assert {claim["model"] for claim in (rise, along)} == {"zoo:bb-3l"}
    assert {claim["model"] for claim in relu} == {"zoo:bb-1l-relu"}


def test_the_theorem_is_judged_on_a_value_that_is_held_at_zero(results):
    (theorem,) = claims(results, "theorem")
    assert theorem["agrees"] is True
    assert float(theorem["number"].split()[0]) == pytest.approx(0.5, abs=0.05)
    assert theorem["model"] == "theorem's model"


def test_relu_is_judged_over_seeds_and_not_by_the_worst_of_them(results):
    sink = claims(results, "dynamics")[3]
    assert sink["number"].endswith("(n = 5)")
    assert sink["agrees"] is None, "one seed of five has a sink, so the interval over seeds decides"
    assert "holds 0.05" in sink["reason"]


def test_the_peak_is_looked_for_where_it_is_highest(results):
    found = claims(results, "residual_peak")
    assert [claim["model"] for claim in found] == ["zoo:lm-python"] * 2 + ["zoo:bb-3l"] * 3 + [
        "zoo:bb-3l-sgd",
        "zoo:bb-3l-relu",
    ]
    assert "at 2.post" in found[0]["found"], "not at the last block's input"
    assert "without MLP 0" in found[0]["found"]
    adam = found[4]
    assert adam["agrees"] is None, "one seed in three grows a peak"
    assert "6.2, 1.7, 2.0 by seed" in adam["found"]
    assert found[5]["agrees"] is True


def test_the_switch_is_tested_on_prompts_it_was_not_chosen_on(results):
    switch, cost = claims(results, "active_dormant")
    assert "on other prompts than it was chosen on" in switch["found"]
    assert switch["number"].endswith("(n = 4)")
    assert "other heads of the layer" in cost["found"]


class Drawn:
    """Takes the figure that a script would keep."""

    subject = "a model of 30 blocks of 9 heads"

    def figure(self, drawn, *_, **__):
        self.kept = drawn.get_figure(root=True) if hasattr(drawn, "get_figure") else drawn
        return self.kept


def crowded(figure):
    """Labels of ticks that lie on the next one of their axis."""
    figure.canvas.draw()
    found = []
    for axis in [axis for ax in figure.axes for axis in (ax.xaxis, ax.yaxis)]:
        labels = [label for label in axis.get_ticklabels() if label.get_text() and label.get_visible()]
        boxes = [label.get_window_extent() for label in labels]
        found += [a.get_text() for a, one, two in zip(labels, boxes, boxes[1:], strict=False) if one.overlaps(two)]
    return found


def test_figures_of_thirty_blocks_can_be_read(monkeypatch):
    monkeypatch.syspath_prepend(str(ANALYSES / "guo2024"))
    layers, heads, rng = 30, 9, np.random.default_rng(0)
    axes = {"prompt": range(4), "layer": range(layers), "head": range(heads)}
    mass = {kind: xr.DataArray(rng.random((4, layers, heads)), axes) for kind in ("code", "prose")}
    lost = {kind: rng.random((4, 4)) for kind in mass}
    study = Drawn()
    dormant = runpy.run_path(str(ANALYSES / "guo2024" / "active_dormant.py"))
    with sk.plot.theme("page"):
        dormant["draw"](study, mass, rng.random((layers, heads)), lost, [f"L16H{head}" for head in range(4)])
    assert crowded(study.kept) == []

    arms = ["nothing", *(f"{part} {layer}" for layer in range(layers) for part in ("attention", "MLP"))]
    norm = xr.DataArray(rng.random((len(arms), 4)), {"arm": arms}, ("arm", "prompt"))
    peak = runpy.run_path(str(ANALYSES / "guo2024" / "residual_peak.py"))
    rows = peak["by_layer"](norm)
    assert dict(rows.sizes) == {"out": 3, "layer": layers, "prompt": 4}, "one line per part, not 61 labels on an axis"
    with sk.plot.theme("page"):
        for few in (norm, norm.isel(arm=slice(0, 3))):  # bars where the peak stands behind the first block
            assert crowded(study.figure(peak["draw"](few, "11.post", "one sublayer out"))) == []
    plt.close("all")
