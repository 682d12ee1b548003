from __future__ import annotations

import numpy as np
import pytest
import torch

import sinkscope as sk
from sinkscope.engine.plan import Plan
from sinkscope.models.backends.base import Instruments
from sinkscope.models.handle import load_model
from sinkscope.testing import inputs, tiny
from tests.edits.dense import Reference, assert_close, dense_hidden, edited_hidden, model_and_prompts


def renormalised(p, before, gamma, keys, extra=0.0):
    q = p.clone()
    q[..., keys] = q[..., keys] * gamma
    total = q.sum(-1, keepdim=True) + extra
    return q * torch.where(total > 0, (before + extra) / total.clamp(min=1e-300), 1.0)


@pytest.mark.parametrize("name", ["llama", "bert", "gemma2"])
def test_a_log_bias_after_a_weight_edit_acts_on_the_edited_weights(name):
    model, prompts = model_and_prompts(name)
    batch = prompts.batch(range(2))

    def weights(row):
        real = batch.real[:, None, :, None]
        p = row.softmax()
        dropped = p.clone()
        dropped[..., 2] = 0
        p = torch.where(real, dropped, p)
        scaled = renormalised(p, p.sum(-1, keepdim=True), 0.2, [0])
        return torch.where(real, scaled, p)

    expected = dense_hidden(model, batch, Reference(weights))
    found = edited_hidden(model, prompts, [sk.DropKeys([2]), sk.ScaleKeys(0.2)])
    assert_close(found, expected, batch)
    other = edited_hidden(model, prompts, [sk.ScaleKeys(0.2), sk.DropKeys([2])])
    assert float((found - other)[batch.real].abs().max()) > 1e-3


def test_after_a_weight_edit_the_learned_sink_is_still_part_of_the_row():
    model, prompts = model_and_prompts("gpt_oss")
    batch = prompts.batch(range(2))

    def weights(row):
        real = batch.real[:, None, :, None]
        p = row.softmax()
        rest = 1 - p.sum(-1, keepdim=True)
        dropped = p.clone()
        dropped[..., 2] = 0
        scaled = renormalised(dropped, dropped.sum(-1, keepdim=True), 0.2, [0], rest)
        return torch.where(real, scaled, p)

    expected = dense_hidden(model, batch, Reference(weights))
    assert_close(edited_hidden(model, prompts, [sk.DropKeys([2]), sk.ScaleKeys(0.2)]), expected, batch)


def test_masking_after_a_weight_edit_spares_rows_left_with_nothing():
    model, prompts = model_and_prompts("llama", lengths=(6,))
    reading = sk.run(
        model, prompts, [sk.KeyMass(), sk.RowSum()], [sk.AblateHeads([1], how="uniform"), sk.MaskKeys("first", heads=1)]
    )
    sums = reading.row_sum.sel(head=1)
    np.testing.assert_allclose(sums, 1.0, atol=1e-6)
    np.testing.assert_allclose(reading.key_mass.sel(head=1)[..., 0], 1 / 6, atol=1e-6)
    # Key 1 gets 1, 1/2, 1/3, 1/4, 1/5 from rows 1..5.
    np.testing.assert_allclose(reading.key_mass.sel(head=1)[..., 1], np.mean([1 / i for i in range(1, 6)]), atol=1e-6)


def test_masks_one_after_the_other_spare_the_row_that_would_see_nothing():
    model, prompts = model_and_prompts("llama", lengths=(6,))
    both = sk.run(model, prompts, [sk.KeyMass()], [sk.MaskKeys([0]), sk.MaskKeys([1])])
    # Row 1 lost key 0 to the first edit, so the second one leaves it its own key.
    np.testing.assert_allclose(both.key_mass[..., 1], 1 / 5, atol=1e-6)
    at_once = sk.run(model, prompts, [sk.KeyMass()], [sk.MaskKeys([0, 1])])
    assert float(at_once.key_mass[0, 0, 0, 1]) < 1 / 5 - 1e-3


@pytest.mark.parametrize("name", ["llama", "gpt2", "gpt_oss", "gemma2", "bert"])
def test_padding_changes_nothing(name):
    model, prompts = model_and_prompts(name, lengths=(7, 12))
    edits = [
        sk.ScaleKeys(0.3), sk.CalibrateSinks(0.15), sk.DropKeys([2]), sk.AblateHeads([0], how="mean"), sk.NullKey(0.5),
        sk.SetActivations("0.post", dims=[1], value="mean", keys="all"),
    ]  # fmt: skip
    together = edited_hidden(model, prompts, edits)
    for row in range(2):
        alone = edited_hidden(model, prompts.subset([row]), edits)
        torch.testing.assert_close(together[row, : alone.shape[1]], alone[0], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(("name", "lengths"), [("llama", (9,)), ("llama", (7, 9)), ("gpt_oss", (9,)), ("gemma2", (9,))])
def test_gradient_with_respect_to_log_gamma_of_every_head(name, lengths):
    model, prompts = model_and_prompts(name, lengths)
    tower = model.backend.towers["text"]
    batch = prompts.batch(range(len(prompts)))
    edits = [sk.ScaleKeys(1.0)]

    def measure(log_gamma):
        plan = Plan(edits, tower, prompts, batch, values={0: log_gamma})
        out = model.backend.forward(batch.inputs, tower, Instruments(edits=plan.call_edits))
        return out.hidden[batch.real].double().square().mean()

    log_gamma = torch.zeros(3, 4, requires_grad=True)
    (gradient,) = torch.autograd.grad(measure(log_gamma), log_gamma)
    assert gradient.abs().min() > 0
    with torch.no_grad():
        for layer, head in [(0, 1), (1, 3), (2, 0)]:
            step = torch.zeros(3, 4)
            step[layer, head] = 5e-3
            slope = float(measure(step) - measure(-step)) / 1e-2
            assert float(gradient[layer, head]) == pytest.approx(slope, rel=2e-2, abs=1e-4)


def test_a_gradient_also_reaches_the_weights_under_other_edits():
    model, prompts = model_and_prompts("llama", lengths=(9,))
    tower = model.backend.towers["text"]
    batch = prompts.batch([0])
    edits = [sk.DropKeys([1]), sk.ScaleKeys(0.5), sk.CalibrateSinks(0.2), sk.MaskKeys([3])]
    plan = Plan(edits, tower, prompts, batch)
    weight = model.model.model.layers[0].self_attn.q_proj.weight
    weight.requires_grad_(True)
    out = model.backend.forward(batch.inputs, tower, Instruments(edits=plan.call_edits)).hidden.square().mean()
    (gradient,) = torch.autograd.grad(out, weight)
    index = gradient.abs().argmax()
    with torch.no_grad():
        values = []
        for step in (1e-3, -1e-3):
            weight.view(-1)[index] += step
            plan = Plan(edits, tower, prompts, batch)
            hidden = model.backend.forward(batch.inputs, tower, Instruments(edits=plan.call_edits)).hidden
            values.append(float(hidden.double().square().mean()))
            weight.view(-1)[index] -= step
    assert float(gradient.view(-1)[index]) == pytest.approx((values[0] - values[1]) / 2e-3, rel=2e-2)


def test_calls_that_no_edit_names_are_left_to_the_plain_kernel():
    model, prompts = model_and_prompts("llama", lengths=(9,))
    for edit, path in [
        (sk.DropKeys([0], layers=1), "merged"),
        (sk.AblateHeads([0], how="uniform", layers=1), "blockwise"),
    ]:
        reading = sk.run(model, prompts, [sk.Logits()], [edit])
        assert set(reading.attrs["path"].split(",")) == {path, "fused"}


@pytest.mark.parametrize("name", ["llava", "qwen2_vl", "qwen2_5_vl"])
def test_the_vision_tower_inside_a_larger_model_is_edited(name):
    model = load_model(tiny(name))
    prompts = sk.Prompts.from_inputs(inputs(model.model), model)
    probes = [sk.KeyMass(), sk.RowSum()]
    plain = sk.run(model, prompts, probes, tower="vision")
    masked = sk.run(model, prompts, probes, [sk.MaskKeys([3], layers=1)], tower="vision")
    np.testing.assert_array_equal(masked.key_mass.sel(layer=1)[..., 3], 0)
    np.testing.assert_array_equal(masked.key_mass.sel(layer=0), plain.key_mass.sel(layer=0))
    threshold = float(plain.key_mass.sel(layer=0).quantile(0.95))
    damped = sk.run(model, prompts, probes, [sk.CalibrateSinks(threshold, beta=0.0, layers=0)], tower="vision")
    found = (plain.key_mass.sel(layer=0) > threshold).values
    found[..., 0] = False
    assert found.any()
    np.testing.assert_allclose(damped.key_mass.sel(layer=0).values[found], 0, atol=1e-6)
    np.testing.assert_allclose(damped.row_sum.sel(layer=0), 1, atol=1e-5)
