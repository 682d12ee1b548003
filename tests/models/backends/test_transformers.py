"""The primary backend: one instrumented pass, what it reads and changes, and what it costs the model: nothing."""

import pytest
import torch

import sinkscope as sk
from sinkscope import testing
from sinkscope.attention.call_edits import CallEdits
from sinkscope.attention.view import Context, Wants
from sinkscope.errors import UnsupportedModelError
from sinkscope.models.backends.base import Instruments, ResidualSite
from sinkscope.models.backends.transformers import TransformersBackend

IDS = torch.tensor([[1, 5, 6, 7], [1, 8, 9, 10]])


@pytest.fixture(scope="module")
def net():
    return testing.tiny("llama")


@pytest.fixture(scope="module")
def backend(net):
    return TransformersBackend(net)


def context():
    return Context(torch.ones(IDS.shape, dtype=torch.bool), torch.zeros_like(IDS), (0,))


def test_what_it_says_about_itself(backend):
    assert (backend.name, backend.reading, backend.edits, backend.why_not) == ("transformers", "streaming", True, "")
    assert (backend.default_tower, list(backend.towers)) == ("text", ["text"])
    none = TransformersBackend(testing.tiny("bloom"))
    assert (none.reading, none.edits, dict(none.towers)) == ("none", False, {})
    assert "made no call to transformers' attention interface" in none.why_not


def test_a_pass_without_instruments_is_the_models_own(net, backend):
    out = backend.forward({"input_ids": IDS}, backend.towers["text"], Instruments())
    with torch.no_grad():
        wanted = net.model(IDS).last_hidden_state
    assert torch.equal(out.hidden, wanted)
    assert (out.logits, out.paths) == (None, {"native"})


@pytest.mark.parametrize(("asked", "rows"), [("all", 4), ("last", 1)])
def test_logits_are_made_only_as_far_as_asked(net, backend, asked, rows):
    out = backend.forward({"input_ids": IDS}, backend.towers["text"], Instruments(), asked)
    with torch.no_grad():
        wanted = net(IDS)
        hidden = net.model(IDS).last_hidden_state
    assert out.logits.shape == (2, rows, 96)
    torch.testing.assert_close(out.logits, wanted.logits[:, -rows:])
    torch.testing.assert_close(out.hidden, hidden)


def test_layers_hand_over_their_statistics_in_order(backend):
    found = []
    instruments = Instruments(
        wants={0: Wants("entropy"), 2: Wants("value_norm")},
        context=context(),
        collect=lambda site, stats: found.append((site.layer, "entropy" in stats, "value_norm" in stats)),
    )
    out = backend.forward({"input_ids": IDS}, backend.towers["text"], instruments)
    assert found == [(0, True, False), (2, False, True)]
    assert out.paths == {"blockwise", "fused"}


def test_residual_hooks_see_and_change_the_stream(net, backend):
    seen = {}

    def look(name):
        def hook(hidden):
            seen[name] = hidden.clone()

        return hook

    def zero_first(hidden):
        changed = hidden.clone()
        changed[:, 0] = 0
        return changed

    tower = backend.towers["text"]
    plain = backend.forward({"input_ids": IDS}, tower, Instruments(), "all").logits
    instruments = Instruments(residual={"0.post": [zero_first, look("0.post")], "1.mid": [look("1.mid")]})
    out = backend.forward({"input_ids": IDS}, tower, instruments, "all").logits
    assert (seen["0.post"][:, 0] == 0).all()
    assert (seen["0.post"][:, 1:] != 0).any()
    assert (out - plain).abs().max() > 1e-3
    block = net.model.layers[1]
    with torch.no_grad():
        positions = net.model.rotary_emb(seen["0.post"], torch.arange(4)[None])
        attended, _ = block.self_attn(block.input_layernorm(seen["0.post"]), position_embeddings=positions)
    torch.testing.assert_close(seen["1.mid"][:, 0], attended[:, 0])
    assert torch.equal(backend.forward({"input_ids": IDS}, tower, Instruments(), "all").logits, plain)


def test_hooks_that_return_nothing_change_nothing(backend):
    tower = backend.towers["text"]
    plain = backend.forward({"input_ids": IDS}, tower, Instruments(), "all").logits
    hooks = {name: [lambda hidden: None] for name in tower.site_names}
    assert torch.equal(backend.forward({"input_ids": IDS}, tower, Instruments(residual=hooks), "all").logits, plain)


def test_opt_hands_its_mid_site_over_with_batch_and_tokens_apart():
    backend = TransformersBackend(testing.tiny("opt"))
    shapes = []
    hooks = {name: [lambda hidden: shapes.append(tuple(hidden.shape))] for name in ("0.mid", "1.post")}
    backend.forward({"input_ids": IDS}, backend.towers["text"], Instruments(residual=hooks))
    assert shapes == [(2, 4, 32), (2, 4, 32)]


def test_edits_are_asked_by_layer_and_take_effect(backend):
    asked = []

    def edits(layer, call):
        asked.append((layer, tuple(call.query.shape)))
        gate = lambda out: torch.zeros_like(out)  # noqa: E731
        return CallEdits(gates=[gate]) if layer == 1 else None

    tower = backend.towers["text"]
    plain = backend.forward({"input_ids": IDS}, tower, Instruments(), "all").logits
    out = backend.forward({"input_ids": IDS}, tower, Instruments(edits=edits, context=context()), "all").logits
    assert asked == [(layer, (2, 4, 4, 8)) for layer in range(3)]
    assert (out - plain).abs().max() > 1e-3


@pytest.mark.parametrize("name", ["llama", "gpt2", "gpt_oss", "bert", "qwen3"])
def test_the_write_factor_keeps_the_length_of_what_each_head_writes(name):
    net = testing.tiny(name)
    backend = TransformersBackend(net)
    site = backend.towers["text"].attention[1]
    factor = backend.write_factor(site)
    assert factor.shape[0] == site.heads
    module = net.get_submodule(site.output_path)
    weight = module.weight if type(module).__name__ == "Conv1D" else module.weight.T
    for head in range(site.heads):
        rows = weight[head * site.head_dim : (head + 1) * site.head_dim].detach()
        vectors = torch.randn(5, site.head_dim, generator=torch.Generator().manual_seed(head))
        torch.testing.assert_close((vectors @ factor[head].T).norm(dim=-1), (vectors @ rows).norm(dim=-1))


def test_the_write_factor_is_kept_until_the_weight_changes():
    net = testing.tiny("llama")
    backend = TransformersBackend(net)
    site = backend.towers["text"].attention[0]
    first = backend.write_factor(site)
    assert backend.write_factor(site) is first
    with torch.no_grad():
        net.model.layers[0].self_attn.o_proj.weight.mul_(2.0)
    torch.testing.assert_close(backend.write_factor(site).abs(), 2 * first.abs())


def test_heads_wider_than_the_model_have_a_factor_too():
    net = testing.tiny("gemma", head_dim=64)
    model = sk.load_model(net)
    assert model.backend.write_factor(model.backend.towers["text"].attention[0]).shape == (4, 32, 64)
    reading = sk.run(model, sk.Prompts.from_ids(IDS.tolist(), model), [sk.Contribution()])
    assert bool((reading.contribution.sum("role") > 0).all())


def test_a_model_that_returns_neither_states_nor_logits_is_refused():
    net = testing.tiny("llama")
    backend = TransformersBackend(net)
    net.model.forward = lambda input_ids=None, use_cache=None: {"other": 1}
    message = r"the model returned dict without a hidden state or logits\. Pass one that returns either, such as"
    with pytest.raises(UnsupportedModelError, match=message):
        backend.forward({"input_ids": IDS}, backend.towers["text"], Instruments())


def test_sites_know_the_names_of_transformer_lens():
    names = {
        "embed": "blocks.0.hook_resid_pre",
        "3.mid": "blocks.3.hook_resid_mid",
        "0.post": "blocks.0.hook_resid_post",
    }
    for name, wanted in names.items():
        assert ResidualSite(name, "", before=True).lens_name == wanted


def test_a_change_at_mid_reaches_the_stream_behind_the_mlp() -> None:
    model = sk.load_model(sk.testing.tiny("llama"))
    prompts = sk.Prompts.from_ids(sk.testing.text_ids(model.model, 1, 8).tolist(), model)
    edit = sk.SetActivations("1.mid", dims=[3], value=1000.0, keys=[2])
    before, after = (sk.run(model, prompts, [sk.ResidualNorm()], edits) for edits in ((), (edit,)))
    step = (after.residual_norm - before.residual_norm).sel(site="1.post").isel(prompt=0)
    assert float(step[2]) > 900
    assert float(abs(step[:2]).max()) == 0


def test_a_change_at_mid_of_a_post_norm_block_is_refused() -> None:
    model = sk.load_model(sk.testing.tiny("bert_base"))
    prompts = sk.Prompts.from_ids(sk.testing.text_ids(model.model, 1, 8).tolist(), model)
    with pytest.raises(sk.EditError, match=r"normalises behind each sublayer.*Use '1.post'"):
        sk.run(model, prompts, edits=[sk.SetActivations("1.mid", dims=[3], value=5.0)])
