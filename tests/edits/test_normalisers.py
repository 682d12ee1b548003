from __future__ import annotations

import numpy as np
import pytest
import torch

import sinkscope as sk
from sinkscope.attention.blockwise import attend
from sinkscope.attention.call import Call
from sinkscope.attention.call_edits import CallEdits
from sinkscope.attention.masks import from_call
from sinkscope.attention.primitives import Tally
from sinkscope.attention.view import Ask, Context, Wants
from sinkscope.errors import EditError
from tests.edits.dense import Reference, assert_close, dense_hidden, edited_hidden, model_and_prompts

MODELS = ["llama", "gpt2", "gpt_oss", "gemma2", "bert", "vit"]


def check(name, edits, weights):
    model, prompts = model_and_prompts(name)
    batch = prompts.batch(range(len(prompts)))
    reference = weights if isinstance(weights, Reference) else Reference(weights)
    expected = dense_hidden(model, batch, reference)
    assert_close(edited_hidden(model, prompts, edits), expected, batch)
    assert float((dense_hidden(model, batch, Reference()) - expected)[batch.real].abs().max()) > 1e-3


@pytest.mark.parametrize("name", MODELS)
def test_null_key(name):
    def weights(row):
        p = row.softmax()
        p[:, [0, 2]] = row.softmax(null=0.7)[:, [0, 2]]
        return p

    check(name, [sk.NullKey(0.7, heads=[0, 2])], weights)


def test_two_null_keys_add_up():
    both = np.logaddexp(0.7, -0.2)
    check("llama", [sk.NullKey(0.7), sk.NullKey(-0.2)], lambda row: row.softmax(null=both))


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("kind", ["sigmoid", "relu", "softmax1"])
def test_swapped_normalisers(name, kind):
    def weights(row):
        p = row.softmax()
        if row.layer != 1:
            return p
        if kind == "softmax1":
            new = row.softmax(null=0.0)
        elif kind == "sigmoid":
            new = torch.sigmoid(row.logits)
        else:
            new = row.logits.clamp(min=0).nan_to_num(0, 0, 0) / row.visible.sum(-1, keepdim=True).clamp(min=1)
        p[:, [1, 2]] = new[:, [1, 2]]
        return p

    check(name, [sk.SwapNormaliser(kind, layers=1, heads=[1, 2])], weights)


def test_a_later_swap_wins():
    model, prompts = model_and_prompts("llama")
    twice = edited_hidden(model, prompts, [sk.SwapNormaliser("relu"), sk.SwapNormaliser("sigmoid")])
    torch.testing.assert_close(twice, edited_hidden(model, prompts, [sk.SwapNormaliser("sigmoid")]), rtol=0, atol=0)


def test_softmax1_is_a_null_key_of_logit_zero():
    model, prompts = model_and_prompts("gpt2")
    swapped = edited_hidden(model, prompts, [sk.SwapNormaliser("softmax1")])
    torch.testing.assert_close(swapped, edited_hidden(model, prompts, [sk.NullKey(0.0)]))


@pytest.mark.parametrize("name", ["llama", "gpt2", "bert", "vit", "gpt_oss"])
def test_explicit_key_and_value(name):
    generator = torch.Generator().manual_seed(3)
    key, value = torch.randn(4, 8, generator=generator), torch.randn(4, 8, generator=generator)
    query_of = {}

    # The reference adds a key by hand: it needs the query, so it runs as a dense module of its own.
    from tests.edits import dense

    original = dense.attention

    def attention(module, query, k, v, attention_mask=None, scaling=None, **kwargs):
        query_of["now"] = query * (scaling if scaling is not None else query.shape[-1] ** -0.5)
        return original(module, query, k, v, attention_mask, scaling, **kwargs)

    def weights(row):
        extra = torch.einsum("bhqd,hd->bhq", query_of["now"], key.double())[..., None]
        columns = [row.logits, extra] + ([] if row.sink is None else [row.sink.expand(*row.logits.shape[:3], 1)])
        p = torch.softmax(torch.cat(columns, -1), -1).nan_to_num(0)
        query_of["share"] = p[..., row.logits.shape[-1], None]
        return p[..., : row.logits.shape[-1]]

    def output(layer, out):
        return out + query_of["share"] * value.double()[None, :, None]

    from transformers.modeling_utils import AttentionInterface

    AttentionInterface.register(dense.NAME, attention)
    try:
        check(name, [sk.edits.KeyValueBias(key, value=value)], Reference(weights, output=output))
    finally:
        AttentionInterface.register(dense.NAME, original)


def one_row(logits, edits: CallEdits | None = None, normaliser="softmax"):
    """Weights of one query with the given logits: head width = number of keys, the query picks the columns."""
    n = len(logits)
    query = torch.tensor(logits, dtype=torch.float32).view(1, 1, 1, n)
    eye = torch.eye(n).view(1, 1, n, n)
    mask, _ = from_call(None, query, eye, False)
    context = Context(torch.ones(1, n).bool(), torch.zeros(1, n).long(), (0,))
    call, asked = Call(query, eye, eye, mask, 1.0, normaliser=normaliser), Wants(Ask("map", {"heads": (0,)}))
    out, stats = attend(call, asked, context, edits)
    torch.testing.assert_close(out[0, 0, 0], stats["map"][0, 0, 0])
    return stats["map"][0, 0, 0].numpy()


def test_vector_of_the_sheet():
    logits = [2.0, 0.0, -1.0, 1.0]
    np.testing.assert_allclose(one_row(logits), [0.643914, 0.087144, 0.032059, 0.236883], atol=1e-6)
    every = torch.ones(1).bool()
    off_by_one = [0.592299, 0.080159, 0.029489, 0.217895]
    swapped = CallEdits()
    swapped.swap("softmax1", every, Tally())
    np.testing.assert_allclose(one_row(logits, swapped), off_by_one, atol=1e-6)
    np.testing.assert_allclose(one_row(logits, CallEdits(null_logits=torch.zeros(1))), off_by_one, atol=1e-6)
    learned = [0.520594, 0.070455, 0.025919, 0.191516]
    np.testing.assert_allclose(one_row(logits, CallEdits(null_logits=torch.ones(1))), learned, atol=1e-6)
    sigmoid = CallEdits()
    sigmoid.swap("sigmoid", every, Tally())
    np.testing.assert_allclose(one_row(logits, sigmoid), 1 / (1 + np.exp(-np.array(logits))), atol=1e-6)


def test_wrong_arguments_are_refused():
    with pytest.raises(EditError, match=r"kind must be one of \['sigmoid', 'relu', 'softmax1', 'sigmoid_n"):
        sk.SwapNormaliser("softmax")
    with pytest.raises(EditError, match=r"NullKey\(logit=inf\): logit must be a finite number"):
        sk.NullKey(float("inf"))
    with pytest.raises(EditError, match=r"NullKey\(queries='last'\): the normaliser is changed for every query"):
        sk.NullKey(0.0, queries="last")
    with pytest.raises(EditError, match=r"its shape is \(1, 1, 1, 1\)\. Give \(dim\), \(head, dim\)"):
        sk.edits.KeyValueBias(np.zeros((1, 1, 1, 1)), value=np.zeros(8))
    model, prompts = model_and_prompts("llama")
    with pytest.raises(EditError, match=r"KeyValueBias\(value=\.\.\.\): its shape is \(4,\); layer 0 needs \(8\)"):
        sk.run(model, prompts, edits=[sk.edits.KeyValueBias(np.zeros(8), value=np.zeros(4))])
