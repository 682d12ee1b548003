"""Models that accelerate keeps on the CPU or on disk, and quantised ones: read and edited like any other."""

import copy

import numpy as np
import pytest
import torch
from accelerate import cpu_offload, disk_offload

import sinkscope as sk
from sinkscope import testing
from sinkscope.errors import ModelError
from sinkscope.models import weights

IDS = [[1, 5, 9, 12, 20, 7], [1, 8, 30]]
PROBES = [sk.KeyMass(), sk.Entropy(), sk.ValueNorm(), sk.ResidualNorm(), sk.Contribution(), sk.TokenLoss()]
HALF_ON_DISK = {
    "model.embed_tokens": "cpu", "model.layers.0": "cpu", "model.layers.1": "disk", "model.layers.2": "disk",
    "model.norm": "cpu", "model.rotary_emb": "cpu", "lm_head": "cpu",
}  # fmt: skip


@pytest.fixture(scope="module")
def network():
    return testing.tiny("llama")


@pytest.fixture(params=["offloaded to the CPU", "offloaded to disk", "loaded with half on disk"])
def offloaded(request, network, tmp_path):
    if request.param == "loaded with half on disk":
        network.save_pretrained(tmp_path / "model")
        return sk.load_model(tmp_path / "model", device_map=HALF_ON_DISK)
    copied = copy.deepcopy(network)
    if request.param == "offloaded to disk":
        disk_offload(copied, str(tmp_path), execution_device="cpu")
    else:
        cpu_offload(copied, execution_device="cpu")
    return sk.load_model(copied)


def test_an_offloaded_model_is_read_and_edited_like_the_whole_one(offloaded, network):
    whole = sk.load_model(network)
    assert any(p.is_meta for p in offloaded.model.parameters())
    assert offloaded.device.type == "cpu"
    found, wanted = (sk.run(m, sk.Prompts.from_ids(IDS, m), PROBES, batch_size=2) for m in (offloaded, whole))
    for name in wanted.data_vars:
        np.testing.assert_allclose(found[name], wanted[name], atol=1e-5, rtol=1e-5)
    edits = [sk.ScaleKeys(0.2), sk.SetActivations("1.post", dims=[3], value=1.0)]
    losses = [sk.run(m, sk.Prompts.from_ids(IDS, m), sk.TokenLoss(), edits).token_loss for m in (offloaded, whole)]
    np.testing.assert_allclose(losses[0], losses[1], atol=1e-5)
    assert any(p.is_meta for p in offloaded.model.parameters()), "a run brings nothing back for good"


def prompts_of(name, model):
    if name == "vit":
        return sk.Prompts.from_images(list(testing.pixels(model.model)), model)
    if name == "bart":
        return sk.Prompts.from_inputs({"input_ids": [[5, 6, 7]], "labels": [[8, 9]]}, model)
    return sk.Prompts.from_inputs(testing.inputs(model.model), model)


@pytest.mark.parametrize("name", ["vit", "whisper", "bart"])
def test_prompts_that_run_a_part_of_the_model_ask_accelerate_where(name):
    network = testing.tiny(name)
    copied = copy.deepcopy(network)
    cpu_offload(copied, execution_device="cpu")
    offloaded, whole = sk.load_model(copied), sk.load_model(network)
    asked, wanted = prompts_of(name, offloaded), prompts_of(name, whole)
    assert asked.digest == wanted.digest
    found, same = (sk.run(m, p, [sk.KeyMass()]) for m, p in ((offloaded, asked), (whole, wanted)))
    np.testing.assert_allclose(found["key_mass"], same["key_mass"], atol=1e-6)


@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::DeprecationWarning")
def test_int8_weights_are_read_as_the_models_own_eager_attention_computes(network):
    from torch.ao.quantization import quantize_dynamic

    small = quantize_dynamic(copy.deepcopy(network), {torch.nn.Linear}, dtype=torch.qint8)
    model = sk.load_model(small)
    prompts = sk.Prompts.from_ids(IDS[:1], model)
    found = sk.run(model, prompts, [sk.KeyMass(), sk.Entropy(), sk.Contribution()])
    small.set_attn_implementation("eager")
    with torch.no_grad():
        maps = torch.stack(small(torch.tensor(IDS[:1]), output_attentions=True).attentions, 1)
    size = maps.shape[-1]
    np.testing.assert_allclose(found.key_mass, maps.sum(-2) / torch.arange(size, 0, -1), atol=1e-5)
    np.testing.assert_allclose(found.entropy, torch.special.entr(maps).sum(-1), atol=1e-5)
    assert bool(np.isfinite(found.contribution.sel(role="text")).all())


def test_settings_of_loading_reach_transformers_and_are_refused_where_they_cannot(network, tmp_path, monkeypatch):
    network.save_pretrained(tmp_path)
    seen = {}

    def load(*arguments, **settings):
        seen.update(settings)
        return network

    monkeypatch.setattr(weights, "load_weights", load)
    asked = object()
    sk.load_model(tmp_path, quantization_config=asked)
    assert seen["quantization_config"] is asked
    with pytest.raises(ModelError, match=r"load_model\(quantization_config=...\): it is for models that are loaded"):
        sk.load_model(network, quantization_config=asked)
