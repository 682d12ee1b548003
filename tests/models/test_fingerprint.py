"""Whatever changes a model's numbers changes its fingerprint, its behaviour, or is found as code that no hash sees."""

import copy
import functools
import os
import subprocess
import sys
import types

import pytest
import torch
from transformers.models.llama import modeling_llama

import sinkscope as sk
from sinkscope import testing
from sinkscope.models.fingerprint import behaviour, fingerprint, foreign_hooks


class Adapter(torch.nn.Module):
    """A low-rank adapter on a projection, as PEFT's: a flag says whether it acts, a number how strongly."""

    def __init__(self, base):
        super().__init__()
        self.base, self.disable_adapters, self.scaling = base, False, {"default": 2.0}
        self.down = torch.nn.Parameter(torch.ones(2, base.in_features) / base.in_features)
        self.up = torch.nn.Parameter(torch.ones(base.out_features, 2))

    def forward(self, x):
        added = x @ self.down.T @ self.up.T * self.scaling["default"]
        return self.base(x) if self.disable_adapters else self.base(x) + added


def network(name="llama"):
    return testing.tiny(name)


def through_data(net):
    net.lm_head.weight.data[0, 0] += 1


def through_numpy(net):
    net.lm_head.weight.detach().numpy()[0, 0] += 1


def buffer(net):
    net.model.rotary_emb.inv_freq.mul_(1.5)


def dtype(net):
    net.to(torch.bfloat16)


def config(net):
    net.config.rms_norm_eps = 0.1


WEIGHTS = [through_data, through_numpy, buffer, dtype, config]


@pytest.mark.parametrize("change", WEIGHTS, ids=lambda f: f.__name__)
def test_bytes_and_configuration_are_seen(change):
    net = network()
    before = fingerprint(net)
    change(net)
    assert fingerprint(net) != before


@pytest.mark.parametrize("change", [buffer, dtype, config], ids=lambda f: f.__name__)
def test_the_handle_sees_them_where_a_tensor_says_so(change):
    model = sk.load_model(network())
    before = model.fingerprint
    change(model.model)
    assert model.fingerprint != before


def attribute(net):
    net.model.layers[1].self_attn.scaling *= 2


def replaced_class(net):
    class Other(type(net.model.norm)):
        pass

    net.model.norm.__class__ = Other


def loose_tensor(net):
    net.model.norm.shift = torch.ones(3)


def own_configuration(net):
    attention = net.model.layers[1].self_attn
    attention.config = copy.deepcopy(attention.config)
    attention.config.rms_norm_eps = 1.0


def held_value(net):
    net.model.norm.settings = types.SimpleNamespace(scale=3.0)


def function_of_a_module(net):
    net.model.norm.then = lambda hidden: 2 * hidden


def matmul(net):
    torch.set_float32_matmul_precision("high")


def default_type(net):
    torch.set_default_dtype(torch.float64)


def deterministic(net):
    torch.use_deterministic_algorithms(True)


@pytest.fixture
def numerics():
    before = torch.get_float32_matmul_precision(), torch.get_default_dtype()
    yield
    torch.set_float32_matmul_precision(before[0])
    torch.set_default_dtype(before[1])
    torch.use_deterministic_algorithms(False)


UNSAID = [
    attribute, replaced_class, loose_tensor, own_configuration, held_value, function_of_a_module, matmul, default_type,
    deterministic,
]  # fmt: skip


@pytest.mark.usefixtures("numerics")
@pytest.mark.parametrize("change", UNSAID, ids=lambda f: f.__name__)
def test_what_the_weights_do_not_say_is_seen(change):
    net = network()
    before = fingerprint(net), behaviour(net)
    change(net)
    assert fingerprint(net) == before[0]
    assert behaviour(net) != before[1]


def test_an_adapter_that_is_switched_or_scaled_is_seen():
    net = network()
    adapter = Adapter(net.model.layers[1].self_attn.o_proj)
    net.model.layers[1].self_attn.o_proj = adapter
    seen = {behaviour(net)}
    adapter.disable_adapters = True
    seen.add(behaviour(net))
    adapter.disable_adapters, adapter.scaling["default"] = False, 3.0
    seen.add(behaviour(net))
    assert len(seen) == 3
    adapter.scaling["default"] = 2.0
    assert behaviour(net) in seen


def test_a_forward_that_was_written_anew_is_seen(monkeypatch):
    net = network()
    before = behaviour(net)
    monkeypatch.setattr(type(net.model.norm), "forward", lambda self, hidden: hidden * 2)
    assert behaviour(net) != before


def test_constants_and_functions_beside_a_class_are_seen(monkeypatch):
    net = network()
    seen = {behaviour(net)}
    for factor in (2, 3):
        monkeypatch.setattr(type(net.model.norm), "forward", eval(f"lambda self, hidden: hidden * {factor}"))
        seen.add(behaviour(net))
    for kept in (1, 2):  # what one closure holds
        monkeypatch.setattr(type(net.model.norm), "forward", times(kept))
        seen.add(behaviour(net))
    monkeypatch.setattr(modeling_llama, "apply_rotary_pos_emb", lambda q, k, cos, sin: (q, k))
    seen.add(behaviour(net))
    monkeypatch.setattr(type(net.model.norm), "__call__", times(kept), raising=False)
    seen.add(behaviour(net))
    assert len(seen) == 7


def times(factor):
    return lambda self, hidden: hidden * factor


def test_the_type_under_autocast_is_seen():
    net = network()
    seen = {behaviour(net)}
    for dtype in (torch.bfloat16, torch.float16):
        with torch.autocast("cpu", dtype):
            seen.add(behaviour(net))
    assert len(seen) == 3


def test_it_is_the_same_in_another_process():
    code = "from sinkscope import testing; from sinkscope.models.fingerprint import behaviour\n"
    code += "print(behaviour(testing.tiny('llama')))"
    environment = os.environ | {"PYTHONHASHSEED": "1" if os.environ.get("PYTHONHASHSEED") != "1" else "2"}
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=environment)
    assert found.stdout.strip() == behaviour(network())


@pytest.mark.parametrize("name", ["llama", "gpt2", "bert", "vit", "llava", "qwen2_vl"])
def test_the_same_after_a_run_and_after_saving_and_loading(name, tmp_path):
    net = network(name)
    before = fingerprint(net), behaviour(net)
    model = sk.load_model(net)
    sk.run(model, sk.Prompts.from_inputs(testing.inputs(net, batch=1), model), [sk.KeyMass()])
    assert (fingerprint(net), behaviour(net)) == before
    assert foreign_hooks(net) == []
    net.save_pretrained(tmp_path)
    again = sk.load_model(tmp_path).model
    assert (fingerprint(again), behaviour(again)) == before


def test_the_mode_of_dropout_is_no_part_of_it():
    net = network()
    before = fingerprint(net), behaviour(net)
    net.train()
    assert (fingerprint(net), behaviour(net)) == before


def test_hooks_and_replaced_forwards_are_found():
    net = network()
    assert foreign_hooks(net) == []
    handles = [
        net.model.layers[0].register_forward_hook(lambda *_: None),
        net.model.layers[2].mlp.register_forward_pre_hook(functools.partial(lambda *_: None)),
    ]
    assert foreign_hooks(net) == ["model.layers.0", "model.layers.2.mlp"]
    for handle in handles:
        handle.remove()
    net.model.norm.forward = lambda hidden: hidden
    assert foreign_hooks(net) == ["model.norm"]
    del net.model.norm.forward
    handle = torch.nn.modules.module.register_module_forward_hook(lambda *_: None)
    assert foreign_hooks(net) == ["every module"]
    handle.remove()
    assert foreign_hooks(net) == []


@pytest.mark.filterwarnings("ignore:torch.quantize_per_tensor")
def test_quantised_weights_are_read():
    net = network()
    packed = torch.quantize_per_tensor(net.lm_head.weight.detach(), 0.1, 0, torch.qint8)
    net.register_buffer("packed", packed)
    before = fingerprint(net)
    net.packed = torch.quantize_per_tensor(net.lm_head.weight.detach() + 1, 0.1, 0, torch.qint8)
    assert fingerprint(net) != before
