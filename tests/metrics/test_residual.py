import numpy as np
import pytest

from sinkscope.errors import MetricError
from sinkscope.metrics import at_block_inputs, phi_gap, phi_histogram, phi_sinks, relative_phi
from sinkscope.metrics.residual import phi_threshold

from .readings import ATTRS, from_states


def reading(width=4096):
    ds = from_states([np.ones((3, 4, 8)), np.ones((3, 2, 8))]).drop_vars(
        ["top_value", "top_dim", "top_position", "median_abs", "residual_norm"]
    )
    phi = np.full((2, 3, 4), 1.0)
    phi[0, 1:, 0], phi[0, 1, 2], phi[1, 2, 1] = 43.8, 20.0, 25.0
    phi[1, :, 2:] = np.nan
    ds["phi"] = (("prompt", "site", "key"), phi)
    ds["token_role"][:] = [["bos", "text", "image", "image"], ["bos", "image", "", ""]]
    ds.attrs = ATTRS | {"d_model": width}
    return ds


def test_phi_sinks_at_the_papers_threshold():
    found = phi_sinks(reading())
    assert found.dims == ("prompt", "site", "key")
    assert np.argwhere(found.values).tolist() == [[0, 1, 0], [0, 1, 2], [0, 2, 0], [1, 2, 1]]
    assert found.attrs["tau"] == 20.0


def test_phi_sinks_of_a_role_and_by_width():
    assert np.argwhere(phi_sinks(reading(), roles="image").values).tolist() == [[0, 1, 2], [1, 2, 1]]
    by_width = phi_sinks(reading(), "width_relative")
    np.testing.assert_array_equal(by_width, phi_sinks(reading()))
    assert phi_sinks(reading(256), "width_relative", tau=1.5).sum() == 3


def test_threshold_is_twice_the_normal_extreme_in_narrow_models():
    assert phi_threshold(0.3125, 4096) == 20.0
    assert phi_threshold(0.3125, 64) == pytest.approx(2 * 2.418, abs=1e-2)


def test_relative_phi_is_over_its_bound():
    np.testing.assert_allclose(relative_phi(reading()).values[0, 1, 0], 43.8 / 64)


def gapped(ordinary):
    """Five tokens, the third of the image; the first is a sink at one of two sites."""
    ds = from_states([np.ones((3, 5, 8))]).drop_vars(
        ["top_value", "top_dim", "top_position", "median_abs", "residual_norm"]
    )
    phi = np.full((1, 3, 5), 5.0)
    phi[0, 1] = [40.0, ordinary, 39.0, ordinary, ordinary]
    ds["phi"] = (("prompt", "site", "key"), phi)
    ds["token_role"][:] = [["bos", "text", "image", "text", "text"]]
    ds.attrs = ATTRS | {"d_model": 4096}
    return ds


def test_the_gap_lies_between_first_tokens_and_other_text():
    gap = phi_gap(gapped(10.0))
    assert float(gap) == pytest.approx(25.0)
    assert (gap.attrs["first"], gap.attrs["ordinary"], gap.attrs["sites"]) == (40.0, 10.0, ["0.post"])


def test_no_gap_is_refused():
    with pytest.raises(MetricError, match=r"phi_gap: no gap at 1 sites: phi is 40 at first tokens .* and 38 at other"):
        phi_gap(gapped(38.0))
    flat = gapped(10.0)
    flat["phi"][:] = 5.0
    with pytest.raises(MetricError, match=r"phi_gap: the first token is a sink at no site: its phi is at most 5"):
        phi_gap(flat)


def test_histogram_counts_real_tokens():
    counts = phi_histogram(reading(), bins=4)
    assert counts.dims == ("site", "bin")
    assert counts.sum("bin").values.tolist() == [6, 6, 6]
    assert counts.sel(site="0.post").values.tolist() == [4, 1, 1, 0]
    assert phi_histogram(reading(), 4, roles="image").sum("bin").values.tolist() == [3, 3, 3]
    assert counts["bin"].values.tolist() == [0.125, 0.375, 0.625, 0.875]


def test_block_inputs_are_the_states_each_layer_reads():
    read = at_block_inputs(reading()["phi"], [0, 1, 2])
    assert read.dims == ("prompt", "layer", "key")
    np.testing.assert_array_equal(read.sel(layer=1), reading()["phi"].sel(site="0.post"))
    with pytest.raises(MetricError, match=r"the sites \['2\.post'\] are missing"):
        at_block_inputs(reading()["phi"], [3])


def test_errors():
    with pytest.raises(MetricError, match=r"phi_sinks needs 'phi'.*Add SinkDims\(\)"):
        phi_sinks(reading().drop_vars("phi"))
    with pytest.raises(MetricError, match=r"phi_histogram\(bins=0\): at least one bin"):
        phi_histogram(reading(), 0)
    with pytest.raises(MetricError, match="relative_phi needs the attribute 'd_model'"):
        relative_phi(reading().drop_attrs())
