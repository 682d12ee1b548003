from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
import xarray as xr

import sinkscope as sk
from sinkscope.errors import EditError, EditHasNoEffect
from sinkscope.models.handle import load_model
from sinkscope.testing import tiny
from tests.edits.dense import edited_hidden, model_and_prompts

IDENTITIES = [
    sk.ScaleKeys(1.0), sk.ShiftLogits(0.0), sk.SteerKeys(1.0, keys="text"), sk.GateHeads(1.0),
    sk.CalibrateSinks(beta=1.0), sk.Redistribute(0.0), sk.Redistribute(1.0, rule="sink"),
]  # fmt: skip
EMPTY = [
    sk.MaskKeys([], allow_empty=True), sk.MaskKeys("first", heads=[], allow_empty=True),
    sk.ZeroValues("first", layers=[], allow_empty=True), sk.ScaleKeys(2.0, queries=[], allow_empty=True),
    sk.MaskKeys("first", heads={1: []}, allow_empty=True), sk.SetActivations("0.post", dims=[], allow_empty=True),
    sk.DropKeys(xr.DataArray(np.zeros((2, 12), bool), dims=("prompt", "key")), allow_empty=True),
]  # fmt: skip


@pytest.mark.parametrize("edit", IDENTITIES + EMPTY, ids=repr)
@pytest.mark.parametrize("name", ["llama", "gpt_oss", "bert"])
def test_identities_and_empty_selections_are_bit_identical(name, edit):
    model, prompts = model_and_prompts(name)
    assert torch.equal(edited_hidden(model, prompts, [edit]), edited_hidden(model, prompts, []))
    reading = sk.run(model, prompts, [sk.ResidualNorm()], [edit], batch_size=2)
    assert "nothing was changed" in reading.attrs["edit_notes"]
    assert json.loads(reading.attrs["edits"])[0]["edit"] == type(edit).__name__
    xr.testing.assert_equal(
        reading.residual_norm, sk.run(model, prompts, [sk.ResidualNorm()], batch_size=2).residual_norm
    )


@pytest.mark.parametrize("edit", EMPTY, ids=repr)
@pytest.mark.parametrize("call", ["run", "sweep", "generate", "applied"])
def test_an_empty_selection_is_an_error_before_any_pass(call, edit):
    model, prompts = model_and_prompts("llama")
    edit = replace(edit, allow_empty=False)
    assert model.backend.edits
    model.model.register_forward_pre_hook(lambda *_: pytest.fail("a pass has begun"))
    calls = {
        "run": lambda: sk.run(model, prompts, [sk.KeyMass()], [sk.ScaleKeys(0.5), edit]),
        "sweep": lambda: sk.sweep(model, prompts, {"one": [edit]}, [sk.KeyMass()]),
        "generate": lambda: sk.generate(model, prompts, [edit], max_new_tokens=1),
        "applied": lambda: sk.applied(model, [edit], prompts).__enter__(),
    }
    with pytest.raises(EditHasNoEffect, match=r"changes nothing: its (keys|heads|layers|queries|dims) are empty\. Sel"):
        calls[call]()


@pytest.mark.parametrize(
    ("edit", "words"),
    [
        (sk.MaskKeys("image"), r"none of the 2 prompts has a token it selects by keys\. Choose keys"),
        (sk.ScaleKeys(0.5, queries="after_image"), r"none of the 2 prompts has a token it selects by queries"),
        (sk.CalibrateSinks(queries="image"), r"none of the 2 prompts has a token it selects by queries"),
        (sk.SetActivations("0.post", dims=1, keys="system"), r"token it selects by keys"),
        (sk.MaskKeys(30), r"MaskKeys\(keys=30\): position 30 is beyond a prompt of 9 tokens"),
    ],
    ids=repr,
)
def test_tokens_that_no_prompt_has_are_an_error_before_any_pass(edit, words):
    model, prompts = model_and_prompts("llama")
    assert model.backend.edits
    passed = []
    model.model.register_forward_pre_hook(lambda *_: passed.append(1))
    with pytest.raises(EditError, match=words):
        sk.run(model, prompts, [sk.KeyMass()], [edit])
    with pytest.raises(EditError, match=r"sweep: variant 'x'" if "none of" in words else words):
        sk.sweep(model, prompts, {"x": [edit]}, [sk.KeyMass()])
    with pytest.raises(EditError, match=words):
        sk.generate(model, prompts, [edit], max_new_tokens=1)
    assert not passed
    if "beyond" not in words:
        plain = sk.run(model, prompts, [sk.Logits()])
        reading = sk.run(model, prompts, [sk.Logits()], [replace(edit, allow_empty=True)])
        np.testing.assert_allclose(reading.logits, plain.logits, atol=1e-5)  # another path through the kernels
        assert "nothing" in reading.attrs["edit_notes"] or "acted on 0 rows" in reading.attrs["edit_notes"]


def test_the_same_edit_twice_is_noted():
    model, prompts = model_and_prompts("llama")
    reading = sk.run(model, prompts, [sk.Logits()], [sk.ScaleKeys(0.5), sk.DropKeys([1]), sk.ScaleKeys(0.5)])
    assert reading.attrs["edit_notes"] == "ScaleKeys(0.5) is in the list 2 times and acts 2 times"


def test_an_edit_of_heads_that_write_nothing_has_no_effect():
    network = tiny("llama")
    with torch.no_grad():
        for layer in network.model.layers:
            layer.self_attn.o_proj.weight[:, 8:16] = 0
    model = load_model(network)
    prompts = sk.Prompts.from_ids([[1, 5, 6, 7], [1, 9, 12]], model)
    for edit in (
        sk.AblateHeads([1]), sk.ScaleKeys(0.1, heads=[1]), sk.ZeroValues("first", heads=[1]),
        sk.DropKeys([0], heads=[1]), sk.NullKey(0.0, heads=[1]), sk.SwapNormaliser("sigmoid", heads=[1]),
        sk.SwapNormaliser("softmax1", heads=[1]), sk.AblateHeads([1], how="uniform"),
        sk.edits.KeyValueBias(np.ones(8), value=np.ones(8), heads=[1]), sk.MaskKeys([1, 2], heads=[1], keep_self=True),
    ):  # fmt: skip
        with pytest.raises(EditHasNoEffect, match=r"changes nothing in .*: the final hidden states are bit for bit"):
            sk.run(model, prompts, [sk.Logits()], [edit])
        with pytest.raises(EditHasNoEffect):
            sk.run(model, prompts, [sk.Entropy()], [edit], batch_size=2)
    sk.run(model, prompts, [sk.Logits()], [sk.AblateHeads([0])])


def test_an_edit_that_selects_no_token_is_named():
    model, prompts = model_and_prompts("llama")
    with pytest.raises(
        EditHasNoEffect,
        match=r"MaskKeys\('image'\) changes nothing in .*: none of the 2 prompts has a token it selects",
    ):
        sk.run(model, prompts, [sk.KeyMass()], [sk.ScaleKeys(0.1), sk.MaskKeys("image")])


def test_an_edit_whose_rows_are_all_spared_is_named():
    model, prompts = model_and_prompts("llama")
    with pytest.raises(
        EditHasNoEffect, match=r"MaskKeys\('all'\) .* all \d+ rows it touches see nothing but masked keys"
    ):
        sk.run(model, prompts, [sk.KeyMass()], [sk.MaskKeys("all")])


def test_an_edit_of_the_only_key_has_no_effect():
    model = load_model(tiny("llama"))
    alone = sk.Prompts.from_ids([[1]], model)
    with pytest.raises(EditHasNoEffect, match="bit for bit the same"):
        sk.run(model, alone, [sk.Logits()], [sk.ScaleKeys(0.5)])


def test_an_effect_on_one_prompt_is_enough():
    model, prompts = model_and_prompts("llama", lengths=(1, 5))
    sk.run(model, prompts, [sk.Logits()], [sk.ScaleKeys(0.5)], batch_size=1)


def test_a_tiny_effect_is_still_an_effect():
    model, prompts = model_and_prompts("llama")
    reading = sk.run(model, prompts, [sk.Logits()], [sk.ScaleKeys(1.0001)])
    assert float(np.abs(reading.logits - sk.run(model, prompts, [sk.Logits()]).logits).max()) < 1e-2


def test_the_check_ends_its_passes_right_after_the_first_edit():
    model, prompts = model_and_prompts("llama", lengths=(9,))
    assert model.backend.edits  # made on first use, by passes of its own
    passed = []
    for n, block in enumerate(model.model.model.layers):
        block.register_forward_hook(lambda _m, _a, _o, n=n: passed.append(n))
    sk.run(model, prompts, [sk.Logits()], [sk.ScaleKeys(0.5)])
    assert passed == [0, 1, 2, 0, 0]
    passed.clear()
    sk.run(model, prompts, [sk.Logits()], [sk.ScaleKeys(0.5, layers=2)])
    assert passed == [0, 1, 2, 0, 1, 2]


def test_what_is_no_edit_is_refused():
    model, prompts = model_and_prompts("llama")
    with pytest.raises(EditError, match=r"run: 'mask-keys' is no edit\. Edits are values such as sinkscope\.MaskKeys"):
        sk.run(model, prompts, edits=["mask-keys"])


def test_the_model_is_as_before_after_a_run_and_after_a_failure():
    model, prompts = model_and_prompts("llama")
    sk.run(model, prompts)
    before = model.fingerprint
    hooks = [len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.model.modules()]
    edits = [sk.ScaleKeys(0.1), sk.SetActivations("0.post", dims=0), sk.MaskKeys("image")]
    with pytest.raises(EditHasNoEffect):
        sk.run(model, prompts, [sk.KeyMass()], edits)
    sk.run(model, prompts, [sk.KeyMass()], edits[:2])
    assert hooks == [len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.model.modules()]
    assert model.model.config._attn_implementation == "sdpa"
    model._fingerprint = None
    assert model.fingerprint == before


def test_a_selection_of_more_prompts_than_are_read_is_refused():
    """A subset's prompts are numbered anew: the first would silently get what another prompt had selected."""
    model = sk.load_model(tiny("llama"))
    prompts = sk.Prompts.from_ids([[1, 2, 3, 4], [1, 5, 6, 7]], model)
    selected = xr.DataArray([[True, False, False, False], [False, True, False, False]], dims=("prompt", "key"))
    for given in (selected, selected.assign_coords(prompt=[0, 1])):
        with pytest.raises(sk.errors.EditError, match=r"of 2 prompts, up to prompt 1, and 1 are read.*isel\(prompt="):
            sk.run(model, prompts.subset([1]), [sk.KeyMass()], [sk.MaskKeys(given)])
        with pytest.raises(sk.errors.EditError, match="of 2 prompts, up to prompt 1"):
            sk.generate(model, prompts.subset([1]), [sk.MaskKeys(given)], max_new_tokens=1)
    theirs = selected.isel(prompt=[1])
    found = sk.run(model, prompts.subset([1]), [sk.KeyMass()], [sk.MaskKeys(theirs)])
    assert float(found["key_mass"].isel(key=1).max()) == 0.0
