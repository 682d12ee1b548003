import json
import re

import numpy as np
import pytest
import xarray as xr

import sinkscope as sk
from sinkscope.analysis import (
    Estimate,
    Study,
    ask,
    heads_that_change,
    is_large,
    largest_changes,
    need,
    points_above,
    together,
)
from sinkscope.errors import PromptError


@pytest.fixture
def argv(monkeypatch, tmp_path):
    def given(*more):
        monkeypatch.setattr("sys.argv", ["analyses/some_paper/some_figure.py", "--output", str(tmp_path), *more])

    given()
    return given


def test_claims_figures_and_readings_lie_in_one_folder(argv, capsys):
    argv("--model", "planted", "--quick")
    made = []
    with Study("Title line.\n\nMore.", paper="gu2025") as study:
        assert study.quick

        def make():
            made.append(1)
            return sk.run(study.model, study.texts("random", n=8, tokens=12), [sk.KeyMass()])

        ds = study.reading("mass", make)
        again = study.reading("mass", make)
        assert made == [1]
        np.testing.assert_array_equal(ds["key_mass"].values, again["key_mass"].values)
        assert ds.sizes["prompt"] == 2
        path = study.figure(sk.plot.sink_map(sk.metrics.sink_rate(ds, over="prompt")), "map", source=ds)
        study.claim("Fig. 1", "there are sinks", paper="many", found="2 of 4", agrees=np.bool_(True))
        study.claim("Fig. 2", "they move", paper="yes", found="no image here", agrees=None)
        study.claim("Fig. 3", "they vanish", paper="yes", found="they stay", agrees=False)
    folder = study.folder
    assert path == folder / "map.png"
    assert path.read_bytes()[:4] == b"\x89PNG"
    data = json.loads((folder / "claims.json").read_text())
    assert (data["script"], data["paper"], data["title"]) == ("some_paper/some_figure.py", "gu2025", "Title line.")
    assert [c["verdict"] for c in data["claims"]] == ["agrees", "can't be seen here", "differs"]
    assert data["figures"][0]["file"] == "map.png"
    assert "n = 2 prompts" in data["figures"][0]["says"]
    said = capsys.readouterr().out
    assert "here:  they stay: differs" in said
    argv("--model", "planted", "--quick", "--fresh")
    with Study("Title", paper="gu2025") as study:
        study.reading("mass", lambda: made.append(2) or ds)
    assert made == [1, 2]


def test_after_an_exception_nothing_is_claimed(argv):
    study = Study("Title", paper="gu2025")

    def fails():
        with study:
            study.claim("Fig. 1", "a", paper="b", found="c", agrees=True)
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fails()
    assert not (study.folder / "claims.json").exists()


@pytest.mark.parametrize("kind", ["prose", "code", "random", "repeated"])
def test_texts_have_the_length_and_the_special_tokens(argv, kind):
    argv("--model", "zoo:lm-python")
    with Study("Title", paper="gu2025") as study:
        prompts = study.texts(kind, n=5, tokens=20)
        other = study.texts(kind, n=5, tokens=20, seed=1)
    assert len(prompts) == 5
    assert all(len(ids) == 20 and ids[0] == study.model.config.bos_token_id for ids in prompts.ids)
    drawn = {tuple(ids.tolist()) for ids in (*prompts.ids, *other.ids)}
    assert len(drawn) == 10
    if kind == "repeated":
        assert all(len(set(ids[1:].tolist())) == 1 for ids in prompts.ids)


def test_texts_of_an_encoder_end_with_its_separator(argv):
    argv("--model", "minilm")
    with Study("Title", paper="sun2024") as study:
        prompts = study.texts("prose", n=3, tokens=16)
    tokenizer = study.model.tokenizer
    assert {int(ids[0]) for ids in prompts.ids} == {tokenizer.cls_token_id}
    assert {int(ids[-1]) for ids in prompts.ids} == {tokenizer.sep_token_id}


def test_texts_without_a_tokenizer(argv):
    argv("--model", "planted")
    study = Study("Title", paper="gu2025")
    with pytest.raises(PromptError, match=r"no tokenizer\. Use kind='random' or kind='repeated'"):
        study.texts("prose")


def test_texts_that_are_too_short(argv, monkeypatch):
    monkeypatch.setattr("sinkscope.tasks.corpora.prose", lambda: ["a few words only, again and again " * 5])
    study = Study("Title", paper="gu2025")
    with pytest.raises(PromptError, match=r"9 windows of 30 tokens were asked for, the text has [0-8]\."):
        study.texts("prose", n=9, tokens=31)


def test_models_one_after_the_other_keep_their_files_apart(argv):
    argv("--model", "planted", "zoo:bb-1l", "--quick")
    with Study("Title", paper="gu2025") as study:
        names = []
        for model in study.each():
            ds = study.reading(
                "mass", lambda: sk.run(study.model, study.texts("random", n=8, tokens=12), [sk.KeyMass()])
            )
            assert ds.attrs["model_id"] == model.id
            drawn = sk.plot.sink_map(sk.metrics.sink_rate(ds, over="prompt"))
            names.append(study.figure(drawn, "map", source=ds).name)
        drawn = sk.plot.sink_map(sk.metrics.sink_rate(ds, over="prompt"))
        names.append(study.figure(drawn, "of-none-of-them", source=ds).name)
    assert names == ["map--planted.png", "map--zoo-bb-1l.png", "of-none-of-them.png"]
    assert json.loads((study.folder / "claims.json").read_text())["models"] == sorted(m.id for m in study.each())


def test_a_reading_is_made_once_for_all_scripts_and_by_probe(argv, monkeypatch):
    from sinkscope.engine import run as engine

    argv("--model", "planted", "--quick")
    asked = []
    plain = engine.run

    def counting(model, prompts, probes, edits=(), **given):
        asked.append([type(probe).__name__ for probe in probes])
        return plain(model, prompts, probes, edits, **given)

    monkeypatch.setattr(engine, "run", counting)
    with Study("Title", paper="gu2025") as study:
        prompts = study.texts("random", n=8, tokens=12)
        first = study.run(prompts, [sk.KeyMass()])
    monkeypatch.setattr("sys.argv", ["analyses/other_paper/other.py", *__import__("sys").argv[1:]])
    with Study("Title", paper="gu2025") as study:
        both = study.run(study.texts("random", n=8, tokens=12), [sk.KeyMass(), sk.ResidualNorm()])
        masked = study.run(prompts, [sk.KeyMass()], [sk.MaskKeys("first")])
        swept = study.run(prompts, [sk.KeyMass()], {"masked": [sk.MaskKeys("first")]})
    assert asked == [["KeyMass"], ["ResidualNorm"], ["KeyMass"]]
    np.testing.assert_array_equal(both["key_mass"], first["key_mass"])
    assert not np.allclose(masked["key_mass"], first["key_mass"])
    np.testing.assert_allclose(swept["key_mass"].sel(edit="masked"), masked["key_mass"], atol=1e-5)
    assert swept["edit"].values.tolist() == ["baseline", "masked"]


def test_a_model_that_does_not_fit_is_left_out_in_one_line(argv, capsys):
    def judge(study, model):
        need(model, model.id != "zoo:bb-1l", "a language model")
        study.claim("Fig. 1", "a", paper="b", found="c", agrees=True)

    with Study("Title", paper="gu2025", model=("zoo:bb-1l", "planted")) as study:
        study.for_each(judge)
    data = json.loads((study.folder / "claims.json").read_text())
    assert [claim["model"] for claim in data["claims"]] == ["planted-sink-0"]
    assert data["left_out"] == {"zoo:bb-1l": "zoo:bb-1l: this analysis needs a language model."}
    assert "zoo:bb-1l is left out: zoo:bb-1l: this analysis needs a language model." in capsys.readouterr().err
    argv("--model", "zoo:bb-1l")
    with (
        pytest.raises(SystemExit, match=r"some_paper/some_figure\.py: .*this analysis needs a language model\."),
        Study("Title", paper="gu2025", model=("planted",)) as study,
    ):
        study.for_each(judge)


def test_a_script_on_training_curves_takes_no_model(argv, capsys):
    argv("--model", "minilm")
    with pytest.raises(SystemExit):
        Study("Title", paper="gu2025", model=())
    assert "unrecognized arguments: --model minilm" in capsys.readouterr().err
    argv()
    with Study("Title", paper="gu2025", model=()) as study:
        study.subject = "zoo:bb-1l"
        study.claim("Fig. 4", "a", paper="b", found="c", agrees=True)
    data = json.loads((study.folder / "claims.json").read_text())
    assert data["models"] == ["zoo:bb-1l"]
    assert data["claims"][0]["model"] == "zoo:bb-1l"


def test_estimates_say_interval_and_n_and_judge_by_the_interval():
    row = xr.Dataset({"difference": 0.5, "low": 0.4, "high": 0.6, "n": 12})
    found = Estimate.of(row, ".1%")
    assert f"{found}" == "50.0% [40.0%, 60.0%]"
    assert f"{found:+.2f}" == "+0.50 [+0.40, +0.60]"
    assert found.counted == "50.0% [40.0%, 60.0%] (n = 12)"
    assert (found.above(0.3), found.above(0.65), found.below(0.7), found.below(0.3)) == (True, False, True, False)
    assert found.above(0.5) == found.below(0.5) == "the interval [0.4, 0.6] holds 0.5 (n = 12)"
    assert Estimate(2.0, n=1).above(1.0) == "no interval: n = 1"
    touching = Estimate(-12.5, -50.0, 0.0, 8)
    assert touching.above(0.0) == touching.below(0.0) == "the interval [-50, 0] holds 0 (n = 8)"
    never = Estimate(0.0, 0.0, 0.0, 8)
    assert (never.above(0.0), never.below(0.0)) == (False, False), "no doubt about a number without spread"
    values = xr.DataArray([1.0, 2.0, 3.0, 4.0], dims="prompt")
    assert Estimate.mean(values).value == 2.5
    assert Estimate.paired(values, values - 1.0).low == 1.0
    assert f"{Estimate(3.0, unit='nat')}" == "3 nat"
    assert Estimate(3.0, n=2, units="seeds").counted == "3 (n = 2 seeds)"
    assert Estimate(3.0, n=1, units="seeds").counted == "3 (n = 1 seed)"


def test_a_ratio_is_averaged_as_a_factor_and_any_statistic_has_an_interval():
    times = Estimate.times(xr.DataArray([1.0, 4.0, 1.0, 4.0], dims="prompt"), ".1f")
    assert times.value == pytest.approx(2.0)
    assert 1.0 <= times.low < 2.0 < times.high <= 4.0
    values = np.random.default_rng(1).normal(size=200)
    spread = Estimate.resampled(lambda drawn: values[drawn].std(), 200)
    assert spread.value == pytest.approx(values.std())
    assert spread.high - spread.low == pytest.approx(2 * 1.96 * values.std() / np.sqrt(400), rel=0.2)
    assert spread == Estimate.resampled(lambda drawn: values[drawn].std(), 200), "the same draws each time"
    assert np.isnan(Estimate.resampled(lambda drawn: 1.0, 1).low)
    rare = Estimate.resampled(lambda drawn: 1.0 / len(set(drawn.tolist()) & {0}) if 0 in drawn else np.nan, 3)
    assert (rare.low, rare.high) == (1.0, 1.0), "draws that give no number are left out"


def test_the_largest_changes_of_single_heads_are_said_with_their_intervals():
    rng = np.random.default_rng(0)
    effect = xr.DataArray(rng.normal(0, 0.1, (40, 2, 3)), dims=("prompt", "layer", "head"))
    effect[:, 0, 1] += 5
    effect[:, 1, 2] = np.nan
    tested, *_ = heads_that_change(effect)
    said = largest_changes(tested)
    assert re.fullmatch(r"from -0\.\d+ \[-\S+, [-+]\S+\] to \+5 \[\+\S+, \+5\S*\] nat in one head", said), said


def test_what_cannot_be_seen_says_why(argv):
    argv("--model", "planted")
    with Study("Title", paper="gu2025") as study:
        unseen = study.claim("Fig. 1", "a", paper="b", found="c", agrees="one prompt only")
        number = study.claim("Fig. 1", "a", paper="b", number=Estimate(0.5, 0.4, 0.6, 7), agrees=True, found="more")
    assert (unseen.agrees, unseen.reason, unseen.verdict) == (None, "one prompt only", "can't be seen here")
    assert (number.number, number.found) == ("0.5 [0.4, 0.6] (n = 7)", "0.5 [0.4, 0.6] (n = 7); more")


def test_a_reading_kept_by_probe_has_the_roles_of_its_tokens(argv):
    argv("--model", "planted", "--quick")
    with Study("Title", paper="gu2025") as study:
        ds = study.run(study.texts("random", n=32, tokens=16), [sk.MassiveActivations()])
    assert ds["token_role"].dims == ("prompt", "key")
    assert sk.metrics.massive_stages(ds)["dim"].values.tolist() == sk.testing.planted_sink(0)[1].dims


def test_heads_are_tested_over_prompts_and_say_what_could_have_been_found():
    noise = np.random.default_rng(0).normal(0, 0.1, (24, 2, 3))
    effect = xr.DataArray(noise, dims=("prompt", "layer", "head"))
    effect[:, 0, 0] += 1.0
    effect[:, 1, 1] -= 1.0
    effect[:, 1, 2] = np.nan
    tested, above, below, least = heads_that_change(effect)
    assert (above, below) == (1, 1)
    assert np.isnan(tested["q_value"][1, 2])
    assert 0.05 < least < 0.15
    few = heads_that_change(effect.isel(prompt=slice(4)))
    assert few[1:3] == (0, 0), "four prompts cannot pass the correction"
    assert few[3] > least


def test_shares_are_compared_question_by_question_in_points():
    none = xr.DataArray([0.0, 1.0] * 20, dims="prompt")
    better = none.where(xr.DataArray(np.arange(40) % 4 != 0, dims="prompt"), 1.0)
    gain, above, least = points_above(better, none)
    assert (gain.value, gain.n, gain.unit) == (25.0, 40, "points")
    assert 5 < gain.low < 25 < gain.high < 45
    assert above is True
    # 1.96 + 0.84 standard errors of a share of one in four.
    assert float(least.split()[-2]) == pytest.approx(2.8 * 100 * np.sqrt(0.25 * 0.75 / 40), rel=0.1)
    assert points_above(none, better)[1] is False
    one = none.where(xr.DataArray(np.arange(40) != 0, dims="prompt"), 1.0)
    assert "holds 0" in points_above(one, none)[1]
    same, verdict, words = points_above(none, none)
    assert (same.value, same.n, verdict, words) == (0.0, 40, "no answer differs", "no answer differs")


def test_a_claim_of_several_parts_holds_where_all_do():
    assert together([True, True]) is True
    assert together([True, "few", False]) is False
    assert together([True, "few", "none"]) == "few"


def test_a_large_model_is_one_above_the_limit(monkeypatch):
    model = sk.load_model("zoo:lm-python")
    assert not is_large(model)
    monkeypatch.setattr("sinkscope.analysis.common.LARGE", model.model.num_parameters() - 1)
    assert is_large(model)


def test_english_is_asked_in_chat_and_code_is_not(monkeypatch):
    model = sk.load_model("zoo:lm-python")
    monkeypatch.setattr("sinkscope.tasks.in_chat", lambda task, model: ("chat", task.name))
    assert ask(model, "sentiment", 2, 3).name == "sentiment"
    monkeypatch.setattr(model.tokenizer, "chat_template", "{{ messages }}")
    assert ask(model, "sentiment", 2, 3) == ("chat", "sentiment")
    task = ask(model, "copy", 2, 3)
    assert (len(task.calibration), len(task.test)) == (2, 3)


def test_letters_are_measured_as_they_stand_on_a_page(argv):
    import matplotlib.pyplot as plt

    argv("--model", "planted", "--quick")
    with Study("Title.", paper="gu2025") as study:
        for name, width in (("narrow", 6.6), ("wide", 13.2)):
            figure, axes = plt.subplots(figsize=(width, 3))
            axes.plot([0, 1])
            study.figure(figure, name, source=xr.DataArray([0.0, 1.0], dims="x"), says="a line")
    said = json.loads((study.folder / "claims.json").read_text(encoding="utf-8"))
    sizes = [figure["letters"] for figure in said["figures"]]
    assert sizes == pytest.approx([8.8, 4.4]), "tick labels of 8.8 points, halved where the figure is twice as wide"
