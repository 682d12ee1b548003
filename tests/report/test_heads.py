import numpy as np
import pytest

from sinkscope.report import find_sinks, write_report
from sinkscope.report import heads as module
from sinkscope.report.heads import head_data, window
from sinkscope.report.payload import Payload
from sinkscope.report.runs import runs_of


@pytest.fixture
def page(reading, tmp_path, data_of):
    return data_of(write_report(reading, tmp_path / "r.html", figures=[]))


def test_the_page_holds_the_reading(reading, page):
    heads = page.header["heads"]
    for name, held in heads["runs"][0]["variables"].items():
        np.testing.assert_allclose(page.array(held), reading[name].values, rtol=1.1e-3)
    assert list(heads["runs"][0]["variables"]) == ["key_mass", "entropy", "value_norm"]
    assert heads["kv_of_head"] == reading["kv_of_head"].values.tolist()
    assert [len(p["tokens"]) for p in heads["prompts"]] == [40, 25, 33]
    assert heads["prompts"][1]["roles"][0] == "bos"
    assert heads["prompts"][0]["tokens"][5] == "↵"
    assert heads["prompts"][0]["sinks"] == [0]
    assert heads["note"] == ""


def test_measures_are_those_of_the_metrics(reading, page):
    heads = page.header["heads"]
    assert [m["label"] for m in heads["measures"]] == [
        "attention on the first token “<s>”", "mean entropy [nat]", "value drain [ratio]",
        "largest weight on the chosen keys",
    ]  # fmt: skip
    grids = heads["runs"][0]["grids"]
    np.testing.assert_allclose(page.array(grids["entropy"]), reading["entropy"].mean(["prompt", "query"]), rtol=1e-5)
    mask = find_sinks(reading).mask
    share = reading["key_mass"].drop_vars(["token", "token_role"]).where(mask).mean("key").mean("prompt")
    np.testing.assert_allclose(page.array(grids["sink_share"]), share, rtol=1e-5)
    drain = page.array(grids["drain"])
    assert drain.shape == (6, 12)
    serves = reading["kv_of_head"].values
    assert (drain[:, serves == 2] == drain[:, [int(np.flatnonzero(serves == 2)[0])]]).all(), "one number per kv head"


def test_a_reading_without_key_mass_has_no_map(reading):
    assert head_data(runs_of(reading[["entropy"]]), Payload(), None) is None


def test_maps_that_were_recorded_are_carried(reading, tmp_path, data_of):
    size = reading.sizes["key"]
    maps = np.full((3, 6, 12, size, size), np.nan, "float32")
    maps[:, 2, 5] = np.tril(np.random.default_rng(0).random((3, size, size)))
    ds = reading.assign(attention=(("prompt", "layer", "head", "query", "key"), maps))
    data = data_of(write_report(ds, tmp_path / "r.html", figures=[]))
    held = data.header["heads"]["runs"][0]["maps"]
    assert held["heads"] == [[2, 5]]
    np.testing.assert_allclose(data.array(held["values"])[:, 0], maps[:, 2, 5], rtol=1.1e-3)


def test_the_window_keeps_the_budget():
    assert window({"prompt": 3, "key": 40}, 72) == (3, 40)
    assert window({"prompt": 500, "key": 4096}, 1024) == (3, 256)
    assert window({"prompt": 5, "key": 4096}, 80 * 64) == (1, 195)
    for heads in (1, 100, 5120, 2_000_000):
        prompts, tokens = window({"prompt": 1000, "key": 100_000}, heads)
        assert prompts >= 1
        assert tokens >= 1
        assert prompts * tokens * heads <= max(module.MAX_VALUES, heads)


def test_a_cut_is_said(reading, monkeypatch, tmp_path, data_of):
    monkeypatch.setattr(module, "MAX_TOKENS", 10)
    monkeypatch.setattr(module, "MAX_VALUES", 72 * 10 * 2)
    heads = data_of(write_report(reading, tmp_path / "r.html", figures=[])).header["heads"]
    assert heads["runs"][0]["variables"]["key_mass"]["shape"] == [2, 6, 12, 10]
    assert "the first 2 of 3 prompts and the first 10 tokens of each (the longest has 40)" in heads["note"]
