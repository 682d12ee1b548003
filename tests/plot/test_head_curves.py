import itertools

import numpy as np
import pytest
import xarray as xr
from matplotlib.collections import LineCollection, PathCollection, PolyCollection

from sinkscope.errors import SchemaError
from sinkscope.plot import head_curves
from sinkscope.plot.head_curves import HALF

GAMMAS = [0.25, 1.0, 4.0]


def effects(layers=3, heads=2, seed=0):
    values = np.random.default_rng(seed).normal(0, 0.1, (layers, heads, 3))
    values[..., 1] = 0
    return xr.DataArray(values, dims=("layer", "head", "gamma"), coords={"gamma": GAMMAS}, attrs={"units": "nat"})


def lines(axes):
    return [each for each in axes.collections if type(each) is LineCollection]


def test_each_curve_is_drawn_in_its_cell_on_one_scale():
    effect = effects()
    axes = head_curves(effect, limit=0.5)
    drawn = np.array(lines(axes)[-1].get_segments()).reshape(3, 2, 3, 2)
    assert drawn[..., 1] - np.arange(3)[:, None, None] == pytest.approx(HALF * effect.values / 0.5)
    assert drawn[1, 1, :, 0] == pytest.approx([1 - HALF, 1, 1 + HALF]), "gamma 1 lies in the middle of 1/4 and 4"
    assert "gamma 0.25 to 4, -0.5 to 0.5 nat" in axes.get_xlabel()
    assert len(axes.collections) < 8, "hundreds of heads are a few artists"
    assert len(axes.figure.axes) == 1


def test_the_area_changes_its_colour_where_the_curve_crosses_zero():
    curve = xr.DataArray([[[-1.0, 0.0, 1.0]]], dims=("layer", "head", "gamma"), coords={"gamma": GAMMAS})
    above, below = (each for each in head_curves(curve).collections if isinstance(each, PolyCollection))
    up, down = above.get_paths()[0].vertices, below.get_paths()[0].vertices
    assert up[:, 1].min() == down[:, 1].max() == 0
    assert up[up[:, 1] > 0][:, 0].min() > 0 > down[down[:, 1] < 0][:, 0].max()


def test_a_head_that_was_not_measured_has_a_dash_and_no_curve():
    effect = effects()
    effect[0, 1] = np.nan
    effect[2, 0, 1] = np.nan
    axes = head_curves(effect, behind=effects(seed=1))
    zero, behind, curves = lines(axes)
    assert [len(each.get_segments()) for each in (zero, behind, curves)] == [6, 6, 5]
    widths = [end[0] - start[0] for start, end in zero.get_segments()]
    assert widths[1] < 0.5 * widths[0]
    assert sorted(len(each) for each in curves.get_segments()) == [2, 3, 3, 3, 3]


def test_what_is_beyond_the_limit_is_cut_at_the_edge_of_its_cell():
    drawn = np.array(lines(head_curves(effects() * 100, limit=0.1))[-1].get_segments()).reshape(3, 2, 3, 2)
    assert np.abs(drawn[..., 1] - np.arange(3)[:, None, None]).max() == pytest.approx(HALF)


def test_marked_heads_have_a_dot_in_the_corner_and_marked_points_on_the_curve():
    effect = effects()
    dots = [
        c for c in head_curves(effect, marked=abs(effect).max("gamma") > 0.1).collections if type(c) is PathCollection
    ]
    heads = np.argwhere((abs(effect).max("gamma") > 0.1).values)
    assert np.round(dots[0].get_offsets()).tolist() == [[head, layer] for layer, head in heads]
    limit = float(abs(effect).max())
    sure = effect > 0.05
    (points,) = [c for c in head_curves(effect, marked=sure).collections if type(c) is PathCollection]
    layer = np.argwhere(sure.values)[:, 0]
    assert np.asarray(points.get_offsets())[:, 1] - layer == pytest.approx(HALF * effect.values[sure.values] / limit)


def test_no_attention_at_all_has_a_place_left_of_the_least_factor():
    effect = effects().assign_coords(gamma=[0.0, 0.5, 1.0])
    drawn = np.array(lines(head_curves(effect))[-1].get_segments())
    assert drawn[0, :, 0] == pytest.approx([-HALF, 0, HALF])
    assert "gamma 0 to 1" in head_curves(effect).get_xlabel()


@pytest.mark.parametrize("size", ["paper", "page", "slide"])
@pytest.mark.parametrize("shape", [(30, 9), (80, 64)])
def test_labels_of_many_heads_do_not_touch(shape, size):
    effect = effects(*shape).assign_attrs(model_id="a model of many heads", n_prompts=12)
    axes = head_curves(effect, marked=effect > 0.2, title="First token scaled, head by head", size=size)
    figure = axes.figure
    figure.canvas.draw()
    texts = [axes.title, axes._left_title, axes.xaxis.label, axes.yaxis.label, figure._supxlabel]
    texts += [*axes.get_xticklabels(), *axes.get_yticklabels()]
    boxes = {text.get_text(): text.get_window_extent() for text in texts if text.get_text().strip()}
    whole = [text.get_window_extent() for text in texts if text.get_text().strip()]
    for one, other in itertools.combinations(whole, 2):
        assert not one.overlaps(other)
    assert all(box.x0 >= 0 and box.x1 <= figure.bbox.x1 and box.y0 >= 0 for box in whole), boxes


def test_refusals_say_what_to_do():
    with pytest.raises(SchemaError, match=r"head_curves: draws \('layer', 'head', 'gamma'\)"):
        head_curves(effects().isel(head=0))
    with pytest.raises(SchemaError, match="head_curves: the labels of 'gamma' are no numbers"):
        head_curves(effects().assign_coords(gamma=["a", "b", "c"]))
    with pytest.raises(SchemaError, match=r"head_curves\(limit=-1.0\): it must lie above 0"):
        head_curves(effects(), limit=-1.0)


def test_marks_and_curves_behind_go_by_their_labels():
    effect = effects(layers=2).assign_coords(layer=[0, 1], head=[0, 1])
    marked = (effect.isel(gamma=0) > 9).copy(data=[[False, True], [False, False]])
    wanted = head_curves(effect, marked=marked, behind=2 * effect)
    found = head_curves(effect, marked=marked.isel(head=[1, 0]), behind=2 * effect.isel(layer=[1, 0], gamma=[2, 1, 0]))
    for one, other in zip(wanted.collections, found.collections, strict=True):
        np.testing.assert_array_equal(one.get_offsets(), other.get_offsets())
        for path, same in zip(one.get_paths(), other.get_paths(), strict=True):
            np.testing.assert_array_equal(path.vertices, same.vertices)
    for wrong in ({"marked": marked.isel(head=[0])}, {"behind": effect.assign_coords(layer=[1, 2])}):
        with pytest.raises(SchemaError, match=rf"head_curves\({next(iter(wrong))}=\): . labels of '"):
            head_curves(effect, **wrong)
    with pytest.raises(SchemaError, match=r"head_curves\(marked=\): expected True or False for each head, got float64"):
        head_curves(effect, marked=effect.isel(gamma=0))


@pytest.mark.parametrize("strengths", [[0, 1, np.nan], [0, 1, np.inf], [0, 1, 1]])
def test_strengths_are_finite_and_stand_there_once(strengths):
    with pytest.raises(
        SchemaError, match=r"labels of 'gamma' are \[0\.0, 1\.0, .*Give finite strengths, each of them once"
    ):
        head_curves(effects().assign_coords(gamma=strengths))


def test_nothing_is_refused_and_the_strength_is_found_by_its_name():
    with pytest.raises(SchemaError, match="head_curves: nothing to draw"):
        head_curves(effects().isel(head=[]))
    with pytest.raises(SchemaError, match="Select one of 'prompt' with"):
        head_curves(effects().expand_dims(prompt=2))
