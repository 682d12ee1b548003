import numpy as np
import pytest

from sinkscope.errors import MetricError
from sinkscope.metrics import secondary_sinks
from sinkscope.metrics.secondary import primary_range, primary_stages


def states():
    rng = np.random.default_rng(0)
    hidden = rng.normal(scale=0.1, size=(24, 8, 16))
    unit = np.zeros(16)
    unit[3] = 1.0
    hidden[2:23, 0] += 200 * unit
    hidden[10:16, 5] += 20 * unit
    hidden[12:15, 6] += 20 * unit
    return hidden


def test_the_sheets_vector():
    found = secondary_sinks(states())
    assert found.attrs["primary"] == 0
    assert found["lifetime"].values[[0, 5, 6]].tolist() == [21, 6, 3]
    assert found["start"].values[[0, 5, 6]].tolist() == [2, 10, 12]
    assert found["kind"].values[[0, 5, 6]].tolist() == ["primary", "secondary", "noise"]


def test_a_norm_condition_drops_chance_hits_of_narrow_models():
    hidden = states()
    hidden[4:11, 7] = 1e-3 * hidden[4:11, 0] / 200
    assert secondary_sinks(hidden)["kind"].values[7] == "secondary"
    assert secondary_sinks(hidden, min_norm=3.0)["kind"].values[7] == ""
    assert secondary_sinks(hidden, min_norm=3.0)["kind"].values[5] == "secondary"


def test_the_sign_does_not_matter():
    hidden = states()
    hidden[:, 5] *= -1
    assert secondary_sinks(hidden)["lifetime"].values[5] == 6


def test_shallow_models_need_the_relative_rule():
    hidden = states()[:12]
    hidden[6:9, 4] = hidden[6:9, 0] / 10
    hidden[11, 0] /= 200
    assert secondary_sinks(hidden)["kind"].values[4] == "extra_primary"
    assert secondary_sinks(hidden, "relative")["kind"].values[4] == "secondary"


def test_primary_range_is_inclusive_and_survives_a_peak_at_the_end():
    assert primary_range(np.array([1, 1, 9, 9, 9, 2.0])) == (2, 4)
    assert primary_range(np.array([1, 1, 1, 9.0])) == (3, 3)


def test_stages_of_the_primary_are_found_first():
    hidden = states()
    unit = hidden[20, 0] / np.linalg.norm(hidden[20, 0])
    hidden[:, [0, 5, 6]] -= hidden[:, [0, 5, 6]] @ unit[:, None] * unit
    hidden[2:9, 0] += 30 * unit  # a first stage with a delimiter ...
    hidden[2:9, 5] += 20 * unit
    hidden[11:22, 0] += 3000 * unit  # ... and a second of the first token alone
    found = secondary_sinks(hidden, "relative", min_norm=3.0)
    assert (found["first"].values.tolist(), found["last"].values.tolist()) == ([2, 11], [8, 21])
    assert found["kind"].values[[0, 5]].tolist() == ["primary", "secondary"]
    assert found["stage"].values[[0, 5, 6]].tolist() == [0, 0, -1]
    assert found["lifetime"].values[[0, 5]].tolist() == [18, 7]
    assert found["start"].values[5] == 2
    one_range = secondary_sinks(hidden, min_norm=3.0)
    assert one_range["first"].values.tolist() == [11], "the largest rise: one range misses the first stage"
    assert one_range["kind"].values[5] == ""


def test_stages_end_where_the_norm_falls_or_jumps():
    norm = np.array([1.0, 5, 6, 1, 4, 40, 50, 2])
    assert primary_stages(norm, np.ones(8)) == [(1, 2), (4, 4), (5, 6)]
    assert primary_stages(norm, np.zeros(8)) == []
    assert primary_stages(np.ones(8), np.ones(8)) == []


def test_errors():
    with pytest.raises(MetricError, match=r"expected \(layer, token, dim\) with 3 layers or more, got \(2, 4, 8\)"):
        secondary_sinks(np.zeros((2, 4, 8)))
    with pytest.raises(MetricError, match="secondary_sinks: no definition 'x'"):
        secondary_sinks(states(), "x")
