"""A model inside PEFT, torch.compile or a data-parallel shell is read as it computes there."""

import copy

import numpy as np
import peft
import pytest
import torch

import sinkscope as sk
from sinkscope import testing
from sinkscope.errors import ModelError, UnsupportedModelError
from sinkscope.models.wrappers import unwrapped

IDS = [[1, 5, 9, 33, 7]]
ASKED = [sk.KeyMass(), sk.ValueNorm(), sk.Contribution(), sk.Logits(positions="all")]


def adapted(name="llama", targets=("q_proj", "v_proj", "o_proj")):
    torch.manual_seed(0)
    config = peft.LoraConfig(r=4, target_modules=list(targets), init_lora_weights=False, task_type="CAUSAL_LM")
    return peft.get_peft_model(testing.tiny(name), config).eval()


def read(source):
    model = sk.load_model(source)
    return sk.run(model, sk.Prompts.from_ids(IDS, model), ASKED)


def assert_same(first, second, **tolerance):
    for name in first.data_vars:
        np.testing.assert_allclose(first[name], second[name], err_msg=name, **tolerance)


def test_a_peft_model_is_read_with_its_adapters_on():
    wrapped = adapted()
    found = read(wrapped)
    with torch.no_grad():
        logits = wrapped(torch.tensor(IDS)).logits
        plain = testing.tiny("llama")(torch.tensor(IDS)).logits
    np.testing.assert_allclose(found.logits, logits, atol=1e-5)
    assert float((logits - plain).abs().max()) > 0.1, "the adapter must matter, or nothing is tested"
    merged = copy.deepcopy(wrapped).merge_and_unload()
    assert_same(found, read(merged), rtol=1e-4, atol=1e-5)


def test_the_reading_says_which_adapters_were_on():
    model = sk.load_model(adapted())
    assert model.origin == "with PEFT adapter default (LORA)"
    assert model.id == "LlamaForCausalLM"
    assert sk.run(model, sk.Prompts.from_ids(IDS, model), ASKED).attrs["model_origin"] == model.origin
    assert sk.load_model(testing.tiny("llama")).origin == ""


def test_adapters_that_are_switched_off_are_not_read():
    wrapped = adapted()
    model = sk.load_model(wrapped)
    prompts = sk.Prompts.from_ids(IDS, model)
    with wrapped.disable_adapter():
        off = sk.run(model, prompts, ASKED)
    assert_same(off, read(testing.tiny("llama")), rtol=1e-5, atol=1e-6)
    assert float(abs(sk.run(model, prompts, ASKED).logits - off.logits).max()) > 0.1


def test_edits_act_on_an_adapted_model_as_on_its_merged_twin():
    wrapped = adapted()
    merged = copy.deepcopy(wrapped).merge_and_unload()
    edits = [sk.MaskKeys("first", layers=[1]), sk.GateHeads(0.5, heads=[0])]
    readings = []
    for source in (wrapped, merged):
        model = sk.load_model(source)
        readings.append(sk.run(model, sk.Prompts.from_ids(IDS, model), ASKED, edits))
    assert_same(*readings, rtol=1e-4, atol=1e-5)


def test_virtual_tokens_are_refused():
    config = peft.PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=3)
    wrapped = peft.get_peft_model(testing.tiny("llama"), config)
    with pytest.raises(UnsupportedModelError, match=r"adapter 'default' \(PROMPT_TUNING\) puts virtual tokens"):
        sk.load_model(wrapped)
    assert sk.load_model(wrapped.get_base_model()).kind == "decoder"


def test_shells_of_torch_are_read_through():
    network = testing.tiny("llama")
    compiled = torch.compile(network)
    parallel = torch.nn.DataParallel(adapted())
    assert unwrapped(compiled) == (network, "")
    inside, origin = unwrapped(parallel)
    assert type(inside).__name__ == "LlamaForCausalLM"
    assert origin == "with PEFT adapter default (LORA)"
    assert_same(read(compiled), read(network), rtol=1e-6, atol=1e-6)


def test_a_model_compiled_in_place_is_not_compiled_with_the_instrument_in_it():
    def compiler(*_):
        raise AssertionError("compiled")

    network = testing.tiny("llama")
    network.compile(backend=compiler)
    assert_same(read(network), read(testing.tiny("llama")), rtol=1e-6, atol=1e-6)


def test_other_modules_around_a_model_are_not_looked_through():
    shell = torch.nn.Sequential(testing.tiny("llama"))
    assert unwrapped(shell) == (shell, "")
    with pytest.raises(ModelError, match=r"load_model: Sequential is not a transformers model\. .* PEFT model"):
        sk.load_model(shell)
