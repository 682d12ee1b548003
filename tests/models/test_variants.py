"""The dense attention function, gates, extra keys, and saving and loading of variants."""

from __future__ import annotations

import pytest
import torch
from transformers import GPT2Config, LlamaConfig

from sinkscope.errors import ModelError
from sinkscope.models import variants


def llama(**extra):
    return LlamaConfig(
        vocab_size=30, hidden_size=16, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=1 if not extra.pop("full_kv", False) else 2, bos_token_id=0, eos_token_id=None,
        initializer_range=0.3, **extra,
    )  # fmt: skip


LOGITS = torch.tensor([[[1.0, 9.0], [2.0, -1.0]]])
SEEN = torch.tensor([[1.0, 0.0], [1.0, 1.0]])


def test_each_normaliser_on_a_two_by_two_case():
    e = torch.exp
    two, minus = torch.tensor(2.0), torch.tensor(-1.0)
    softmax = variants.normalise(LOGITS, SEEN, "softmax")[0]
    torch.testing.assert_close(softmax, torch.tensor([[1.0, 0.0], [e(two) / (e(two) + e(minus)), 0.0]]) + 
                               torch.tensor([[0.0, 0.0], [0.0, e(minus) / (e(two) + e(minus))]]))  # fmt: skip
    one = variants.normalise(LOGITS, SEEN, "softmax1")[0]
    total = e(two) + e(minus) + 1
    torch.testing.assert_close(one[1], torch.stack([e(two) / total, e(minus) / total]))
    assert one[0, 1] == 0
    torch.testing.assert_close(one[0, 0], torch.sigmoid(torch.tensor(1.0)))
    sigmoid = variants.normalise(LOGITS, SEEN, "sigmoid")[0]
    torch.testing.assert_close(sigmoid, torch.sigmoid(LOGITS[0]) * SEEN)
    relu = variants.normalise(LOGITS, SEEN, "relu")[0]
    torch.testing.assert_close(relu, torch.tensor([[1.0, 0.0], [1.0, 0.0]]))


def test_softmax1_is_stable_for_large_negative_and_positive_logits():
    weights = variants.normalise(torch.tensor([[[-200.0, -300.0]], [[500.0, 0.0]]]), torch.ones(1, 2), "softmax1")
    assert weights[0].sum() < 1e-20
    torch.testing.assert_close(weights[1], torch.tensor([[1.0, 0.0]]))


def test_an_extra_key_takes_its_share_and_leaves_the_ratio_of_the_others():
    plain = variants.normalise(LOGITS, SEEN, "softmax")[0, 1]
    extra = variants.normalise(LOGITS, SEEN, "softmax", torch.full((1, 2, 1), 2.0))[0, 1]
    assert extra.sum() < 0.6
    torch.testing.assert_close(extra[0] / extra[1], plain[0] / plain[1])


@pytest.mark.parametrize("length", [1, 9])
def test_the_dense_function_equals_eager_attention_padded_and_unpadded(length):
    torch.manual_seed(0)
    model = variants.build(llama()).eval()
    ids = torch.randint(1, 30, (2, length))
    mask = torch.ones_like(ids)
    if length > 1:
        mask[0, :3] = 0
    for keep in (None, mask):
        model.set_attn_implementation("eager")
        want = model(ids, attention_mask=keep).logits
        model.set_attn_implementation(variants.NAME)
        got = model(ids, attention_mask=keep).logits
        rows = slice(None) if keep is None else keep.bool()
        torch.testing.assert_close(got[rows], want[rows], atol=1e-5, rtol=0)


@pytest.mark.parametrize("normaliser", ["relu", "sigmoid", "softmax1"])
def test_no_query_sees_the_future_and_the_cache_gives_the_same(normaliser):
    torch.manual_seed(0)
    model = variants.build(llama(sinkscope_normaliser=normaliser)).eval()
    ids = torch.randint(1, 30, (1, 8))
    out = model(ids, output_attentions=True, use_cache=True)
    for weights in out.attentions:
        assert weights.triu(1).abs().max() == 0
        assert weights.tril().abs().max() > 0
    first = model(ids[:, :5], use_cache=True)
    rest = model(ids[:, 5:], past_key_values=first.past_key_values).logits
    torch.testing.assert_close(rest, out.logits[:, 5:], atol=1e-5, rtol=0)


@pytest.mark.parametrize("gate", [True, "element"])
def test_a_gated_model_with_open_gates_is_the_plain_model(gate):
    torch.manual_seed(0)
    model = variants.build(llama(sinkscope_gate=gate)).eval()
    plain = variants.build(llama()).eval()
    state = {k: v for k, v in model.state_dict().items() if "gate_proj" not in k or "mlp" in k}
    plain.load_state_dict(state)
    ids = torch.randint(1, 30, (2, 7))
    assert (model(ids).logits - plain(ids).logits).abs().max() > 1e-3
    for layer, twin in zip(model.model.layers, plain.model.layers, strict=True):
        layer.self_attn.gate_proj.weight.data.zero_()
        twin.self_attn.o_proj.weight.data *= 0.5
    torch.testing.assert_close(model(ids).logits, plain(ids).logits, atol=1e-5, rtol=0)


def test_saving_and_loading_gives_the_same_logits(tmp_path):
    torch.manual_seed(0)
    for i, config in enumerate(
        [
            llama(sinkscope_extra_key=True, full_kv=True),
            llama(sinkscope_gate=True),
            llama(sinkscope_normaliser="sigmoid"),
            GPT2Config(vocab_size=30, n_positions=16, n_embd=8, n_layer=1, n_head=1, tie_word_embeddings=False,
                       bos_token_id=0, eos_token_id=None, sinkscope_normaliser="relu"),
        ]
    ):  # fmt: skip
        model = variants.build(config).eval()
        for name, parameter in model.named_parameters():
            if "extra_key" in name:
                parameter.data.normal_()
        variants.save(model, tmp_path / str(i))
        again = variants.load(tmp_path / str(i))
        ids = torch.randint(1, 30, (2, 7))
        torch.testing.assert_close(again(ids).logits, model(ids).logits, atol=0, rtol=0)
        assert not again.training


def test_errors_say_what_to_do(tmp_path):
    with pytest.raises(ModelError, match=r"sinkscope_normaliser='softest': unknown. Use one of softmax, softmax1"):
        variants.build(llama(sinkscope_normaliser="softest"))
    with pytest.raises(ModelError, match=r"'softest': unknown"):
        variants.normalise(LOGITS, SEEN, "softest")
    with pytest.raises(ModelError, match=r"only for llama, this is gpt2"):
        variants.build(GPT2Config(n_layer=1, sinkscope_gate=True))
    with pytest.raises(ModelError, match=r"extra_key with normaliser 'relu'.*Use softmax"):
        variants.normalise(LOGITS, SEEN, "relu", LOGITS[..., :1])
    with pytest.raises(ModelError, match=r"no config.json and no model.safetensors there"):
        variants.load(tmp_path)
    variants.save(variants.build(llama()), tmp_path)
    llama(sinkscope_gate=True).save_pretrained(tmp_path)
    with pytest.raises(ModelError, match=r"weights do not fit config.json"):
        variants.load(tmp_path)
