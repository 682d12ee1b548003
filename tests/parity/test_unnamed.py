"""Architectures that nothing in sinkscope names: whatever goes through the library's interface is read."""

import oracle
import pytest
import torch
import transformers
from transformers import AutoConfig

import sinkscope as sk
from parity.common import assert_close
from sinkscope.roles import MEASURED_ROLES
from sinkscope.testing import randomise

SIZES = {
    "vocab_size": 96, "hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 4, "num_key_value_heads": 2,
    "intermediate_size": 64, "max_position_embeddings": 256, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip
LATENT = SIZES | {
    "num_key_value_heads": 4, "q_lora_rank": 16, "kv_lora_rank": 16, "qk_nope_head_dim": 8, "qk_rope_head_dim": 4,
    "v_head_dim": 6, "n_routed_experts": 4, "n_group": 1, "topk_group": 1, "num_experts_per_tok": 2,
}  # fmt: skip
DISTIL = {"vocab_size": 96, "dim": 32, "n_layers": 3, "n_heads": 4, "hidden_dim": 64}
MODELS = {
    "phi": ("PhiForCausalLM", SIZES), "phi3": ("Phi3ForCausalLM", SIZES), "cohere": ("CohereForCausalLM", SIZES),
    "glm": ("GlmForCausalLM", SIZES), "olmo2": ("Olmo2ForCausalLM", SIZES), "mixtral": ("MixtralForCausalLM", SIZES),
    "deepseek_v3": ("DeepseekV3ForCausalLM", LATENT), "stablelm": ("StableLmForCausalLM", SIZES),
    "roberta": ("RobertaForMaskedLM", SIZES), "modernbert": ("ModernBertForMaskedLM", SIZES),
    "albert": ("AlbertForMaskedLM", SIZES), "distilbert": ("DistilBertForMaskedLM", DISTIL),
}  # fmt: skip
IDS = [[1, 5, 6, 7, 8, 9, 10, 11], [1, 7, 8, 9]]
WRITERS = {"distilbert": "out_lin", "modernbert": "Wo"}


def made(kind):
    cls, config = MODELS[kind]
    with torch.random.fork_rng():
        net = getattr(transformers, cls)(AutoConfig.for_model(kind, **config))
    randomise(net, 0)
    return net.float().eval()


@pytest.mark.parametrize("kind", MODELS)
def test_statistics_equal_the_oracle(kind):
    net = made(kind)
    model = sk.load_model(net, backend="transformers")
    prompts = sk.Prompts.from_ids(IDS, model)
    probes = [sk.KeyMass(), sk.Entropy(), sk.KeyNorm(), sk.Contribution(), sk.ResidualNorm()]
    reading = sk.run(model, prompts, probes, batch_size=2)
    assert reading.sizes["layer"] == 3
    for i, one in enumerate(IDS):
        captured = oracle.capture(net, input_ids=torch.tensor([one]))
        assert len(captured.calls) == 3
        for layer, call in enumerate(captured.calls):
            at = reading.isel(prompt=i, layer=layer)
            n = len(one)
            assert_close(at.key_mass[:, :n], oracle.key_mass(call.weights[0], call.visible[0]), kind)
            assert_close(at.entropy[:, :n], oracle.entropy(call.weights[0]), kind)
            assert_close(at.key_norm[:, :n], call.key[0].norm(dim=-1), kind)
            writer = WRITERS.get(kind)
            module = net.get_submodule(call.path)
            if writer:
                module.o_proj = getattr(module, writer)
            write = oracle.write_matrix(net, call.path, 4)
            wanted = oracle.contribution(call.weights[0], call.value[0], write, prompts.roles[i], len(MEASURED_ROLES))
            assert_close(at.contribution, wanted, kind)


@pytest.mark.parametrize("kind", [k for k in MODELS if k != "albert"])
def test_the_stream_is_read_between_the_blocks(kind):
    net = made(kind)
    model = sk.load_model(net, backend="transformers")
    reading = sk.run(model, sk.Prompts.from_ids(IDS[:1], model), [sk.ResidualNorm()])
    captured = oracle.capture(net, input_ids=torch.tensor(IDS[:1]))
    blocks = [captured.blocks[oracle.block_of(call.path)] for call in captured.calls]
    found = reading.residual_norm[0]
    assert_close(found.sel(site="embed"), blocks[0][0][0].norm(dim=-1), kind)
    assert_close(found.sel(site="1.post"), blocks[2][0][0].norm(dim=-1), kind)
    assert_close(found.sel(site="2.post"), blocks[2][1][0].norm(dim=-1), kind)


def test_layers_that_share_their_weights_are_told_apart():
    """ALBERT calls one block three times: three layers, and one site before and after each."""
    net = made("albert")
    model = sk.load_model(net)
    tower = model.backend.towers["text"]
    assert len({site.path for site in tower.attention}) == 1
    assert tower.site_names == ("embed", "0.post", "1.post", "2.post")
    reading = sk.run(model, sk.Prompts.from_ids(IDS[:1], model), [sk.ResidualNorm(), sk.KeyMass()])
    with torch.no_grad():
        states = net(torch.tensor(IDS[:1]), output_hidden_states=True).hidden_states
    assert len(states) == 4  # nothing stands between ALBERT's last block and its output, so these are the sites
    for site, wanted in zip(reading.residual_norm[0], states, strict=True):
        assert_close(site, wanted[0].norm(dim=-1), str(site.site.values))
    assert not torch.allclose(*torch.tensor(reading.key_mass[0, :2].values))
