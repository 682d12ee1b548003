"""The instrument is compared with the model's own eager attention, on a prompt that reaches what its attention does."""

from dataclasses import replace

import pytest
import torch
from parity.ledger import entries, trial
from transformers.masking_utils import causal_mask_function

import sinkscope as sk
from sinkscope import testing
from sinkscope.attention import seam
from sinkscope.errors import UnsupportedModelError
from sinkscope.models.backends.verify import SHORTEST, Verification, verify


def checked(name, **settings):
    model = sk.load_model(testing.tiny(name, **settings))
    with torch.no_grad():
        return verify(
            model.model, model.backend, model.backend.towers[model.backend.default_tower], model.context_length
        )


@pytest.mark.parametrize("name", ["llama", "gemma2", "gpt_oss", "qwen3_next", "bert", "vit", "llava", "gptj", "bloom"])
def test_logits_and_maps_are_those_of_the_models_own_eager_attention(name):
    found = checked(name)
    assert found.maps is not None
    assert 0 <= max(found.logits, found.maps) < 1e-5
    assert found.beyond == 0


@pytest.mark.parametrize("name", ["diffllama", "clip"])
def test_maps_that_the_model_returns_in_another_form_are_left_out(name):
    found = checked(name)
    assert found.maps is None
    assert found.logits < 1e-5


def faulty(monkeypatch, change):
    """From now on the instrument computes another call than the model makes."""
    original = seam.attend
    monkeypatch.setattr(seam, "attend", lambda call, *rest: original(change(call), *rest))


def uncapped(call):
    return replace(call, softcap=None)


def endless(call):
    return replace(call, mask=replace(call.mask, rule=causal_mask_function, _cache={}))


def test_a_difference_stops_all_reading_and_says_how_large_it_is(monkeypatch):
    network = testing.tiny("gemma2", attn_logit_softcapping=0.5)
    model = sk.load_model(network)
    assert model.capabilities().reading == "streaming"
    faulty(monkeypatch, uncapped)
    found = model.capabilities(verify=True)
    assert (found.reading, found.edits, found.layers) == ("none", False, 0)
    assert "Gemma2ForCausalLM: under the instrument it computes something else than by its own eager" in found.why_not
    with pytest.raises(UnsupportedModelError, match=r"largest difference 0\.\d+ on \d+ tokens"):
        sk.run(model, sk.Prompts.from_ids([[1, 5, 9]], model), [sk.KeyMass()])


def test_the_prompt_goes_past_a_window_within_reach_and_says_which_is_not(monkeypatch):
    near, far = (testing.tiny("mistral", sliding_window=size, max_position_embeddings=1024) for size in (300, 700))
    texts = [sk.load_model(network).capabilities(verify=True).verified for network in (near, far)]
    assert texts[0].startswith("against eager on 348 tokens: logits ")
    assert texts[1].startswith("against eager on 512 tokens: logits ")
    assert "not reached" not in texts[0]
    assert texts[1].endswith("; a pattern of 700 tokens was not reached")
    faulty(monkeypatch, endless)
    assert "largest difference" in sk.load_model(near).capabilities(verify=True).why_not


def test_the_table_shows_what_was_found_and_the_model_is_left_as_it_was():
    network = testing.tiny("llama").train()
    model = sk.load_model(network)
    assert model.capabilities().verified == ""
    assert "verified" not in str(model.capabilities())
    assert "verified         against eager on 192 tokens: logits " in str(model.capabilities(verify=True))
    assert model.capabilities().verified
    assert network.training
    assert network.config._attn_implementation == "sdpa"


def test_a_short_context_is_respected():
    model = sk.load_model(testing.tiny("llama", max_position_embeddings=40))
    assert "on 40 tokens" in model.capabilities(verify=True).verified


def test_a_model_whose_eager_attention_cannot_run_says_so(monkeypatch):
    network = testing.tiny("llama")
    model = sk.load_model(network)
    assert model.backend.towers
    original = type(network).forward

    def forward(self, *args, **kwargs):
        if self.config._attn_implementation == "eager":
            raise RuntimeError("no eager here")
        return original(self, *args, **kwargs)

    monkeypatch.setattr(type(network), "forward", forward)
    found = model.capabilities(verify=True)
    assert found.verified == "not possible: its own eager attention raised RuntimeError: no eager here"
    assert found.reading == "streaming"


def test_a_bridge_says_that_it_has_no_eager_attention_left():
    bridge = sk.load_model(testing.tiny("llama")).to_bridge()
    assert "this bridge has replaced" in sk.load_model(bridge).capabilities(verify=True).verified


def test_the_text_of_a_verification():
    assert SHORTEST == 192
    assert str(Verification(192, 3.14e-7, None, 0)) == "against eager on 192 tokens: logits 3e-07"
    assert str(Verification(512, 0.0, 2e-6, 4096)) == (
        "against eager on 512 tokens: logits 0, maps 2e-06; a pattern of 4096 tokens was not reached"
    )


def test_a_boolean_mask_is_compared_as_one_that_is_added():
    """Eager BERT inside Grounding DINO would add 1 where its mask says yes; by default the model honours the mask."""
    network, *_ = trial.built(entries.entry("grounding-dino"))
    found = sk.load_model(network).capabilities(verify=True)
    assert found.reading == "streaming"
    assert found.verified.startswith("against eager on 192 tokens: logits ")
    assert float(found.verified.rsplit(" ", 1)[1]) < 1e-6
