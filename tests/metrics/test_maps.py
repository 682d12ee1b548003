"""Numbers of maps: the vectors of the sheets, and controls where there is nothing to find."""

import numpy as np
import pytest
import xarray as xr

import sinkscope as sk
from sinkscope import metrics, testing
from sinkscope.errors import MetricError

from .readings import A5, A5_SELF


def test_the_map_of_the_vectors():
    assert float(metrics.concentration(A5)) == pytest.approx(1.691153, abs=1e-6)
    assert float(metrics.importance_score(A5)[0]) == pytest.approx(0.66)
    assert [float(metrics.local_focus(A5, d)) for d in range(4)] == pytest.approx(
        [0.32, 0.325, 0.366667, 0.3], abs=1e-6
    )
    assert float(metrics.head_diversity(np.stack([A5, A5_SELF]))) == pytest.approx(0.166667, abs=1e-6)


def test_controls_of_maps():
    even = np.tril(np.ones((5, 5))) / np.arange(1, 6)[:, None]
    assert float(metrics.concentration(np.eye(5))) == pytest.approx(5**0.5)
    assert float(metrics.concentration(even)) < float(metrics.concentration(A5))
    assert float(metrics.local_focus(np.eye(5))) == 1
    assert float(metrics.local_focus(np.eye(5), 1)) == 0
    assert float(metrics.head_diversity(np.stack([A5, A5]))) == 0
    with pytest.raises(MetricError, match=r"local_focus\(distance=5\): the map has distances 0\.\.4"):
        metrics.local_focus(A5, 5)
    with pytest.raises(MetricError, match=r"head_diversity: expected maps of shape \(\.\.\., head, query, key\)"):
        metrics.head_diversity(A5)


def test_global_sinks_and_magnets():
    mean, variation = metrics.global_sinks(A5[2:])
    assert (mean[0], variation[0]) == pytest.approx((0.5, 0.163299), abs=1e-6)
    assert int(np.nanargmin(variation[1:3])) == 0
    assert float(metrics.magnet_share([0.2, 0.5, 0.1, 0.2], [False, True, False, True])) == pytest.approx(0.7)
    assert np.isnan(metrics.magnet_share([0.0, 0.0], [True, False]))


def test_the_planted_sink_is_a_global_one_and_its_twin_has_none():
    layer, head = testing.planted_sink(0)[1].heads[0]
    for shuffled in (False, True):
        model, _ = testing.planted_sink(0, shuffled=shuffled)
        prompts = sk.Prompts.from_ids([[model.config.bos_token_id, *range(5, 40)]], model)
        rows = sk.run(model, prompts, [sk.AttentionMap([layer], [head])]).attention.values[0, 0, 0, 18:, :18]
        mean, variation = metrics.global_sinks(rows)
        flat = (mean > 3 * rows.mean()) & (variation < 0.5)
        assert np.flatnonzero(flat).tolist() == ([] if shuffled else [0])


def test_effective_attention_is_the_gated_row():
    gate = np.array([[0.5, 1, 0, 1, 1.0]])
    found = metrics.effective_attention(A5[None], gate)
    np.testing.assert_allclose(found.sum(-1), gate)


def test_stable_rank():
    assert float(metrics.stable_rank(np.ones((4, 3)))) == pytest.approx(1)
    assert float(metrics.stable_rank(np.eye(3))) == pytest.approx(3)
    assert np.isnan(metrics.stable_rank(np.zeros((2, 2))))


def test_sink_types():
    shape = (1, 1, 4, 5)
    norm = np.ones(shape)
    norm[0, 0, :, 0] = [0.1, 0.6, 0.6, 0.3]
    roles = xr.DataArray([["bos"] + ["text"] * 4], dims=("prompt", "key"))
    coords = {"prompt": [0], "layer": [0], "head": range(4), "token_role": roles}
    ds = xr.Dataset(
        {
            "write_norm": (("prompt", "layer", "head", "key"), norm),
            "output_rank": (("prompt", "layer", "head"), [[[1.0, 1.2, 2.0, 1.0]]]),
        },
        coords=coords, attrs={},
    )  # fmt: skip
    assert metrics.sink_type(ds)[0, 0].values.tolist() == ["no-operation", "broadcast", "between", "between"]
    with pytest.raises(MetricError, match="sink_type needs 'output_rank'"):
        metrics.sink_type(ds.drop_vars("output_rank"))
    with pytest.raises(MetricError, match=r"sink_type\(position=7\): the longest prompt has positions 0\.\.4"):
        metrics.sink_type(ds, position=7)
