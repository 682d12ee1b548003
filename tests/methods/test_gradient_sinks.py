"""Gradients of the loss by token: those of transformers' own graph, a planted sink, a model without one."""

import numpy as np
import pytest
import torch

import sinkscope as sk
from sinkscope.errors import EditError, EditHasNoEffect, PromptError, UnsupportedModelError
from sinkscope.methods.gradient_sinks import gradient_shares
from sinkscope.testing import planted_sink, tiny

IDS = [[1, 5, 9, 14, 3, 7, 20], [1, 8, 4, 11]]


def test_norms_are_those_of_transformers_own_graph():
    model = sk.load_model(tiny("llama"))
    found = gradient_shares(model, sk.Prompts.from_ids(IDS, model))
    assert found["gradient_norm"].dims == ("prompt", "site", "key")
    assert found["site"].values.tolist() == ["embed", *[f"{n}.post" for n in range(found.sizes["site"] - 1)]]
    network = model.model.eval()
    for index, ids in enumerate(IDS):
        tokens = torch.tensor([ids])
        with torch.enable_grad():
            out = network(tokens, output_hidden_states=True, labels=tokens)
            states = out.hidden_states[:-1]
            wanted = torch.autograd.grad(out.loss, states)
        norms = np.stack([each[0].norm(dim=-1).numpy() for each in wanted])
        np.testing.assert_allclose(found["gradient_norm"][index, :, : len(ids)], norms, rtol=1e-4, atol=1e-7)
    assert np.isnan(found["gradient_norm"][1, :, 4:]).all()
    np.testing.assert_allclose(found["gradient_share"].sum("key"), 1.0, rtol=1e-6)


def test_a_key_that_no_later_query_sees_gets_the_gradient_of_its_own_prediction_alone():
    model = sk.load_model(tiny("llama"))
    prompts = sk.Prompts.from_ids([IDS[0]], model)

    def first(edits):
        return float(gradient_shares(model, prompts, edits)["gradient_norm"][0, -1, 0])

    hidden = first([sk.MaskKeys("first", queries=[1, 2, 3, 4, 5, 6])])
    short = gradient_shares(model, sk.Prompts.from_ids([IDS[0][:2]], model))["gradient_norm"]
    # One of six losses, where the short prompt has one.
    assert hidden == pytest.approx(float(short[0, -1, 0]) / 6, rel=1e-4)


def test_a_planted_sink_gets_gradient_through_its_values_and_its_massive_state_takes_it_away():
    ids = [[1, *np.random.default_rng(n).integers(5, 40, 20).tolist()] for n in range(3)]
    share, stream = [], []
    for shuffled in (False, True):
        model, truth = planted_sink(0, shuffled=shuffled)
        found = gradient_shares(model, sk.Prompts.from_ids(ids, model))
        layers = sorted({layer for layer, _ in planted_sink(0)[1].heads})
        share.append(float(found["value_gradient_share"].sel(layer=layers, key=0).mean()))
        stream.append(float(found["gradient_share"].isel(site=-1, key=0).mean()))
    assert truth.heads == []
    assert share[0] > 0.6
    assert share[0] > 1.8 * share[1]
    assert stream[0] < 0.2 * stream[1]


def test_the_gradient_of_values_is_that_of_transformers_own_graph():
    model = sk.load_model(tiny("llama"))
    found = gradient_shares(model, sk.Prompts.from_ids([IDS[0]], model))["value_gradient_share"][0]
    network, kept = model.model.eval(), []
    handles = [
        layer.self_attn.v_proj.register_forward_hook(lambda _m, _i, out: kept.append(out))
        for layer in network.model.layers
    ]
    with torch.enable_grad():
        tokens = torch.tensor([IDS[0]])
        gradients = torch.autograd.grad(network(tokens, labels=tokens).loss, kept)
    for handle in handles:
        handle.remove()
    for layer, gradient in enumerate(gradients):
        squares = gradient[0].square().sum(-1)
        np.testing.assert_allclose(found[layer], squares / squares.sum(), rtol=1e-4)


def test_what_predicts_nothing_is_refused():
    encoder = sk.load_model(tiny("bert"))
    with pytest.raises(UnsupportedModelError, match=r"gradient_shares: .* no causal language model"):
        gradient_shares(encoder, sk.Prompts.from_ids([[1, 5, 6]], encoder))
    model = sk.load_model(tiny("llama"))
    with pytest.raises(PromptError, match="a prompt has one token and predicts nothing"):
        gradient_shares(model, sk.Prompts.from_ids([[1]], model))


def test_edits_are_held_to_what_run_asks_of_them():
    model = sk.load_model(tiny("llama"))
    prompts = sk.Prompts.from_ids(IDS, model)
    for nothing in (sk.MaskKeys("image"), sk.ScaleKeys(2.0, keys="first", queries=[0])):
        with pytest.raises(EditHasNoEffect, match="changes nothing"):
            gradient_shares(model, prompts, [nothing])
    with pytest.raises(EditError, match=r"MaskKeys\(layers=99\): this model has layers"):
        gradient_shares(model, prompts, [sk.MaskKeys("first", layers=[99])])
    with pytest.raises(EditError, match="'first' is no edit"):
        gradient_shares(model, prompts, "first")
    one, listed = (gradient_shares(model, prompts, edits) for edits in (sk.MaskKeys("first"), [sk.MaskKeys("first")]))
    assert one.identical(listed)


def test_what_is_no_prompts_is_refused():
    with pytest.raises(PromptError, match="gradient_shares: expected Prompts, got a list of 1 str"):
        gradient_shares(sk.load_model(tiny("llama")), ["text"])
