import base64

import numpy as np

from sinkscope.report import find_sinks
from sinkscope.report import heads as module
from sinkscope.report.heads import head_data, packed, window


def unpacked(entry):
    return np.frombuffer(base64.b64decode(entry["data"]), "<f4").reshape(entry["shape"])


def test_arrays_survive_with_nan():
    values = np.array([[1.5, np.nan], [-2.0, 0.25]])
    np.testing.assert_array_equal(unpacked(packed(values)), values)


def test_head_data_holds_the_reading(reading):
    data = head_data(reading, find_sinks(reading))
    np.testing.assert_array_equal(unpacked(data["key_mass"]), reading["key_mass"].values)
    np.testing.assert_array_equal(unpacked(data["value_norm"]), reading["value_norm"].values)
    assert data["kv_of_head"] == reading["kv_of_head"].values.tolist()
    assert [len(p["tokens"]) for p in data["prompts"]] == [40, 25, 33]
    assert data["prompts"][1]["roles"][0] == "bos"
    assert data["prompts"][0]["tokens"][5] == "↵"
    assert data["note"] == ""
    assert list(data["maps"]) == ["attention on the first token “<s>”", "mean entropy [nat]"]


def test_a_reading_without_key_mass_has_no_grid(reading):
    assert head_data(reading[["entropy"]], None) is None


def test_the_window_keeps_the_budget():
    assert window({"prompt": 3, "key": 40}, 72) == (3, 40)
    assert window({"prompt": 500, "key": 4096}, 1024) == (3, 256)
    assert window({"prompt": 5, "key": 4096}, 80 * 64) == (1, 195)
    for heads in (1, 100, 5120, 2_000_000):
        prompts, tokens = window({"prompt": 1000, "key": 100_000}, heads)
        assert prompts >= 1
        assert tokens >= 1
        assert prompts * tokens * heads <= max(module.MAX_VALUES, heads)


def test_a_cut_is_said(reading, monkeypatch):
    monkeypatch.setattr(module, "MAX_TOKENS", 10)
    monkeypatch.setattr(module, "MAX_VALUES", 72 * 10 * 2)
    data = head_data(reading, find_sinks(reading))
    assert unpacked(data["key_mass"]).shape == (2, 6, 12, 10)
    assert "the first 2 of 3 prompts and the first 10 tokens of each (the longest has 40)" in data["note"]
