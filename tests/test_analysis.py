import json

import numpy as np
import pytest

import sinkscope as sk
from sinkscope.analysis import Study
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
    assert names == ["map--planted.png", "map--zoo-bb-1l.png"]
    assert json.loads((study.folder / "claims.json").read_text())["models"] == sorted(m.id for m in study.each())
