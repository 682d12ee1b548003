"""Weight times gradient: against autograd through eager attention, by causality, and under edits."""

import numpy as np
import pytest
import torch

import sinkscope as sk
from sinkscope import testing
from sinkscope.errors import ProbeError, UnsupportedModelError

IDS = [[1, 5, 6, 7, 8, 9], [1, 7, 8]]


@pytest.fixture(scope="module")
def model():
    return sk.load_model(testing.tiny("llama"))


@pytest.fixture(scope="module")
def prompts(model):
    return sk.Prompts.from_ids(IDS, model)


def by_eager(network, ids, scalar):
    """(layer, head, query, key) of weight times gradient, by the library's own maps."""
    network.set_attn_implementation("eager")
    out = network(input_ids=torch.tensor([ids]), output_attentions=True, use_cache=False)
    grads = torch.autograd.grad(scalar(out.logits[0].float()), out.attentions)
    return np.stack([(a * g)[0].detach().numpy() for a, g in zip(out.attentions, grads, strict=True)])


TARGETS = {
    "top": lambda logits, ids: torch.log_softmax(logits[-1], -1).max(),
    (4,): lambda logits, ids: torch.log_softmax(logits[-1], -1)[4],
    "loss": lambda logits, ids: torch.nn.functional.cross_entropy(logits[:-1], torch.tensor(ids[1:])),
}


@pytest.mark.parametrize("target", TARGETS, ids=str)
def test_it_is_that_of_eager_attention(model, prompts, target):
    found = sk.run(model, prompts, [sk.AttentionGradient(range(2), range(4), target)], batch_size=2).attention_gradient
    for row, ids in enumerate(IDS):
        wanted = by_eager(testing.tiny("llama"), ids, lambda logits, ids=ids: TARGETS[target](logits, ids))
        n = len(ids)
        np.testing.assert_allclose(found[row, :, :, :n, :n], wanted[:2], atol=1e-5)


def test_a_function_is_a_target(model, prompts):
    probes = [sk.AttentionGradient([1], [0, 2], target) for target in ("top", lambda s, _: s.log_softmax(-1)[-1].max())]
    one, other = (sk.run(model, prompts, [probe]).attention_gradient for probe in probes)
    np.testing.assert_allclose(one, other, atol=1e-6)
    assert list(one.layer.values) == [1]
    assert list(one["head"].values) == [0, 2]


def test_a_row_behind_the_one_that_predicts_has_gradient_zero():
    """The released SGRS reads row T-1 with the loss of row T-2: zero by causality."""
    model = sk.load_model(testing.tiny("llama", num_hidden_layers=4))
    prompts = sk.Prompts.from_ids([[1, 5, 6, 7, 8, 9, 10, 11, 12, 13]], model)

    def loss(logits, ids):
        return -logits.log_softmax(-1)[-2, ids[-1]]

    found = sk.run(model, prompts, [sk.AttentionGradient(range(4), range(4), loss, weighted=False)]).attention_gradient
    rows = np.abs(found[0]).max(["head", "key"])
    assert (rows[:, -1] == 0).all()
    assert (rows[:, -2] > 0).all()


def test_edits_hold_and_the_model_is_left_as_it_was(model, prompts):
    before = {name: p.requires_grad for name, p in model.model.named_parameters()}
    probe = sk.AttentionGradient([0, 1], range(4))
    plain = sk.run(model, prompts, [probe, sk.Logits()])
    edited = sk.run(model, prompts, [probe, sk.Logits()], [sk.MaskKeys("first")])
    np.testing.assert_allclose(edited.attention_gradient[0, :, :, 1:, 0], 0, atol=1e-7)
    assert float(np.abs(edited.attention_gradient - plain.attention_gradient).max()) > 1e-4
    np.testing.assert_array_equal(sk.run(model, prompts, [sk.Logits()]).logits, plain.logits)
    assert {name: p.requires_grad for name, p in model.model.named_parameters()} == before


def test_errors(model, prompts):
    three = sk.Prompts.from_ids([*IDS, [1, 2]], model)
    with pytest.raises(ProbeError, match=r"AttentionGradient\(target='best'\): use 'top', 'loss', token ids"):
        sk.AttentionGradient([0], [0], "best")
    with pytest.raises(ProbeError, match="this model has layers 0"):
        sk.run(model, prompts, [sk.AttentionGradient([9], [0])])
    with pytest.raises(ProbeError, match=r"the vocabulary has ids 0\.\."):
        sk.run(model, prompts, [sk.AttentionGradient([0], [0], 10**6)])
    with pytest.raises(ProbeError, match="prompt 0 has no such token before its last one"):
        sk.run(model, prompts, [sk.AttentionGradient([0], [0], "loss", queries="last")])
    with pytest.raises(ProbeError, match=r"there is none for prompt 2\. Give one per prompt"):
        sk.run(model, three, [sk.AttentionGradient([0], [0], [3, 4])])
    with pytest.raises(ProbeError, match="needs a backward pass, which variants cannot share"):
        sk.sweep(model, prompts, {"a": [sk.MaskKeys("first")]}, [sk.AttentionGradient([0], [0])])
    encoder = sk.load_model(testing.tiny("bert"))
    with pytest.raises(ProbeError, match="is an encoder and predicts no next token"):
        sk.run(encoder, sk.Prompts.from_ids(IDS, encoder), [sk.AttentionGradient([0], [0])])
    bridged = sk.load_model(testing.tiny("gptj"))
    with pytest.raises(UnsupportedModelError, match="driven by transformers"):
        sk.run(bridged, sk.Prompts.from_ids(IDS, bridged), [sk.AttentionGradient([0], [0])])
