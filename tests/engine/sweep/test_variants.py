"""Grids and where a variant starts."""

import numpy as np
import pytest

import sinkscope as sk
from sinkscope import testing
from sinkscope.engine.sweep.variants import first_block


@pytest.fixture(scope="module")
def tower():
    return sk.load_model(testing.tiny("llama")).backend.towers["text"]


@pytest.mark.parametrize(
    ("edits", "start"),
    [
        ([], None),
        ([sk.ScaleKeys(1.0)], None),
        ([sk.MaskKeys([], allow_empty=True)], None),
        ([sk.ScaleKeys(0.5)], 0),
        ([sk.ScaleKeys(0.5, layers=[2])], 2),
        ([sk.ScaleKeys(0.5, heads={1: [0], 2: [1]})], 1),
        ([sk.ScaleKeys(0.5, layers=[2]), sk.NullKey(0.0, layers=[1])], 1),
        ([sk.SetActivations("embed", dims=[0])], 0),
        ([sk.SetActivations("1.mid", dims=[0])], 1),
        ([sk.SetActivations("1.post", dims=[0])], 2),
        ([sk.SetActivations("2.post", dims=[0])], 2),
    ],
)
def test_first_block(tower, edits, start):
    assert first_block(edits, tower) == start


def test_grid_is_a_mapping_with_axes():
    grid = sk.grid(sk.ScaleKeys(1.0, keys="bos"), gamma=np.array([0.5, 2.0]), layers=[0, range(1, 3)])
    assert grid.axes == {"gamma": [0.5, 2.0], "edit_layer": ["0", "1:3"]}
    assert list(grid) == [
        "scale-keys gamma=0.5 layers=0", "scale-keys gamma=0.5 layers=1:3", "scale-keys gamma=2.0 layers=0",
        "scale-keys gamma=2.0 layers=1:3",
    ]  # fmt: skip
    assert grid["scale-keys gamma=2.0 layers=1:3"] == (sk.ScaleKeys(2.0, keys="bos", layers=[1, 2]),)


def test_grid_of_roles_and_sites():
    assert sk.grid(sk.MaskKeys, keys=["first", "newline"]).axes == {"edit_keys": ["first", "newline"]}
    sites = sk.grid(sk.SetActivations, site=["0.post", "1.post"], dims=[[1], [1, 2]])
    assert sites.axes == {"edit_site": ["0.post", "1.post"], "edit_dim": ["1", "1,2"]}


@pytest.mark.parametrize(
    ("edit", "axes", "message"),
    [
        (sk.ScaleKeys, {}, r"grid\(ScaleKeys\): no axis"),
        (sk.ScaleKeys, {"gama": [1]}, r"grid\(ScaleKeys, gama=...\): there is no such field"),
        (sk.ScaleKeys, {"gamma": []}, r"grid\(ScaleKeys, gamma=\[\]\): the axis is empty"),
        (sk.ScaleKeys, {"gamma": [1, 1]}, r"grid\(ScaleKeys, gamma=...\): the labels \[1, 1\] repeat"),
        (sk.ScaleKeys, {"layers": [1, 2]}, r"grid\(ScaleKeys\): gamma must be given"),
        (sk.ScaleKeys, {"gamma": [-1.0]}, "gamma must be a finite number"),
        ("scale", {"gamma": [1.0]}, r"grid\('scale'\): this is no edit"),
    ],
)
def test_grid_refuses(edit, axes, message):
    with pytest.raises(sk.EditError, match=message):
        sk.grid(edit, **axes)
