"""Copying heads, recovery, exits and the sets of PAINT: vectors and controls."""

import numpy as np
import pytest

from sinkscope import metrics
from sinkscope.errors import MetricError

PROMPT = [1, 9, 9, 9, 21, 22, 23, 9]


def test_the_retrieval_vector_both_ways():
    keys, generated = [4, 5, 5, 0], [21, 22, 22, 30]
    assert float(metrics.retrieval_score(keys, generated, PROMPT, (4, 7))) == pytest.approx(2 / 3)
    assert float(metrics.retrieval_score(keys, generated, PROMPT, (4, 7), unique=False)) == pytest.approx(1.0)


def test_a_head_that_looks_elsewhere_or_copies_something_else_scores_nothing():
    keys = np.array([[0, 0, 0], [4, 5, 6], [6, 4, 5]])
    found = metrics.retrieval_score(keys, [21, 22, 23], PROMPT, (4, 7))
    assert found.tolist() == [0, 1, 0]
    with pytest.raises(MetricError, match=r"retrieval_score\(needle=\(6, 9\)\): the prompt has positions 0\.\.7"):
        metrics.retrieval_score(keys, [21, 22, 23], PROMPT, (6, 9))
    with pytest.raises(MetricError, match="3 steps of top keys but 2 generated ids"):
        metrics.retrieval_score(keys, [21, 22], PROMPT, (4, 7))


def test_recovery():
    found = metrics.recovery_rate([0.8, 0.2, 0.5, 0.3], [0.8, 0.8, 0.8, 0.205], 0.2)
    np.testing.assert_allclose(found, [1, 0, 0.5, np.nan])


def test_the_exit_is_the_first_layer_that_fits_both_rules():
    assert metrics.exit_layer([0.2, 0.995, 1.0, 1.0], [3.0, 1.1, 1.02, 1.0]) == 2
    assert metrics.exit_layer([0.2, 0.9], [1.0, 1.0]) is None


def test_paint_finds_the_tower_s_sink_and_not_in_even_attention():
    first, late = np.linspace(0, 1, 16), np.full(16, 0.1)
    local, summary = metrics.paint_tokens(first, late)
    assert not summary.any()
    assert np.flatnonzero(local).tolist() == [12, 13, 14, 15]
    late[14] = 0.9
    local, summary = metrics.paint_tokens(first, late)
    assert np.flatnonzero(summary).tolist() == [14]
    assert np.flatnonzero(local).tolist() == [12, 13, 15]


def test_the_block_that_writes_the_peak_is_found():
    states = {"embed": np.zeros((3, 2), np.float32)}
    states["0.mid"] = states["embed"] + 1
    states["0.post"] = states["0.mid"] + np.array([[500, 0], [0, 0], [0, 0]], np.float32)
    states["1.mid"] = states["1.post"] = states["0.post"]
    found = metrics.sublayer_peak(states)
    assert found["attention"].tolist() == [1, 0]
    assert found["mlp"].tolist() == [500, 0]
