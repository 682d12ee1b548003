from __future__ import annotations

import numpy as np
import pytest
import torch

import sinkscope as sk
from sinkscope.errors import EditError
from tests.edits.dense import Reference, assert_close, dense_hidden, edited_hidden, model_and_prompts

MODELS = ["llama", "gpt2", "gpt_oss", "gemma2", "bert", "vit"]


def check(name, edits, reference):
    model, prompts = model_and_prompts(name)
    batch = prompts.batch(range(len(prompts)))
    expected = dense_hidden(model, batch, reference(batch))
    assert_close(edited_hidden(model, prompts, edits), expected, batch)
    assert float((dense_hidden(model, batch, Reference()) - expected)[batch.real].abs().max()) > 1e-3


@pytest.mark.parametrize("name", MODELS)
def test_zero_ablation_and_gates(name):
    def reference(batch):
        def output(layer, out):
            out = out.clone()
            if layer == 1:
                out[:, [0, 2]] = 0
            out[:, 3] *= 0.5
            return out

        return Reference(output=output)

    check(name, [sk.AblateHeads([0, 2], layers=1), sk.GateHeads(0.5, heads=3)], reference)


@pytest.mark.parametrize("name", MODELS)
def test_mean_ablation_takes_the_mean_over_the_prompts_own_tokens(name):
    def reference(batch):
        def output(layer, out):
            out = out.clone()
            for i, real in enumerate(batch.real):
                out[i, 1] = out[i, 1, real].mean(0, keepdim=True)
            return out

        return Reference(output=output)

    check(name, [sk.AblateHeads([1], how="mean")], reference)


@pytest.mark.parametrize("name", MODELS)
def test_uniform_ablation_spreads_the_row_over_what_it_sees(name):
    def reference(batch):
        def weights(row):
            p = row.softmax()
            seen = row.visible.to(p.dtype)
            even = p.sum(-1, keepdim=True) * seen / seen.sum(-1, keepdim=True).clamp(min=1)
            p[:, [0, 1]] = even[:, [0, 1]]
            return p

        return Reference(weights)

    check(name, [sk.AblateHeads([0, 1], how="uniform")], reference)


def test_mean_ablation_by_a_reference_set():
    model, _prompts = model_and_prompts("llama")
    others = sk.Prompts.from_ids([[1, 5, 9, 12], [1, 8, 40]], model)
    means = sk.edits.mean_outputs(model, others)
    assert means.shape == (3, 4, 8)
    collected = {}

    def keep(layer, out):
        collected[layer] = out
        return out

    batch = others.batch(range(2))
    dense_hidden(model, batch, Reference(output=keep))
    by_hand = torch.stack([collected[n].transpose(1, 2)[batch.real].mean(0) for n in range(3)])
    np.testing.assert_allclose(means, by_hand, atol=1e-5)

    def reference(_):
        def output(layer, out):
            out = out.clone()
            out[:, 2] = by_hand[layer, 2]
            return out

        return Reference(output=output)

    check("llama", [sk.AblateHeads([2], how="mean", reference=means)], reference)
    edit = sk.AblateHeads([2], how="mean", reference=means)
    assert sk.edits.loads(sk.edits.dumps([edit])) == [edit]
    assert hash(edit) == hash(sk.AblateHeads([2], how="mean", reference=torch.from_numpy(means)))


def test_rows_may_be_chosen():
    def reference(batch):
        def output(layer, out):
            out = out.clone()
            out[:, 0, 4:6] *= -2
            return out

        return Reference(output=output)

    check("llama", [sk.GateHeads(-2.0, heads=0, queries=[4, 5])], reference)


def test_wrong_arguments_are_refused():
    with pytest.raises(EditError, match=r"how must be one of \['zero', 'mean', 'uniform'\]"):
        sk.AblateHeads([0], how="resample")
    with pytest.raises(EditError, match="a reference belongs to how='mean'"):
        sk.AblateHeads([0], reference=np.zeros((3, 4, 8)))
    with pytest.raises(EditError, match=r"its shape is \(4, 8\)\. Give \(layer, head, dim\)"):
        sk.AblateHeads([0], how="mean", reference=np.zeros((4, 8)))
    with pytest.raises(EditError, match="some numbers are NaN or infinite"):
        sk.AblateHeads([0], how="mean", reference=np.full((3, 4, 8), np.nan))
    with pytest.raises(EditError, match="not an array of numbers"):
        sk.AblateHeads([0], how="mean", reference="mean")
    model, prompts = model_and_prompts("llama")
    with pytest.raises(EditError, match=r"its shape is \(2, 4, 8\); this model has 3 layers of 4 heads with 8 dim"):
        sk.run(model, prompts, edits=[sk.AblateHeads([0], how="mean", reference=np.zeros((2, 4, 8)))])
    with pytest.raises(EditError, match=r"GateHeads\(scale=nan\): scale must be a finite number"):
        sk.GateHeads(float("nan"))
    with pytest.raises(EditError, match="heads"):
        sk.AblateHeads()
