import numpy as np
import pytest
import xarray as xr

from sinkscope.errors import MetricError
from sinkscope.metrics import head_list, matched_controls, random_heads, sink_mask

from .readings import from_maps, random_maps


def sinks():
    found = xr.zeros_like(sink_mask(from_maps(random_maps((12, 8, 5)))))
    found[0, :, :, [0, 4]] = True
    found[1, 1, 2, 3] = True
    return found


@pytest.mark.parametrize("redraw", [False, True])
def test_controls_are_as_many_never_sinks_never_padding(redraw):
    given = sinks()
    drawn = matched_controls(given, seed=1, redraw=redraw)
    assert drawn.dims == given.dims
    assert drawn.dtype == bool
    np.testing.assert_array_equal(drawn.sum("key"), given.sum("key"))
    ever = given.any(["layer", "head"])
    assert not (drawn & ever).any()
    assert not (drawn & (given["token_role"] == "")).any()
    assert drawn.attrs["n"] == int(given.sum())


def test_one_draw_serves_all_layers_unless_redrawn():
    given = sinks()
    once, anew = matched_controls(given, 0), matched_controls(given, 0, redraw=True)
    assert (once[0].any(["layer", "head"]).sum() == 2).item()
    assert (anew[0].any(["layer", "head"]).sum() > 2).item()


def test_same_seed_same_draw():
    xr.testing.assert_identical(matched_controls(sinks(), 7), matched_controls(sinks(), 7))
    assert (matched_controls(sinks(), 7) != matched_controls(sinks(), 8)).any()


def test_several_draws_have_a_dim_in_front():
    drawn = matched_controls(sinks(), 0, n=5)
    assert drawn.dims == ("draw", "prompt", "layer", "head", "key")
    np.testing.assert_array_equal(drawn.sum("key"), np.broadcast_to(sinks().sum("key"), (5, 3, 3, 4)))
    assert (drawn[0] != drawn[1]).any()


def test_controls_can_be_held_to_the_sinks_range_and_to_a_role():
    drawn = matched_controls(sinks()[:1], 0, within="range").any(["layer", "head", "prompt"]).values
    assert set(np.nonzero(drawn)[0]) <= {1, 2, 3}
    given = sinks()[:1].any(["layer", "head"])
    given = given.assign_coords(token_role=(("prompt", "key"), [["bos"] + ["image"] * 6 + ["text"] * 5]))
    at = np.nonzero(matched_controls(given, 3, roles="image").values[0])[0]
    assert len(at) == 2
    assert set(at) <= {1, 2, 3, 5, 6}


def test_impossible_controls_are_an_error():
    crowded = sinks().copy()
    crowded[2, :, :, :4] = True
    with pytest.raises(MetricError, match=r"prompt 2 has 4 sinks and only 1 other tokens to draw from"):
        matched_controls(crowded)
    with pytest.raises(MetricError, match=r"prompt 1 has 1 sinks and only 0 other .*Use within='prompt'"):
        matched_controls(sinks()[1:2], within="range")
    with pytest.raises(MetricError, match=r"matched_controls\(within='layer'\): choose 'prompt' or 'range'"):
        matched_controls(sinks(), within="layer")
    with pytest.raises(MetricError, match=r"matched_controls\(n=0\)"):
        matched_controls(sinks(), n=0)
    with pytest.raises(MetricError, match=r"\['prompt'\] are needed"):
        matched_controls(sinks()[0].drop_vars("prompt"))
    with pytest.raises(MetricError, match="needs the coordinate 'token_role'"):
        matched_controls(sinks().drop_vars("token_role"))


def heads():
    flags = xr.DataArray(
        np.zeros((3, 8), bool), dims=("layer", "head"), coords={"layer": [0, 1, 2], "head": np.arange(8)}
    )
    flags[0, [1, 2]] = True
    flags[2, 5] = True
    return flags


def test_random_heads_match_layer_by_layer():
    drawn = random_heads(heads(), 0)
    assert drawn.sum("head").values.tolist() == [2, 0, 1]
    assert not (drawn & heads()).any()
    anywhere = random_heads(heads(), 0, same_layer=False)
    assert int(anywhere.sum()) == 3
    assert not (anywhere & heads()).any()


def test_random_heads_take_sink_tokens():
    drawn = random_heads(sinks()[1:2], 0)
    assert drawn.dims == ("layer", "head")
    assert drawn.sum("head").values.tolist() == [0, 1, 0]
    assert head_list(drawn).keys() == {1}


def test_random_heads_errors():
    with pytest.raises(MetricError, match="layer 1 has 8 chosen heads and only 0 others"):
        random_heads(heads() | (heads()["layer"] == 1))
    with pytest.raises(MetricError, match=r"got dims \['head'\]; \['layer'\] are needed"):
        random_heads(heads()[0])


def test_head_list_is_the_mapping_edits_take():
    assert head_list(heads()) == {0: [1, 2], 2: [5]}


def test_more_draws_than_any_array_holds_are_refused_at_once():
    sinks = xr.DataArray(np.eye(3, dtype=bool)[None], dims=("prompt", "head", "key"))
    sinks = sinks.assign_coords(token_role=(("prompt", "key"), np.array([["text"] * 3])))
    with pytest.raises(MetricError, match=r"matched_controls\(n=10+\.\.\.\): give a whole number below 2\^63"):
        matched_controls(sinks, n=10**400)
