"""Models that compute attention by themselves, read off the maps they return; and models that compute with masks."""

from functools import cache

import numpy as np
import pytest
import torch
import transformers
from parity.ledger import trial
from parity.ledger.compare import Comparison
from parity.ledger.entries import entry

import sinkscope as sk
from sinkscope.errors import ProbeError, UnsupportedModelError
from sinkscope.testing.tiny import randomise

SIZES = {
    "vocab_size": 64, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 48,
    "max_position_embeddings": 64,
}  # fmt: skip
MADE = {
    "deberta": lambda: transformers.DebertaV2ForMaskedLM(
        transformers.DebertaV2Config(**SIZES, relative_attention=True, pos_att_type=["p2c", "c2p"])
    ),
    "xlnet": lambda: transformers.XLNetLMHeadModel(
        transformers.XLNetConfig(vocab_size=64, d_model=32, n_layer=2, n_head=4, d_inner=48)
    ),
    "mpnet": lambda: transformers.MPNetForMaskedLM(transformers.MPNetConfig(**SIZES)),
}
ROWS = [[4, 5, 6, 7, 8, 9, 10], [11, 12, 13, 14]]


@cache
def handle(name):
    network = MADE[name]()
    randomise(network, 0)
    return sk.load_model(network.eval())


@pytest.mark.parametrize("name", MADE)
def test_readings_are_the_maps_that_the_model_returns(name):
    model = handle(name)
    found = model.capabilities(verify=True)
    assert (found.reading, found.edits, found.layers) == ("dense", False, 2)
    assert "layers x heads x tokens squared" in found.note
    assert found.verified == "not needed: what is read are the model's own maps"
    prompts = sk.Prompts.from_ids(ROWS, model)
    probes = [
        sk.KeyMass(), sk.Entropy(), sk.RoleShare(queries="all"), sk.AttentionMap(layers=[0, 1], heads=range(4)),
    ]  # fmt: skip
    stream = [] if name == "xlnet" else [sk.ResidualNorm()]
    ds = sk.run(model, prompts, [*probes, *stream], batch_size=2)
    for i, row in enumerate(ROWS):
        with torch.no_grad():
            out = model.model(torch.tensor([row]), output_attentions=True, output_hidden_states=True)
        n = len(row)
        for layer in range(2):
            wanted = out.attentions[layer][0].numpy()
            np.testing.assert_allclose(ds.attention.values[i, layer, :, :n, :n], wanted, atol=1e-5)
            np.testing.assert_allclose(ds.key_mass.values[i, layer, :, :n], wanted.mean(1), atol=1e-5)
            entropy = -(wanted * np.log(np.maximum(wanted, 1e-30))).sum(-1)
            np.testing.assert_allclose(ds.entropy.values[i, layer, :, :n], entropy, atol=1e-5)
        if stream:
            norm = out.hidden_states[1].norm(dim=-1).flatten()
            np.testing.assert_allclose(ds.residual_norm.sel(site="0.post").values[i, :n], norm.numpy(), rtol=1e-4)
    np.testing.assert_allclose(ds.role_share.sum("role"), 1, atol=1e-5)


def test_edits_and_statistics_of_values_are_refused():
    model = handle("mpnet")
    prompts = sk.Prompts.from_ids(ROWS, model)
    with pytest.raises(UnsupportedModelError, match=r"read but not edited.*an edit of them would change nothing"):
        sk.run(model, prompts, [sk.KeyMass()], [sk.MaskKeys("first")])
    tokens_first = handle("xlnet")
    with pytest.raises(ProbeError, match="keeps its stream in another layout"):
        sk.run(tokens_first, sk.Prompts.from_ids(ROWS, tokens_first), [sk.ResidualNorm()])
    with pytest.raises(UnsupportedModelError, match="the statistic 'value_norm' is of keys, values or logits"):
        sk.run(model, prompts, [sk.ValueNorm()])


def test_maps_of_other_tokens_and_scores_are_refused():
    funnel = transformers.FunnelConfig(
        vocab_size=64, d_model=32, n_head=4, d_head=8, d_inner=48, block_sizes=[1, 1], num_decoder_layers=1
    )
    said = sk.load_model(transformers.FunnelForMaskedLM(funnel).eval()).capabilities()
    assert (said.reading, "pooled or windowed" in said.why_not) == ("none", True)
    canine = transformers.CanineConfig(
        hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=48, num_hash_buckets=64,
        local_transformer_stride=8, upsampling_kernel_size=2,
    )  # fmt: skip
    said = sk.load_model(transformers.CanineModel(canine).eval()).capabilities()
    assert (said.reading, "pooled or windowed" in said.why_not) == ("none", True)
    scores = transformers.SqueezeBertForMaskedLM(
        transformers.SqueezeBertConfig(**SIZES, embedding_size=32, q_groups=1, k_groups=1, v_groups=1)
    )
    assert "rows do not sum to 1" in sk.load_model(scores.eval()).capabilities().why_not


def test_of_several_heads_the_first_is_compared():
    """MGP-STR gives logits of characters, of pieces and of words, and keeps its blocks in a Sequential."""
    config = transformers.MgpstrConfig(
        image_size=[16, 16], patch_size=4, hidden_size=32, num_hidden_layers=2, num_attention_heads=4,
        max_token_length=4, num_character_labels=8, num_bpe_labels=9, num_wordpiece_labels=10,
    )  # fmt: skip
    network = transformers.MgpstrForSceneTextRecognition(config).eval()
    randomise(network, 0)
    model = sk.load_model(network)
    pixels = torch.randn(1, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    found = sk.run(model, sk.Prompts.from_inputs({"pixel_values": pixels}, model), [sk.AttentionMap([0, 1], range(4))])
    with torch.no_grad():
        own = network(pixels, output_attentions=True).attentions
    np.testing.assert_allclose(found.attention.values[0], torch.stack(own)[:, 0], atol=1e-5)


def test_a_bridge_that_fails_to_build_is_no_error_of_capabilities(monkeypatch):
    def broken(*_, **__):
        raise RuntimeError("the size of tensor a must match")

    monkeypatch.setattr("sinkscope.models.backends.lens.to_bridge", broken)
    said = sk.load_model(MADE["mpnet"]().eval()).capabilities()
    assert said.reading == "dense"


# ---------------------------------------------------------------- models that compute with their mask


@cache
def paligemma():
    text = {
        "vocab_size": 64, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4,
        "num_key_value_heads": 2, "head_dim": 8, "intermediate_size": 48, "model_type": "gemma",
    }  # fmt: skip
    vision = {
        "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 48,
        "image_size": 16, "patch_size": 4, "model_type": "siglip_vision_model",
    }  # fmt: skip
    config = transformers.PaliGemmaConfig(
        text_config=text, vision_config=vision, image_token_index=60, projection_dim=32, hidden_size=32
    )
    network = transformers.PaliGemmaForConditionalGeneration(config)
    randomise(network, 0)
    return sk.load_model(network.eval())


def test_a_model_that_computes_with_its_mask_gets_tensors():
    model = paligemma()
    found = model.capabilities(verify=True)
    assert (found.kind, found.reading, found.edits) == ("vlm", "streaming", True)
    assert "memory grows with the square of the length" in found.note
    assert "maps" in found.verified
    prompts = sk.Prompts.from_ids(ROWS, model)
    ds = sk.run(model, prompts, [sk.AttentionMap(layers=[0, 1], heads=range(4))], batch_size=2)
    model.model.set_attn_implementation("eager")
    for i, row in enumerate(ROWS):
        with torch.no_grad():
            out = model.model(torch.tensor([row]), output_attentions=True)
        for layer in range(2):
            wanted = out.attentions[layer][0].numpy()
            np.testing.assert_allclose(ds.attention.values[i, layer, :, : len(row), : len(row)], wanted, atol=1e-5)
    edited = sk.run(model, prompts, [sk.KeyMass()], [sk.MaskKeys([1])], batch_size=2)
    assert float(edited.key_mass.sel(key=1).max()) < 1e-6


def exact(name, kinds, towers):
    """How the ledger's small model of one type is read, against the maps that it returns."""
    network, kind, rows = trial.built(entry(name))
    model = sk.load_model(network)
    assert kind == kinds
    assert list(model.backend.towers) == towers
    assert (model.capabilities().reading, model.capabilities().edits) == ("dense", False)
    found = Comparison(network, model, kind, rows).everything()
    assert {f"{tower} maps" for tower in towers} <= set(found.off)
    assert max(found.off.values()) < 1e-5


@pytest.mark.parametrize(
    ("name", "kind", "towers"),
    [
        ("data2vec-vision", "image", ["vision"]),
        ("wavlm", "audio", ["text"]),
        ("mvp", "pair", ["decoder", "encoder", "cross"]),
    ],
)
def test_maps_of_images_recordings_and_pairs_are_read(name, kind, towers):
    exact(name, kind, towers)


def test_what_can_be_done_where_maps_are_given_by_an_eager_model_alone_is_said():
    network = transformers.Data2VecVisionModel(
        transformers.Data2VecVisionConfig(hidden_size=16, num_hidden_layers=1, num_attention_heads=2, image_size=16,
                                          intermediate_size=16, patch_size=8)
    )  # fmt: skip
    randomise(network, 0)
    why = sk.load_model(network.eval()).capabilities().why_not
    assert "build it with attn_implementation='eager'" in why


@pytest.mark.parametrize(
    ("model_type", "told"),
    [
        ("swin", "windows of an image, frames of a video): 64 of 4 tokens, 16 of 4 tokens, 4 of 4 tokens"),
        ("detr", "not all of its attention is of an image's tokens on each other: 100 on 4 (the queries of a detector"),
    ],
)
def test_attention_of_other_tokens_than_patches_is_refused_for_that_with_the_way_out(model_type, told):
    """DETR was said to be read, and then no prompt could be made for it."""
    able = sk.load_model(trial.built(entry(model_type))[0]).capabilities()
    assert able.reading == "none"
    assert told in able.why_not
    assert "Take them from the model itself (output_attentions=True)" in able.why_not
