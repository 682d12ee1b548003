"""Edits through a bridge: the same as on the transformers model where hooks are live, an error where they are not."""

import numpy as np
import pytest
import torch

from models.backends.lens_models import LISTS, bridged, differences, model, prompts
from sinkscope import edits as e
from sinkscope import probes as p
from sinkscope.attention.view import Context, Wants
from sinkscope.engine.plan import Plan
from sinkscope.engine.run import run
from sinkscope.engine.sweep import sweep
from sinkscope.errors import EditError, EditHasNoEffect, UnsupportedModelError
from sinkscope.models.backends.base import Instruments

ASKED = [p.KeyMass(), p.Entropy(), p.RowSum(), p.Contribution(), p.ResidualNorm(), p.Logits(positions="all")]
EDITS = [
    e.ScaleKeys(0.3), e.MaskKeys("first"), e.DropKeys("first", queries="last"), e.ZeroValues("first", heads=[1]),
    e.ShiftLogits(1.5, keys=[1, 2], layers=[0, 2]), e.NullKey(0.0), e.AblateHeads([0, 2]),
    e.AblateHeads([1], how="uniform"), e.AblateHeads([1], how="mean"), e.GateHeads(0.5, heads=[0]),
    e.SwapNormaliser("sigmoid"), e.SwapNormaliser("softmax1"), e.CalibrateSinks(threshold=0.05),
    e.SetActivations("0.post", dims=[3], value=5.0), e.SetActivations("0.mid", dims=[3], value=5.0),
]  # fmt: skip


@pytest.mark.parametrize("edit", EDITS, ids=repr)
def test_an_edit_is_the_same_through_either_backend(edit):
    lens, own = (run(m("llama"), prompts("llama"), ASKED, [edit], batch_size=3) for m in (bridged, model))
    worst = differences(lens, own)
    assert max(worst.values()) < 3e-5, worst
    assert lens.attrs["edit_counts"] == own.attrs["edit_counts"]
    plain = run(bridged("llama"), prompts("llama"), ASKED, batch_size=3)
    assert float(np.nanmax(np.abs(lens.logits - plain.logits))) > 0.1


@pytest.mark.parametrize("name", ["gpt_neox", "gpt2", "gpt_oss"])
def test_edits_compose_on_other_kinds_of_attention(name):
    both = [e.ScaleKeys(0.3), e.ZeroValues("first", heads=[1]), e.GateHeads(0.5, heads=[2])]
    lens, own = (run(m(name), prompts(name), ASKED, both, batch_size=3) for m in (bridged, model))
    worst = differences(lens, own)
    assert max(worst.values()) < 3e-5, worst


@pytest.mark.parametrize("name", ["falcon", "bloom", "mpt"])
def test_models_that_bypass_the_interface_can_be_edited(name):
    asked = [p.AttentionMap(layers=[0, 1], heads=[0, 1]), p.Logits(positions="all")]
    plain = run(model(name), prompts(name), asked, batch_size=3)
    masked = run(model(name), prompts(name), asked, [e.MaskKeys("first", layers=[1])], batch_size=3)
    before, after = plain.attention.sel(prompt=0).values, masked.attention.sel(prompt=0).values
    np.testing.assert_array_equal(before[0], after[0])
    rest = before[1, :, 1:, 1:] / before[1, :, 1:, 1:].sum(-1, keepdims=True)
    np.testing.assert_allclose(after[1, :, 1:, 1:], rest, atol=1e-5)
    assert float(np.abs(after[1, :, 1:, 0]).max()) == 0.0
    assert float(after[1, 0, 0, 0]) == 1.0  # query 0 sees nothing else and is left as it was
    assert float(np.nanmax(np.abs(masked.logits - plain.logits))) > 0.01


def test_a_sweep_through_a_bridge_is_the_loop_over_its_edits():
    variants = {"none": [], "mask": [e.MaskKeys("first")], "gate": [e.GateHeads(0.5, heads=[0], layers=[2])]}
    asked = [p.KeyMass(), p.Logits(positions="last")]
    swept = sweep(bridged("llama"), prompts("llama"), variants, asked)
    for name, edits in variants.items():
        alone = run(bridged("llama"), prompts("llama"), asked, edits)
        for variable in ("key_mass", "logits"):
            np.testing.assert_allclose(swept[variable].sel(edit=name), alone[variable], atol=1e-5)


def test_an_edited_pattern_gives_the_output_that_the_bridge_itself_would_make():
    """The edited output handed over at hook_z is the edited pattern times the values."""
    handle, kept = bridged("bloom"), {}
    bridge = handle.backend.bridge
    batch = prompts("bloom").batch(range(3))
    tower = handle.backend.towers["text"]
    plan = Plan([e.ScaleKeys(0.3)], tower, prompts("bloom"), batch)
    hooks = handle.backend.hooks(tower, Instruments(edits=plan.call_edits))
    names = [f"blocks.0.attn.{name}" for name in ("hook_pattern", "hook_v", "hook_z")]
    watch = [(name, lambda tensor, hook: kept.__setitem__(hook.name, tensor)) for name in names]
    with torch.no_grad():
        bridge.run_with_hooks(
            batch.inputs["input_ids"], attention_mask=batch.inputs["attention_mask"], fwd_hooks=[*hooks, *watch]
        )
    value, weights, output = kept.values()  # in the order in which they fire
    made = torch.einsum("bhqk,bkhd->bqhd", weights, value)
    torch.testing.assert_close(made[0], output[0], atol=1e-5, rtol=1e-5)


def test_nothing_changes_where_the_plan_changes_nothing():
    backend = bridged("llama").backend
    tower, batch = backend.towers["text"], prompts("llama").batch(range(3))
    with torch.no_grad():
        plain = backend.forward(batch.inputs, tower, Instruments(), "all").logits
        idle = backend.forward(batch.inputs, tower, Instruments(edits=lambda _layer, _call: None), "all").logits
    assert torch.equal(plain, idle)


@pytest.mark.parametrize("name", ["gptj", "gpt_neo", "opt", "bert"])
def test_edits_of_delegated_attention_are_refused(name):
    handle = bridged(name)
    assert handle.capabilities().edits is False
    with pytest.raises(UnsupportedModelError, match="sees weights after they were used, so edits there would have no"):
        run(handle, prompts(name), [p.KeyMass()], [e.MaskKeys("first")])
    tower, batch = handle.backend.towers["text"], prompts(name).batch(range(3))
    with pytest.raises(EditError, match=r"leaves the attention of layers \[0, 1"):
        handle.backend.forward(batch.inputs, tower, Instruments(edits=lambda _layer, _call: None))


def test_an_extra_key_is_refused():
    ones = np.ones(8, dtype=np.float32)
    with pytest.raises(
        EditError, match="an extra key-value pair is scored against the queries, and a bridge hands over"
    ):
        run(bridged("llama"), prompts("llama"), [], [e.KeyValueBias(ones, value=ones)])


def test_an_edit_without_effect_is_an_error_here_too():
    with pytest.raises(EditHasNoEffect, match="none of the 3 prompts has a token it selects"):
        run(bridged("llama"), prompts("llama"), [p.KeyMass()], [e.MaskKeys("image")])


def test_a_mask_that_cannot_be_told_is_an_error():
    """GPT-Neo's local layers hide keys by a buffer of their own, which the count of viewers must follow."""
    backend = bridged("gpt_neo").backend
    tower, batch = backend.towers["text"], prompts("gpt_neo").batch(range(3))
    wants = {1: Wants("key_sum", "key_viewers")}
    context = Context(batch.real, batch.roles.long(), (3,))
    kept = []
    with torch.no_grad():
        backend.forward(batch.inputs, tower, Instruments(wants, context, collect=lambda _l, s: kept.append(s)))
        viewers = kept[0]["key_viewers"][0]
        assert viewers.tolist() == [min(5, len(LISTS[0]) - key) for key in range(len(LISTS[0]))]
        context.real[0, 0] = False  # the model attends to this token all the same
        with pytest.raises(UnsupportedModelError, match=r"blocks\.1\.attn: a query attends to a key that this"):
            backend.forward(batch.inputs, tower, Instruments(wants, context))
