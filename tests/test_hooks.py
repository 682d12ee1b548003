import numpy as np
import pytest
import torch
from models.backends.lens_models import LISTS, bridge, bridged, differences, logits_of, prompts

from sinkscope import edits as e
from sinkscope import probes as p
from sinkscope.engine.run import run
from sinkscope.errors import EditError, EditHasNoEffect, ProbeError, PromptError, UnsupportedModelError
from sinkscope.hooks import fwd_hooks
from sinkscope.testing import tiny

ASKED = [p.KeyMass(), p.Entropy(), p.ValueNorm(), p.KeyNorm(), p.Contribution(), p.ResidualNorm(), p.RowSum()]


@torch.no_grad()
def run_with(hooks, name="llama"):
    mask = hooks.inputs.get("attention_mask")
    return bridge(name).run_with_hooks(hooks.inputs["input_ids"], attention_mask=mask, fwd_hooks=hooks.hooks)


@pytest.mark.parametrize("name", ["llama", "gptj", "bert"])
def test_hooks_leave_the_reading_that_run_gives(name):
    hooks = fwd_hooks(bridge(name), ASKED, prompts=prompts(name))
    run_with(hooks, name)
    ds = hooks.reading()
    assert max(differences(ds, run(bridged(name), prompts(name), ASKED, batch_size=3)).values()) == 0.0
    assert ds.attrs["backend"] == "lens"


def test_without_prompts_every_position_is_a_token():
    hooks = fwd_hooks(bridge("llama"), [p.KeyMass(), p.MaxAttention(keys="first", queries="all")])
    for ids in (LISTS[0], LISTS[1]):
        with torch.no_grad():
            bridge("llama").run_with_hooks(torch.tensor([ids]), fwd_hooks=hooks.hooks)
        assert hooks.reading().sizes["key"] == len(ids)
    one = run(bridged("llama"), prompts("llama"), [p.KeyMass()]).key_mass[1, :, :, : len(LISTS[1])]
    np.testing.assert_allclose(hooks.reading().key_mass[0], one, atol=1e-6)


def test_edits_act_in_the_users_own_run():
    edits = [e.ScaleKeys(0.3), e.SetActivations("0.post", dims=[3], value=5.0)]
    hooks = fwd_hooks(bridge("llama"), [p.KeyMass()], edits, prompts("llama"))
    logits = run_with(hooks).numpy()
    ds = run(bridged("llama"), prompts("llama"), [p.KeyMass(), p.Logits(positions="all")], edits, batch_size=3)
    for i, ids in enumerate(LISTS):
        np.testing.assert_array_equal(logits[i, : len(ids)], ds.logits[i, : len(ids)])
    assert hooks.reading().attrs["edits"] == ds.attrs["edits"]
    assert hooks.reading().attrs["edit_counts"] == ds.attrs["edit_counts"]
    np.testing.assert_array_equal(hooks.reading().key_mass, ds.key_mass)


def test_edits_need_no_probe():
    before = logits_of(bridge("llama"), LISTS[0])
    hooks = fwd_hooks(bridge("llama"), edits=[e.MaskKeys("first")])
    with torch.no_grad():
        edited = bridge("llama").run_with_hooks(torch.tensor([LISTS[0]]), fwd_hooks=hooks.hooks)
    assert float((edited - before).abs().max()) > 0.1
    assert torch.equal(before, logits_of(bridge("llama"), LISTS[0]))


def test_an_edit_without_effect_is_an_error_of_the_reading():
    hooks = fwd_hooks(bridge("llama"), [p.KeyMass()], [e.MaskKeys("image")], prompts("llama"))
    run_with(hooks)
    with pytest.raises(EditHasNoEffect, match="none of the 3 prompts has a token it selects"):
        hooks.reading()


def test_an_edit_that_would_be_discarded_is_refused():
    with pytest.raises(UnsupportedModelError, match="edits there would have no effect"):
        fwd_hooks(bridge("gptj"), edits=[e.MaskKeys("first")])


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        (
            {"probes": [p.TokenLoss()]},
            ProbeError,
            r"TokenLoss\(\) reads the output logits, which run_with_hooks returns",
        ),
        ({"probes": [p.KeyMass(), p.KeyMass()]}, ProbeError, "both make the variable 'key_mass'"),
        ({"edits": [e.MaskKeys]}, EditError, r"MaskKeys is a class, not a value\. Write MaskKeys\("),
        ({"edits": [e.MaskKeys("first", layers=[9])]}, EditError, "layers"),
    ],
)
def test_what_cannot_be_served_is_refused_at_once(arguments, error, message):
    with pytest.raises(error, match=message):
        fwd_hooks(bridge("llama"), **arguments)


def test_other_tokens_than_the_prompts_are_refused():
    hooks = fwd_hooks(bridge("llama"), [p.KeyMass()], prompts=prompts("llama"))
    with pytest.raises(PromptError, match=r"run on tokens \(1, 3\) that are not those of prompts=\. Run it on"):
        bridge("llama").run_with_hooks(torch.tensor([[1, 2, 3]]), fwd_hooks=hooks.hooks)


def test_a_reading_before_the_run_is_an_error():
    with pytest.raises(ProbeError, match=r"FwdHooks\.reading\(\): nothing was read\. Give fwd_hooks some probes, run"):
        fwd_hooks(bridge("llama"), [p.KeyMass()]).reading()


def test_something_else_than_a_bridge_is_refused():
    with pytest.raises(UnsupportedModelError, match=r"LlamaForCausalLM is no TransformerBridge\. Make one with"):
        fwd_hooks(tiny("llama"), [p.KeyMass()])


def test_a_bridge_over_images_is_refused():
    from sinkscope.models.backends.lens import to_bridge

    with pytest.raises(UnsupportedModelError, match="does not read token ids"):
        fwd_hooks(to_bridge(tiny("vit")), [])
