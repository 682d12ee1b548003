import numpy as np
import pytest
import xarray as xr

from sinkscope import plot
from sinkscope.errors import SchemaError
from sinkscope.plot.naming import names_of
from sinkscope.plot.theme import CONTROL


def effects():
    return xr.DataArray(
        [0.5, -0.1], dims="edit", coords={"edit": ["mask $sink", "drop"]}, name="loss", attrs={"units": "nat"}
    )


def test_effect_bars_have_intervals_and_controls():
    effect = effects()
    controls = xr.DataArray([[0.0, 0.1], [0.2, 0.3]], dims=("edit", "draw"))
    ax = plot.effect_bars(effect, interval=(effect - 0.1, effect + 0.2), controls=controls)
    assert [p.get_width() for p in ax.patches] == [0.5, -0.1]
    whiskers = ax.collections[0].get_segments()
    np.testing.assert_allclose([[s[0, 0], s[1, 0]] for s in whiskers], [[0.4, 0.7], [-0.2, 0.1]])
    assert ax.collections[1].get_offsets().tolist() == [[0.0, 0], [0.1, 0], [0.2, 1], [0.3, 1]]
    assert [t.get_text() for t in ax.get_yticklabels()] == [r"mask \$sink", "drop"]
    assert ax.get_xlabel() == "loss [nat]"
    assert ax.yaxis_inverted(), "the first edit is at the top"


def test_effect_bars_draw_one_dim_only():
    with pytest.raises(
        SchemaError, match=r"effect_bars: draws one dimension \(edit\), this array has \('prompt', 'edit'\)"
    ):
        plot.effect_bars(effects().expand_dims("prompt"))


def curve():
    return xr.DataArray(
        [[1.0, 2.0], [3.0, 4.0], [5.0, 6.0]],
        dims=("gamma", "layer_group"),
        coords={"gamma": [0.0, 1.0, 2.0], "layer_group": ["early", "late"]},
        name="loss",
    )


def test_sweep_curve_draws_a_line_per_group():
    ax = plot.sweep_curve(curve(), interval=(curve() - 1, curve() + 1))
    early, late, reference = ax.lines
    assert early.get_xdata().tolist() == [0.0, 1.0, 2.0]
    assert (early.get_ydata().tolist(), late.get_ydata().tolist()) == ([1.0, 3.0, 5.0], [2.0, 4.0, 6.0])
    assert reference.get_xdata() == [1.0, 1.0]
    corners = ax.collections[1].get_paths()[0].vertices
    assert (corners[:, 1].min(), corners[:, 1].max()) == (1.0, 7.0)
    assert names_of(ax) == ["early", "late"]
    assert ax.get_xscale() == "symlog", "gamma is a factor; 0 has a place of its own"
    assert [t.get_text() for t in ax.get_xticklabels()] == ["0", "1", "2"]
    assert (ax.get_xlabel(), ax.get_ylabel()) == ("gamma", "loss")


def test_sweep_curve_names_what_is_wrong():
    with pytest.raises(SchemaError, match=r"sweep_curve\(x='alpha'\): draws 'alpha' and at most one more"):
        plot.sweep_curve(curve(), x="alpha")


def test_random_lines_are_grey_and_broken_and_numbers_say_what_they_are():
    lines = xr.DataArray(np.ones((3, 2)), dims=("arm", "gamma"), coords={"gamma": [0.5, 2.0]})
    ax = plot.sweep_curve(lines.assign_coords(arm=["first", "random token", "random heads"]))
    assert ax.get_xscale() == "log"
    assert [line.get_color() == CONTROL for line in ax.lines[:3]] == [False, True, True]
    assert ax.lines[1].get_linestyle() != ax.lines[2].get_linestyle()
    ax = plot.sweep_curve(lines.rename(arm="threshold").assign_coords(threshold=[0.2, 0.3, 0.4]))
    assert names_of(ax) == ["threshold 0.2", "threshold 0.3", "threshold 0.4"]


def test_the_legend_of_controls_is_outside_the_bars():
    ax = plot.effect_bars(effects(), controls=effects() * 0)
    ax.figure.canvas.draw()
    assert ax.get_legend().get_window_extent().y0 >= ax.get_window_extent().y1


def test_masking_curve_has_no_reference_line():
    ax = plot.masking_curve(curve().rename(gamma="masked"))
    assert len(ax.lines) == 2
    assert ax.get_xlabel() == "masked tokens"


def test_limits_and_controls_of_bars_go_by_their_labels():
    effect = effects()
    turned = effect.isel(edit=[1, 0])
    ax = plot.effect_bars(effect, interval=(turned - 0.1, turned + 0.2), controls=turned.expand_dims(draw=2))
    np.testing.assert_allclose([s[0, 0] for s in ax.collections[0].get_segments()], effect - 0.1)
    assert ax.collections[1].get_offsets()[:, 0].tolist() == [0.5, 0.5, -0.1, -0.1]
    with pytest.raises(
        SchemaError, match=r"effect_bars\(controls=\): 2 labels of 'edit' beside 2 that are drawn, such as"
    ):
        plot.effect_bars(effect, controls=turned.assign_coords(edit=["drop", "other"]))
