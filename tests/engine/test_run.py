"""``run``: what it accepts, what it refuses, and what it leaves behind."""

import json

import numpy as np
import pytest
import torch

import sinkscope as sk
from sinkscope import testing
from sinkscope.engine import run as runner
from sinkscope.errors import ModelError, ProbeError, PromptError, UnsupportedModelError

IDS = [[1, 5, 6, 7], [1, 8], [1, 9, 10]]


@pytest.fixture
def model():
    return sk.load_model(testing.tiny("llama"))


@pytest.fixture
def prompts(model):
    return sk.Prompts.from_ids(IDS, model)


def test_without_probes_a_reading_holds_tokens_and_provenance_alone(model, prompts):
    reading = sk.run(model, prompts)
    assert list(reading.data_vars) == []
    assert reading.token.values.tolist()[1] == ["#1", "#8", "", ""]


def test_one_probe_needs_no_list(model, prompts):
    assert list(sk.run(model, prompts, sk.KeyMass()).data_vars) == ["key_mass"]
    assert list(sk.run(model, prompts, (p for p in [sk.KeyMass()])).data_vars) == ["key_mass"]


def test_each_batch_is_one_pass(model, prompts, monkeypatch):
    sizes = []
    forward = model.backend.forward

    def count(inputs, *rest, **kwargs):
        sizes.append(tuple(inputs["input_ids"].shape))
        return forward(inputs, *rest, **kwargs)

    monkeypatch.setattr(model.backend, "forward", count)
    sk.run(model, prompts, [sk.KeyMass(), sk.Entropy(), sk.ResidualNorm(), sk.Logits()], batch_size=2)
    assert sizes == [(2, 4), (1, 3)]


def test_the_pass_of_each_layer_is_asked_for_what_the_probes_need(model, prompts, monkeypatch):
    asked = []
    forward = model.backend.forward

    def look(inputs, tower, instruments, *rest, **kwargs):
        asked.append({n: {a.name: dict(a.of) for a in w.asks.values()} for n, w in instruments.wants.items()})
        return forward(inputs, tower, instruments, *rest, **kwargs)

    monkeypatch.setattr(model.backend, "forward", look)
    sk.run(model, prompts, [sk.AttentionMap(layers=[1], heads=[2])], batch_size=3)
    sk.run(model, prompts, [sk.ResidualNorm()], batch_size=3)
    sk.run(model, prompts, [sk.KeyMass(), sk.ValueNorm()], batch_size=3)
    every = {"key_sum": {}, "key_viewers": {}, "value_norm": {}}
    assert asked == [{1: {"map": {"heads": (2,)}}}, {}, dict.fromkeys(range(3), every)]


class Odd:
    """No probe."""

    def __repr__(self):
        return "Odd()"


REFUSED = [
    (dict(probes=[sk.KeyMass]), ProbeError, "probes: KeyMass is a class, not a value. Write KeyMass()."),
    (dict(probes=[Odd()]), ProbeError, "run: Odd() is no probe. Probes are values such as sinkscope.KeyMass()."),
    (
        dict(probes=[sk.KeyMass(), sk.KeyMass(keys="first")]), ProbeError,
        "KeyMass and KeyMass both make the variable 'key_mass'. Run them one by one.",
    ),
    (dict(batch_size=0), PromptError, "run(batch_size=0): use a whole number of at least 1."),
    (dict(batch_size=1.5), PromptError, "run(batch_size=1.5): use a whole number of at least 1."),
    (dict(tower="vision"), UnsupportedModelError, "tower='vision': this model has ['text']. Use one of these"),
]  # fmt: skip


@pytest.mark.parametrize(("arguments", "error", "message"), REFUSED)
def test_wrong_requests_are_refused_before_anything_runs(model, prompts, monkeypatch, arguments, error, message):
    assert model.backend.towers
    monkeypatch.setattr(model.backend, "forward", None)
    with pytest.raises(error) as raised:
        sk.run(model, prompts, **arguments)
    assert str(raised.value).startswith(message)


def test_no_prompts_are_refused(model, prompts):
    nothing = sk.Prompts((), (), (), (), (), key0="")
    with pytest.raises(PromptError, match=r"run: no prompts\. Build them with Prompts\.from_texts, from_ids, from"):
        sk.run(model, nothing, [sk.KeyMass()])


def test_a_model_that_cannot_be_read_is_refused_with_its_reason():
    model = sk.load_model(testing.tiny("gptj"), backend="transformers")
    assert model.backend.reading == "none"
    with pytest.raises(UnsupportedModelError, match="made no call to transformers' attention interface"):
        sk.run(model, sk.Prompts.from_ids([[1, 5]], model), [sk.KeyMass()])


@pytest.mark.parametrize(("layer", "site"), [(0, "0.post"), (1, "1.post"), (2, "2.post")])
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_activations_that_are_not_finite_name_the_first_site(model, prompts, layer, site, value):
    """The weights are finite; the activation is not, as with an overflow in half precision."""

    def break_it(_module, _args, output):
        return output + value

    handle = model.model.model.layers[layer].mlp.register_forward_hook(break_it)
    message = (
        rf"LlamaForCausalLM: activations are not finite \(NaN or infinity\), first at residual site {site}\. "
        r"Check the weights, or use a wider dtype \(float32 or bfloat16 instead of float16\)\."
    )
    with pytest.raises(ModelError, match=message):
        sk.run(model, prompts, [sk.KeyMass()])
    handle.remove()
    sk.run(model, prompts, [sk.KeyMass()])


def test_activations_that_break_after_the_last_block(model, prompts):
    handle = model.model.model.norm.register_forward_hook(lambda _m, _a, out: out * float("nan"))
    with pytest.raises(ModelError, match=r"first at residual site after the last block\."):
        sk.run(model, prompts, [sk.KeyMass()])
    handle.remove()


def test_what_is_not_finite_at_padding_alone_is_no_error(model, prompts):
    """Nobody reads padding: only real tokens have to be finite."""

    def break_padding(_module, args, kwargs, output):
        broken = output.clone()
        broken[1, 2:] = float("nan")
        return broken

    before = sk.run(model, prompts, [sk.ResidualNorm()], batch_size=3)
    handle = model.model.model.norm.register_forward_hook(break_padding, with_kwargs=True)
    found = sk.run(model, prompts, [sk.ResidualNorm()], batch_size=3)
    handle.remove()
    np.testing.assert_array_equal(found.residual_norm, before.residual_norm)


def test_the_provenance_of_a_reading(model, prompts):
    reading = sk.run(model, prompts, [sk.KeyMass(), sk.MassiveActivations(top=3)])
    attrs = reading.attrs
    assert attrs["model_id"] == "LlamaForCausalLM"
    assert attrs["model_fingerprint"] == model.fingerprint
    assert attrs["prompts_hash"] == prompts.digest
    assert (attrs["tower"], attrs["causal"], attrs["d_model"], attrs["implicit_sink"]) == ("text", 1, 32, 0)
    assert (attrs["dtype"], attrs["backend"], attrs["path"], attrs["edits"]) == (
        "float32",
        "transformers",
        "blockwise",
        "[]",
    )
    assert attrs["key0"] == prompts.key0
    assert attrs["seed"] == torch.initial_seed()
    assert json.loads(attrs["probes"]) == [
        {"probe": "KeyMass", "keys": None, "queries": None}, {"probe": "MassiveActivations", "top": 3},
    ]  # fmt: skip
    assert set(json.loads(attrs["definitions"])) == set(reading.data_vars)
    assert "T" in attrs["created"]
    encoder = sk.load_model(testing.tiny("bert"))
    assert sk.run(encoder, sk.Prompts.from_ids(IDS, encoder), [sk.KeyMass()]).attrs["causal"] == 0
    sinks = sk.load_model(testing.tiny("gpt_oss"))
    assert sk.run(sinks, sk.Prompts.from_ids(IDS, sinks), [sk.KeyMass()]).attrs["implicit_sink"] == 1
    wide = sk.load_model(testing.tiny("llama").to(torch.bfloat16))
    assert sk.run(wide, sk.Prompts.from_ids(IDS, wide), [sk.KeyMass()]).attrs["dtype"] == "bfloat16"


def test_residual_probes_alone_leave_the_attention_of_the_model_in_place(model, prompts):
    assert sk.run(model, prompts, [sk.ResidualNorm()]).attrs["path"] == "native"


def test_progress_is_silent_for_one_batch_and_without_a_terminal(model, prompts, capsys):
    sk.run(model, prompts, [sk.KeyMass()])
    assert capsys.readouterr().err == ""
    assert list(runner.progress([1, 2], 4, 2)) == [1, 2]
