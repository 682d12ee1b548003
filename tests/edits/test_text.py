from __future__ import annotations

import numpy as np
import pytest
import xarray as xr

import sinkscope as sk
from sinkscope.edits import EDITS, dumps, loads, parse
from sinkscope.errors import EditError

ARRAY = xr.DataArray(
    np.arange(24).reshape(2, 2, 2, 3) % 5 == 0, dims=("prompt", "layer", "head", "key"),
    coords={"prompt": [0, 1], "layer": [1, 3], "head": [0, 2]},
)  # fmt: skip
EVERY = [
    sk.ScaleKeys(0.3, keys=["image", "text"], layers=range(2, 10), heads={2: [0, 1]}, queries="last"),
    sk.MaskKeys(ARRAY, keep_self=True), sk.DropKeys([3, -1]), sk.ZeroValues("first"), sk.ShiftLogits(-2, keys="bos"),
    sk.SteerKeys(0.01, keys=[1], mode="include", protect_sink=True), sk.NullKey(1), sk.SwapNormaliser("relu"),
    sk.edits.KeyValueBias(np.ones((2, 3)), value=np.zeros(3)),
    sk.AblateHeads([1], how="mean", reference=np.ones((1, 2, 3))),
    sk.GateHeads(0.5, heads=[0]), sk.Redistribute(0.4, rule="sink", dims=[7, 3]), sk.CalibrateSinks(exempt="first_hit"),
    sk.ReplaceValues("first", how="donor", donor=-1, seed=3),
    sk.SwapNormaliser("clipped", parameters=[1.03, -0.03]), sk.AmplifyLogits(0.7, queries="last"),
    sk.AmplifyGaze(np.ones((1, 3)), alpha=4.0), sk.MixIdentity(0.5, heads=[1]), sk.RouteHeads(2, shared=[0]),
    sk.BoostRecent(0.2, window=3), sk.GiveMaps(np.ones((1, 2, 3, 3))),
    sk.LimitWindow(8, keep=range(2), layers=[0]),
    sk.OpenKeys("text", queries="image", layers=range(4)),
    sk.InjectWrites("mlp", sources=[1, 0], weights=[0.5, 0.25], targets=[2, 3]),
    sk.Patch("mlp", layer=2, source=np.ones((1, 2, 3)), keys="last"),
    sk.SetActivations("1.post", dims=[4, 2], value=[1.5, -0.5]),
]  # fmt: skip


def test_every_edit_survives_json_with_equality_and_hash():
    own = {name for name, cls in EDITS.items() if cls.__module__.startswith("sinkscope.")}  # others add theirs
    assert {type(edit).__name__ for edit in EVERY} == own
    again = loads(dumps(EVERY))
    assert again == EVERY
    assert [hash(e) for e in again] == [hash(e) for e in EVERY]
    assert len(set(EVERY)) == len(EVERY)
    assert dumps(again) == dumps(EVERY)


def test_repr_reads_like_the_call():
    assert [repr(e) for e in EVERY[:3]] == [
        "ScaleKeys(0.3, layers=range(2, 10), heads={2: [0, 1]}, queries='last', keys=['image', 'text'])",
        "MaskKeys(<5 selected of prompt 2 x layer 2 x head 2 x key 3>, keep_self=True)",
        "DropKeys([-1, 3])",
    ]
    assert repr(sk.Redistribute()) == "Redistribute()"
    assert repr(sk.AblateHeads(3)) == "AblateHeads(3)"


def test_an_array_comes_back_as_it_was():
    back = EVERY[1].keys.array()
    xr.testing.assert_identical(back, ARRAY)


def test_edits_are_frozen():
    with pytest.raises(AttributeError):
        sk.ScaleKeys(0.5).gamma = 2


def test_text_form():
    assert parse("scale-keys keys=first gamma=0.2 layers=2:10 heads=0,3") == [
        sk.ScaleKeys(0.2, keys="first", layers=range(2, 10), heads=[0, 3])
    ]
    assert parse("swap-normaliser kind=clipped parameters=1.03,-0.03 + replace-values keys=0 how=donor donor=-1") == [
        sk.SwapNormaliser("clipped", parameters=[1.03, -0.03]), sk.ReplaceValues([0], how="donor", donor=-1),
    ]  # fmt: skip
    assert parse("route-heads top=2 shared=0; mix-identity s=0.5 heads=1; amplify-logits alpha=0.7 queries=last") == [
        sk.RouteHeads(2, shared=[0]), sk.MixIdentity(0.5, heads=[1]), sk.AmplifyLogits(0.7, queries="last"),
    ]  # fmt: skip
    assert parse("mask-keys keys=image,text; AblateHeads heads=1 how=mean") == [
        sk.MaskKeys(["image", "text"]), sk.AblateHeads([1], how="mean"),
    ]  # fmt: skip
    assert parse("set-activations site=1.post dims=3 value=0 + mask-keys keys=2 keep_self=true") == [
        sk.SetActivations("1.post", dims=3), sk.MaskKeys([2], keep_self=True),
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", r"edit '': it is empty\. Write NAME field=value"),
        ("mask keys=first", r"edit 'mask': there is no such edit\. Use one of: ablate-heads, "),
        ("mask-keys tokens=first", r"'tokens=first' is no field of it\. mask-keys takes "),
        ("scale-keys keys=first", r"gamma must be given"),
        ("scale-keys gamma=-1", r"gamma must be a finite number of at least 0"),
    ],
)
def test_malformed_text_is_refused(text, message):
    with pytest.raises(EditError, match=message):
        parse(text)


def test_malformed_json_is_refused():
    with pytest.raises(EditError, match="this is not JSON"):
        loads("MaskKeys")
    with pytest.raises(EditError, match="a JSON list was expected"):
        loads("{}")
    with pytest.raises(EditError, match=r"edit 'Mask': there is no such edit\. Edits are \['AblateHeads'"):
        loads('[{"edit": "Mask"}]')
    with pytest.raises(EditError, match=r"MaskKeys: there is no field 'gamma'\. Its fields are"):
        loads('[{"edit": "MaskKeys", "keys": "first", "gamma": 1}]')
    with pytest.raises(EditError, match=r"MaskKeys\(\): .*missing .*'keys'"):
        loads('[{"edit": "MaskKeys"}]')
