"""Activation patching: all of a layer gives the other run, nothing gives this one, and writes add up."""

import numpy as np
import pytest

import sinkscope as sk
from sinkscope import testing
from sinkscope.edits import record
from sinkscope.errors import EditError, PromptError

CLEAN, CORRUPT = [[1, 5, 6, 7, 8, 9], [1, 9, 12]], [[1, 5, 20, 7, 8, 9], [1, 9, 30]]


@pytest.fixture(scope="module")
def case():
    model = sk.load_model(testing.tiny("llama"))
    return model, sk.Prompts.from_ids(CLEAN, model), sk.Prompts.from_ids(CORRUPT, model)


def logits(model, prompts, edits=()):
    return sk.run(model, prompts, [sk.Logits()], edits, batch_size=2).logits


@pytest.mark.parametrize("layer", [0, 1])
def test_all_states_of_a_layer_give_the_other_run_in_both_directions(case, layer):
    model, clean, corrupt = case
    for source, target in ((clean, corrupt), (corrupt, clean)):
        state = record(model, source, "state", [layer], batch_size=2)[layer]
        found = logits(model, target, [sk.Patch("state", layer=layer, source=state)])
        np.testing.assert_allclose(found, logits(model, source), atol=1e-5)


def test_attention_and_mlp_and_the_state_before_give_the_state(case):
    model, clean, corrupt = case
    wrote = {name: record(model, clean, name)[1] for name in ("attention", "mlp")}
    before = record(model, clean, "state", [0])[0]
    edits = [sk.Patch("state", layer=0, source=before), *(sk.Patch(n, layer=1, source=w) for n, w in wrote.items())]
    np.testing.assert_allclose(logits(model, corrupt, edits), logits(model, clean), atol=1e-5)


@pytest.mark.parametrize("component", ["attention", "mlp"])
def test_a_write_is_put_in_where_it_is_named_alone(case, component):
    model, clean, corrupt = case
    source = record(model, clean, component, [1])[1]
    found = sk.run(
        model, corrupt, [sk.ResidualNorm(), sk.Logits()], [sk.Patch(component, layer=1, source=source, keys="last")]
    )
    plain = sk.run(model, corrupt, [sk.ResidualNorm(), sk.Logits()])
    assert float(np.abs(found.logits - plain.logits).max()) > 1e-4
    np.testing.assert_allclose(found.residual_norm[0, :, :5], plain.residual_norm[0, :, :5], atol=1e-5)


def test_a_patch_of_what_is_there_already_changes_nothing_and_says_so(case):
    model, clean, corrupt = case
    source = record(model, clean, "state", [0])[0]
    found = sk.run(model, corrupt, [sk.Logits()], [sk.Patch("state", layer=0, source=source, keys="first")])
    np.testing.assert_allclose(found.logits, logits(model, corrupt), atol=1e-5)
    assert "acted on 0 rows" in found.attrs["edit_notes"]


def test_sweep_and_generation_agree_with_run(case):
    model, clean, corrupt = case
    source = record(model, clean, "attention", [1])[1]
    edit = sk.Patch("attention", layer=1, source=source)
    swept = sk.sweep(model, corrupt, {"patched": [edit]}, [sk.Logits()], executor="serial", batch_size=2).logits
    np.testing.assert_allclose(swept.sel(edit="patched"), logits(model, corrupt, [edit]), atol=1e-5)
    one = corrupt.subset([0])
    first = sk.generate(model, one, [edit], max_new_tokens=2).ids[0][len(CORRUPT[0])]
    assert first == int(logits(model, one, [edit])[0, 0].values.argmax())


def test_errors(case):
    model, clean, _ = case
    three = sk.Prompts.from_ids([*CLEAN, [1, 2]], model)
    source = np.zeros((2, 6, 32))
    with pytest.raises(EditError, match=r"Patch\(component='head'\): component must be one of"):
        sk.Patch("head", layer=0, source=source)
    with pytest.raises(EditError, match="a patch is of one block"):
        sk.Patch("state", layer=[0], source=source)
    with pytest.raises(EditError, match=r"its shape is \(6, 32\)\. Give \(prompt, key, d_model\)"):
        sk.Patch("state", layer=0, source=source[0])
    width = model.backend.towers["text"].d_model
    fits = np.zeros((2, 6, width))
    with pytest.raises(EditError, match=r"Patch\(layer=9\): this model has layers 0\.\."):
        sk.run(model, clean, edits=[sk.Patch("state", layer=9, source=fits)])
    with pytest.raises(EditError, match="its vectors have 3 dimensions"):
        sk.run(model, clean, edits=[sk.Patch("state", layer=0, source=np.zeros((1, 6, 3)))])
    with pytest.raises(EditError, match="it holds 2 tokens, fewer than a prompt here"):
        sk.run(model, clean, edits=[sk.Patch("state", layer=0, source=fits[:, :2])])
    with pytest.raises(EditError, match="it holds 2 prompts, not prompt 2"):
        sk.run(model, three, edits=[sk.Patch("state", layer=0, source=fits)])
    parallel = sk.load_model(testing.tiny("gpt_neox"))
    prompts = sk.Prompts.from_ids(CLEAN, parallel)
    with pytest.raises(EditError, match="adds attention and MLP to the stream at once"):
        record(parallel, prompts, "mlp")


def test_record_asks_for_prompts_of_this_model(case):
    with pytest.raises(PromptError, match="record: expected Prompts, got a list of 1 str"):
        record(case[0], ["text"], "state")
