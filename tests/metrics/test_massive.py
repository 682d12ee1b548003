import numpy as np
import pytest

from sinkscope.errors import MetricError
from sinkscope.metrics import discover_sink_dims, massive_activations, massive_dims, massive_stages
from sinkscope.metrics.massive import normal_extreme

from .readings import from_states, with_edits

WIDTH = 64


def states(size=0.0, prompts=6, dim=9, seed=0):
    """Normal states of prompts of different length; ``size`` at the first token in one dim."""
    rng = np.random.default_rng(seed)
    made = [rng.normal(size=(5, 8 + p, WIDTH)) for p in range(prompts)]
    for state in made:
        if size:
            state[:, 0, dim] = size
    return made


def test_absolute_rule_is_strict_in_magnitude_and_not_in_ratio():
    ds = from_states([np.array([[[0.1, 0.2, 250, 0.3], [0.2, 0.1, 0.1, 100.0]]])], top=4)
    found = massive_activations(ds)
    assert found["massive"].values[0, 0].tolist() == [True, False, False, False]
    np.testing.assert_allclose(found["ratio"].values[0, 0, 0], 250 / 0.2)
    assert massive_activations(ds, ratio=1250.0)["massive"].values.sum() == 1
    assert massive_activations(ds, ratio=1251.0)["massive"].values.sum() == 0
    assert massive_activations(ds, absolute=99.0, ratio=500)["massive"].values.sum() == 2
    assert found.attrs["definition"] == "sun2024"
    assert found.attrs["reference"] == "sun2024"


def test_relative_rule_finds_what_the_absolute_rule_misses():
    ds = from_states(states(size=17.0))
    assert not massive_activations(ds)["massive"].any()
    found = massive_activations(ds, "relative")["massive"]
    assert found.dims == ("prompt", "site", "rank")
    np.testing.assert_array_equal(found, np.arange(10) == np.zeros((6, 5, 1)))
    ranked = massive_dims(ds)
    assert ranked["dim"].values.tolist() == [9]
    assert ranked.values.tolist() == [1.0]
    assert ranked["at"].values.tolist() == [0]
    np.testing.assert_allclose(ranked["magnitude"], 17.0)
    assert ranked.attrs["n"] == 30


def test_relative_rule_is_silent_on_normal_states():
    ds = from_states(states())
    assert not massive_activations(ds, "relative")["massive"].any()
    ranked = massive_dims(ds)
    assert ranked.sizes["dim"] == 0
    assert ranked.attrs["units"] == "share of (prompt, site)"


def test_relative_rule_wants_the_same_dimension_again():
    made = states()
    for p, state in enumerate(made):
        state[:, 3, 5 * p] = 40.0  # as large, but each prompt in a dim of its own
    ds = from_states(made)
    assert not massive_activations(ds, "relative")["massive"].any()
    assert massive_activations(ds, "relative", recurrence=0.0)["massive"].values.sum() == 30


def test_relative_rule_leaves_out_dimensions_that_are_large_at_every_token():
    made = states()
    for state in made:
        state[:, :, 9] = 40.0 + state[:, :, 9]
    assert not massive_activations(from_states(made), "relative")["massive"].any()
    assert massive_activations(from_states(made), "relative", dimension=0.0)["massive"].any()


def test_relative_rule_leaves_out_tokens_that_are_large_in_every_dimension():
    made = states()
    for state in made:
        state[:, 0] *= 60.0
    assert not massive_activations(from_states(made), "relative")["massive"].any()
    assert massive_activations(from_states(made), "relative", token=0.0)["massive"].any()


def test_relative_rule_wants_two_block_outputs_in_a_row():
    made = states()
    for state in made:
        state[2, 0, 9] = state[4, 0, 9] = 40.0  # at 1.post and 3.post, not between
    assert not massive_activations(from_states(made), "relative")["massive"].any()
    for state in made:
        state[3, 0, 9] = 40.0
    assert massive_activations(from_states(made), "relative")["massive"].sum() == 18
    embedding = states()
    for state in embedding:
        state[0, 0, 9] = 40.0
    assert not massive_activations(from_states(embedding), "relative")["massive"].any()


def plateaus(prompts=6):
    """Dimension 9: 40 at the first token and token 4 in blocks 1 to 2, gone in 3, 900 at the first in 4 to 6."""
    rng = np.random.default_rng(0)
    made = [rng.normal(size=(9, 8 + p, WIDTH)) for p in range(prompts)]
    for state in made:
        state[2:4, [0, 4], 9] = [40.0, 39.0]
        state[5:8, 0, 9] = 900.0
        state[5:8, 0, 20] = -60.0
    return from_states(made)


def test_stages_are_found_apart_each_with_its_size_and_place():
    found = massive_stages(plateaus())
    rows = list(zip(*(found[name].values.tolist() for name in ("dim", "first", "last", "at", "on_first")), strict=True))
    assert rows == [(9, 4, 6, 0, 1.0), (20, 4, 6, 0, 1.0), (9, 1, 2, 0, 0.5)]
    np.testing.assert_allclose(found["magnitude"], [900.0, 60.0, 40.0])
    assert found.attrs["n"] == 6


def test_the_carrier_is_judged_at_the_sink():
    ds = plateaus()
    ranked = massive_dims(ds)
    assert float(ranked["magnitude"][0]) == 40.0, "the median over all its entries is a mixture"
    sink = (ds["residual_norm"]["key"] == 0) & (ds["token_role"] != "")
    at_sink = massive_stages(ds, sink)
    assert (int(at_sink["dim"][0]), float(at_sink["magnitude"][0]), int(at_sink["first"][0])) == (9, 900.0, 4)
    elsewhere = massive_stages(ds, ~sink)
    assert elsewhere["first"].values.tolist() == [1]
    assert elsewhere["at"].values.tolist() == [4]


def test_no_stage_where_nothing_is_massive():
    found = massive_stages(from_states(states()))
    assert found.sizes["stage"] == 0


def test_relative_rule_does_not_depend_on_scale():
    a, b = (massive_activations(from_states([x * s for x in states(size=17.0)]), "relative") for s in (1.0, 1e-3))
    np.testing.assert_array_equal(a["massive"], b["massive"])
    np.testing.assert_allclose(a["ratio"], b["ratio"])


def test_normal_extreme_is_what_normal_numbers_show():
    rng = np.random.default_rng(0)
    ratios = [np.abs(x).max() / np.median(np.abs(x)) for x in rng.normal(size=(400, 5000))]
    import xarray as xr

    assert float(normal_extreme(xr.DataArray(5000))) == pytest.approx(np.median(ratios), rel=0.05)


def test_massive_keeps_the_edit_dim_and_dims_ask_for_one_label():
    ds = with_edits(from_states(states(size=17.0)))
    assert massive_activations(ds, "relative")["massive"].dims == ("edit", "prompt", "site", "rank")
    with pytest.raises(MetricError, match=r"massive_dims: the reading has the dims \['edit'\] in front"):
        massive_dims(ds)


def test_massive_errors():
    ds = from_states(states())
    with pytest.raises(
        MetricError,
        match=r"'relative' has no parameters \['ratio'\]; it has \['dimension', 'factor', 'recurrence', 'token'\]",
    ):
        massive_activations(ds, "relative", ratio=3.0)
    with pytest.raises(MetricError, match="needs the attribute 'd_model'"):
        massive_activations(ds.drop_attrs(), "relative")
    with pytest.raises(MetricError, match=r"needs 'median_abs'.*Add MassiveActivations\(\)"):
        massive_activations(ds.drop_vars("median_abs"))
    with pytest.raises(MetricError, match=r"no definition 'sun'\. Its definitions are \['sun2024', 'relative'\]"):
        massive_activations(ds, "sun")


def test_discovery_by_the_width_relative_rule():
    ds = from_states(states(size=30.0, dim=9))
    found = discover_sink_dims(ds, definition="width_relative")
    assert found["dim"].values.tolist() == [9]
    assert found.values.tolist() == [1.0]
    x = np.stack([s[0, 0] for s in states(size=30.0)])
    np.testing.assert_allclose(
        discover_sink_dims(ds.sel(site=["embed"]), definition="width_relative")["phi"],
        np.median(30 / np.sqrt((x**2).mean(1) + 1e-6)),
    )
    assert discover_sink_dims(ds).sizes["dim"] == 0, "20 is above sqrt(64)"


def test_discovery_recovers_known_dims_at_a_wide_model():
    rng = np.random.default_rng(3)
    made = [rng.choice([-1.0, 1.0], size=(11, 6, 4096)) for _ in range(3)]
    for state in made:
        state[2:, 0, 1415], state[2:, 0, 2533] = 60, -45
        state[0, 0, 777] = 500  # at one site only
    found = discover_sink_dims(from_states(made))
    assert found["dim"].values.tolist() == [1415, 2533]
    assert found.attrs["tau"] == 20.0
    rms = np.sqrt((4094 + 60**2 + 45**2) / 4096)
    np.testing.assert_allclose(found["phi"], [60 / rms, 45 / rms], rtol=1e-6)


def test_discovery_is_silent_on_normal_states_of_a_narrow_model():
    ds = from_states(states(prompts=3))
    assert 0.3125 * np.sqrt(WIDTH) < 3.0, "below what the largest of 64 normal numbers shows"
    assert discover_sink_dims(ds, definition="width_relative").sizes["dim"] == 0


def test_discovery_looks_at_the_position_asked_for():
    ds = from_states(states(size=30.0))
    assert discover_sink_dims(ds, 1, definition="width_relative").sizes["dim"] == 0


def test_discovery_errors():
    ds = from_states(states())
    with pytest.raises(MetricError, match=r"needs 'residual_norm'.*Add ResidualNorm\(\)"):
        discover_sink_dims(ds.drop_vars("residual_norm"))
    with pytest.raises(
        MetricError, match=r"needs block inputs \('embed', '0\.post', \.\.\.\); the sites are \['0\.mid'\]"
    ):
        discover_sink_dims(from_states([np.ones((1, 3, 16))], sites=["0.mid"]))
