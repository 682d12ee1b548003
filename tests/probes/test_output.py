"""Loss per token and logits."""

import numpy as np
import oracle
import pytest
import torch

import sinkscope as sk
from sinkscope import testing
from sinkscope.errors import ModelError, ProbeError

IDS = [[1, 5, 6], [1, 7, 8, 9, 10, 11], [1, 12]]


@pytest.fixture(scope="module")
def model():
    return sk.load_model(testing.tiny("llama"))


@pytest.fixture(scope="module")
def prompts(model):
    return sk.Prompts.from_ids(IDS, model)


def logits(model, ids):
    with torch.no_grad():
        return model.model(torch.tensor([ids])).logits[0]


@pytest.mark.parametrize("batch_size", [1, 3])
def test_token_loss_is_that_of_the_library_on_all_but_the_last_query(model, prompts, batch_size):
    loss = sk.run(model, prompts, [sk.TokenLoss()], batch_size=batch_size).token_loss
    assert loss.dims == ("prompt", "query")
    assert np.isfinite(loss).sum("query").values.tolist() == [2, 5, 1]
    for i, one in enumerate(IDS):
        ids = torch.tensor([one])
        with torch.no_grad():
            whole = model.model(ids, labels=ids).loss.item()
        assert float(loss[i].mean()) == pytest.approx(whole, rel=1e-5)
        wanted = oracle.token_loss(logits(model, one), ids[0])
        np.testing.assert_allclose(loss[i, : len(one) - 1], wanted, atol=1e-5)


def test_token_loss_of_left_padded_inputs(model):
    ids = torch.tensor([[0, 0, 1, 5], [1, 7, 8, 9]])
    mask = torch.tensor([[0, 0, 1, 1], [1, 1, 1, 1]])
    where = (mask.cumsum(-1) - 1).clamp(min=0)
    given = {"input_ids": ids, "attention_mask": mask, "position_ids": where}
    prompts = sk.Prompts.from_inputs(given, model)
    assert prompts.whole is not None
    found = sk.run(model, prompts, [sk.TokenLoss(), sk.Logits(positions="all")])
    alone = sk.run(model, sk.Prompts.from_ids([[1, 5], [1, 7, 8, 9]], model), [sk.TokenLoss(), sk.Logits("all")])
    for name in ("token_loss", "logits"):
        np.testing.assert_allclose(found[name], alone[name], atol=1e-4)


def test_long_prompts_are_done_in_chunks(model, monkeypatch):
    prompts = sk.Prompts.from_ids([IDS[1]], model)
    whole = sk.run(model, prompts, [sk.TokenLoss()]).token_loss
    monkeypatch.setattr("sinkscope.probes.output.CHUNK", 2)
    np.testing.assert_array_equal(sk.run(model, prompts, [sk.TokenLoss()]).token_loss, whole)


@pytest.mark.parametrize("batch_size", [1, 2, 3])
def test_the_last_logits_are_those_of_each_prompts_own_last_token(model, prompts, batch_size):
    found = sk.run(model, prompts, [sk.Logits()], batch_size=batch_size).logits
    assert found.dims == ("prompt", "position", "vocab")
    assert found.position.values.tolist() == [-1]
    for i, one in enumerate(IDS):
        np.testing.assert_allclose(found[i, 0], logits(model, one)[-1], atol=1e-5)


@pytest.mark.parametrize("batch_size", [1, 2, 3])
def test_all_logits_are_nan_beyond_a_prompts_end(model, prompts, batch_size):
    found = sk.run(model, prompts, [sk.Logits(positions="all")], batch_size=batch_size).logits
    assert found.position.values.tolist() == list(range(6))
    for i, one in enumerate(IDS):
        np.testing.assert_allclose(found[i, : len(one)], logits(model, one), atol=1e-5)
        assert np.isnan(found[i, len(one) :]).all()


def test_logits_at_positions_from_either_end(model, prompts):
    found = sk.run(model, prompts, [sk.Logits(positions=[1, -2, 1])], batch_size=3).logits
    assert found.position.values.tolist() == [1, -2]
    for i, one in enumerate(IDS):
        np.testing.assert_allclose(found[i], logits(model, one)[[1, -2]], atol=1e-5)


def test_logits_of_a_masked_language_model():
    model = sk.load_model(testing.tiny("bert"))
    prompts = sk.Prompts.from_ids(IDS, model)
    found = sk.run(model, prompts, [sk.Logits(positions=[0])], batch_size=3).logits
    for i, one in enumerate(IDS):
        np.testing.assert_allclose(found[i, 0], logits(model, one)[0], atol=1e-5)


def test_loss_and_logits_share_one_pass(model, prompts, monkeypatch):
    calls = []
    forward = model.backend.forward
    monkeypatch.setattr(model.backend, "forward", lambda *a, **k: calls.append(a[3:]) or forward(*a, **k))
    sk.run(model, prompts, [sk.TokenLoss(), sk.Logits()], batch_size=3)
    assert calls == [("all",)]


@pytest.mark.parametrize("probe", [sk.TokenLoss(), sk.Logits(), sk.Logits(positions="all"), sk.Logits(positions=[0])])
@pytest.mark.parametrize("overflow", ["nan", "inf"])
def test_an_output_layer_that_overflows_is_an_error(probe, overflow):
    """The stream is finite; the logits are not, as in half precision."""
    model = sk.load_model(testing.tiny("llama"))
    prompts = sk.Prompts.from_ids(IDS, model)
    model.model.lm_head.register_forward_hook(lambda _m, _a, out: out.abs() * float(overflow))
    message = (
        rf"{type(probe).__name__}\(\): the output logits are not finite \(NaN or infinite\) though the residual "
        r"stream is\. Use a wider dtype \(float32 or bfloat16 instead of float16\)\."
    )
    with pytest.raises(ModelError, match=message):
        sk.run(model, prompts, [probe], batch_size=3)


def test_refusals(model, prompts):
    with pytest.raises(ProbeError, match=r"Logits\(positions='first'\): use 'last', 'all' or a list of positions\."):
        sk.Logits(positions="first")
    with pytest.raises(ProbeError, match=r"Logits\(positions=\[\]\): no position is named\."):
        sk.Logits(positions=[])
    message = r"Logits\(positions=\[0, 2\]\): position 2 is beyond a prompt of 2 tokens\. Use positions inside every"
    with pytest.raises(ProbeError, match=message):
        sk.run(model, prompts, [sk.Logits(positions=[0, 2])], batch_size=3)
    encoder = sk.load_model(testing.tiny("bert"))
    message = r"TokenLoss\(\): this model is an encoder and predicts no next token\. Use Logits\(\) instead\."
    with pytest.raises(ProbeError, match=message):
        sk.run(encoder, sk.Prompts.from_ids(IDS, encoder), [sk.TokenLoss()])


@pytest.mark.parametrize("name", ["bert_base", "vit"])
def test_a_model_without_an_output_layer_is_refused(name):
    model = sk.load_model(testing.tiny(name))
    given = testing.inputs(model.model)
    pictures = "pixel_values" in given
    prompts = (
        sk.Prompts.from_images(list(given["pixel_values"]), model) if pictures else sk.Prompts.from_ids(IDS, model)
    )
    message = rf"Logits\(\): {model.id} has no output layer\. Load the model with its head\."
    with pytest.raises(ProbeError, match=message):
        sk.run(model, prompts, [sk.Logits()])


def test_a_decoder_without_its_head_is_refused_before_it_runs(monkeypatch):
    model = sk.load_model(testing.tiny("llama").model)
    prompts = sk.Prompts.from_ids(IDS, model)
    monkeypatch.setattr(model.backend, "forward", None)
    with pytest.raises(ProbeError, match=r"TokenLoss\(\): LlamaModel has no output layer\."):
        sk.run(model, prompts, [sk.TokenLoss()])
