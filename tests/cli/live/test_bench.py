"""What a page is answered is what ``run`` gives; what cannot be answered is said in words."""

import numpy as np
import pytest

import sinkscope as sk
from sinkscope.cli.live.bench import LiveModel
from sinkscope.errors import ModelError, PromptError, SchemaError
from sinkscope.report.payload import array_of, unpack
from sinkscope.testing import tiny

TEXT = "while True:\n    line = input()\n    if not line:\n        break\n    print(line.strip())\n"
ASKED = {"text": TEXT, "gamma": 0.5, "key": 0, "first": 1, "last": 3}


def test_a_typed_text_is_measured_as_run_does_plain_and_scaled(bench, model):
    header, content = unpack(bench.try_text(ASKED))
    prompts = sk.Prompts.from_texts([TEXT], model)
    edit = sk.ScaleKeys(0.5, keys=[0], layers=[1, 2, 3])
    probes = [sk.KeyMass(), sk.TokenLoss(), sk.Logits(positions="last")]
    direct = [sk.run(model, prompts, probes, edits) for edits in ([], [edit])]
    for run, ds in enumerate(direct):
        received = array_of(header["tried"]["received"][run], content)
        np.testing.assert_allclose(received, ds["key_mass"].mean(["prompt", "layer", "head"]), rtol=1e-5)
        np.testing.assert_allclose(array_of(header["tried"]["loss"][run], content), ds["token_loss"][0], rtol=1e-5)
        logits = ds["logits"].values[0, -1].astype(np.float64)
        top = np.sort(np.exp(logits) / np.exp(logits).sum())[::-1]
        shown = [each["shares"][run] for each in header["tried"]["next"]]
        assert max(shown) == pytest.approx(top[0], rel=1e-5)
        grid = array_of(header["heads"]["runs"][run]["grids"]["sink_share"], content)
        np.testing.assert_allclose(grid, ds["key_mass"].isel(prompt=0, key=0), rtol=1e-5)
    assert [run["label"] for run in header["heads"]["runs"]] == ["as it is", "gamma 0.5"]
    assert header["told"][0]["heading"] == "The sink is the first token “<s>”"
    assert header["tried"]["sinks"] == [0]


def test_gamma_one_is_one_run_and_the_text_is_measured_once(bench, monkeypatch):
    asked = {**ASKED, "text": TEXT + "done()\n"}
    assert len(unpack(bench.try_text({**asked, "gamma": 1}))[0]["heads"]["runs"]) == 1
    runs = []
    monkeypatch.setattr("sinkscope.cli.live.bench.run", lambda *a, kept=sk.run: runs.append(a) or kept(*a))
    bench.try_text({**asked, "gamma": 0})
    bench.try_text({**asked, "gamma": 0})
    assert len(runs) == 1


def test_rows_of_a_typed_text_and_of_the_readings_prompts(bench, model, reading):
    def rows(asked):
        header, content = unpack(bench.rows(asked))
        return array_of(header["rows"], content)

    prompts = sk.Prompts.from_texts([TEXT], model)
    probe = sk.AttentionMap(layers=[2], heads=[1])
    for run, edits in ((0, []), (1, [sk.ScaleKeys(0.5, keys=[0], layers=[1, 2, 3])])):
        direct = sk.run(model, prompts, [probe], edits)["attention"].values.reshape(len(prompts.ids[0]), -1)
        np.testing.assert_allclose(rows({**ASKED, "run": run, "layer": 2, "head": 1}), direct, atol=1e-6)
    found = rows({"run": 0, "prompt": 1, "layer": 2, "head": 1})
    received = reading["key_mass"].isel(prompt=1, layer=2, head=1).values[: len(found)]
    seen = [np.nanmean(found[key:, key]) for key in range(len(found))]
    np.testing.assert_allclose(seen, received, atol=1e-5)


def test_rows_of_an_edited_reading_are_read_under_its_edits(model, reading):
    edits = [sk.MaskKeys("first", layers=[2])]
    prompts = sk.Prompts.from_texts(["def add(a, b):\n    return a + b\n"], model)
    bench = LiveModel(model, sk.run(model, prompts, [sk.KeyMass()], edits))
    header, content = unpack(bench.rows({"run": 0, "prompt": 0, "layer": 2, "head": 0}))
    assert array_of(header["rows"], content)[1:, 0].max() == 0
    swept = sk.sweep(model, prompts, {"masked": edits}, [sk.KeyMass()], baseline=True)
    bench = LiveModel(model, swept)
    which = swept["edit"].values.tolist().index("masked")
    for run in (0, 1):
        header, content = unpack(bench.rows({"run": run, "prompt": 0, "layer": 2, "head": 0}))
        assert (array_of(header["rows"], content)[1:, 0].max() == 0) == (run == which)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"text": "  "}, "There is no text to run. Type a sentence."),
        ({"text": None}, "There is no text to run. Type a sentence."),
        (
            {"text": "x = 1\n" * 80},
            "This text has 321 tokens; up to 256 are measured here. Shorten it, or measure it with",
        ),
        ({"gamma": -1}, "gamma is -1. Give a number from 0 to 10."),
        ({"gamma": "2"}, "gamma is '2'. Give a number"),
        ({"gamma": float("nan")}, "gamma is nan. Give a number"),
        ({"key": 400}, "Position 400 is not in this text of "),
        ({"key": 1.5}, "key is 1.5. Give a whole number from 0."),
        ({"last": 6}, "last is 6. Give a whole number from 0 to 5."),
        ({"first": 4}, "Layers 4 to 3 are none."),
    ],
)
def test_what_cannot_be_run_is_said(bench, changes, said):
    with pytest.raises(PromptError) as caught:
        bench.try_text({**ASKED, **changes})
    assert said in str(caught.value)


def test_readings_and_models_that_do_not_fit_are_refused(model, reading, bench):
    with pytest.raises(SchemaError, match=r"holds no key_mass of single prompts. Measure with --probe key-mass"):
        LiveModel(model, reading[["entropy"]].assign_attrs(reading.attrs))
    with pytest.raises(ModelError, match="the weights of zoo:lm-python are not those that were read"):
        LiveModel(model, reading.assign_attrs(model_fingerprint="other"))
    with pytest.raises(ModelError, match=r"is no model of texts \(vision\). Write its page: sinkscope report."):
        LiveModel(sk.load_model(tiny("vit")), reading)
    other = reading.assign_coords(prompt_hash=("prompt", ["", ""]))
    with pytest.raises(PromptError, match="The tokens of prompt 1 do not tell what the model was given"):
        LiveModel(model, other).rows({"run": 0, "prompt": 1, "layer": 0, "head": 0})
    with pytest.raises(PromptError, match=r"prompt is 2. Give a whole number from 0 to 1."):
        bench.rows({"run": 0, "prompt": 2, "layer": 0, "head": 0})
