from __future__ import annotations

import copy

import numpy as np
import pytest
import torch

import sinkscope as sk
from sinkscope.errors import EditError
from tests.edits.dense import Reference, assert_close, dense_hidden, edited_hidden, model_and_prompts

BLOCKS = {"llama": "model.layers", "gpt2": "transformer.h", "bert": "bert.encoder.layer", "vit": "encoder.layer"}


def with_output_of_block_0(name, change):
    """A copy of the model whose first block's output is changed in place, and the prompts."""
    model, prompts = model_and_prompts(name)
    twin = copy.deepcopy(model)
    path = next(p for p, m in twin.model.named_modules() if isinstance(m, torch.nn.ModuleList))

    def hook(_module, _args, out):
        hidden = out[0] if isinstance(out, tuple) else out
        change(hidden)
        return out

    twin.model.get_submodule(path)[0].register_forward_hook(hook)
    return model, twin, prompts


@pytest.mark.parametrize("name", ["llama", "gpt2", "gpt_oss", "gemma2", "bert", "vit"])
def test_activations_are_set_where_the_site_says(name):
    def change(hidden):
        hidden[:, 0, 4] = -7.0
        hidden[:, 0, 9] = 2.5

    model, twin, prompts = with_output_of_block_0(name, change)
    batch = prompts.batch(range(len(prompts)))
    expected = dense_hidden(twin, batch, Reference())
    found = edited_hidden(model, prompts, [sk.SetActivations("0.post", dims=[9, 4], value=[2.5, -7.0])])
    assert_close(found, expected, batch)
    assert float((expected - dense_hidden(model, batch, Reference()))[batch.real].abs().max()) > 1e-3


def test_mean_is_that_of_the_prompts_own_tokens():
    model, prompts = model_and_prompts("llama")
    batch = prompts.batch(range(2))

    def change(hidden):
        for i, real in enumerate(batch.real):
            hidden[i, real.nonzero()[:, 0], 3] = hidden[i, real, 3].mean()

    model, twin, prompts = with_output_of_block_0("llama", change)
    expected = dense_hidden(twin, batch, Reference())
    found = edited_hidden(model, prompts, [sk.SetActivations("0.post", dims=3, value="mean", keys="all")])
    assert_close(found, expected, batch)


def test_mean_activations_of_a_reference_set():
    model, prompts = model_and_prompts("llama")
    reading = sk.run(model, prompts, [sk.MassiveActivations(top=32)], batch_size=2)
    means = sk.edits.mean_activations(model, prompts, "1.post", [7, 2], keys=[0])
    site = reading.sel(site="1.post")
    del site
    kept = []

    def keep(hidden):
        kept.append(hidden[:, 0, [7, 2]])

    from sinkscope.models.backends.base import Instruments

    tower = model.backend.towers["text"]
    batch = prompts.batch(range(2))
    with torch.no_grad():
        model.backend.forward(batch.inputs, tower, Instruments(residual={"1.post": [keep]}))
    np.testing.assert_allclose(means, kept[0].mean(0), rtol=1e-5)


def test_edits_at_one_site_act_in_list_order_and_probes_see_them():
    model, prompts = model_and_prompts("llama")
    first, second = (sk.SetActivations("1.post", dims=2, value=v) for v in (1.0, 9.0))
    reading = sk.run(model, prompts, [sk.SinkDims([2]), sk.ResidualNorm()], [first, second])
    phi = float(reading.phi.sel(site="1.post")[0, 0])
    norm = float(reading.residual_norm.sel(site="1.post")[0, 0])
    assert phi == pytest.approx(9.0 / np.sqrt(norm**2 / 32 + 1e-6), rel=1e-5)


def test_wrong_arguments_are_refused():
    with pytest.raises(EditError, match=r"SetActivations\(site=3\): a site is a name such as '1\.post'"):
        sk.SetActivations(3, dims=0)
    with pytest.raises(EditError, match=r"value must be one of \['mean'\]"):
        sk.SetActivations("0.post", dims=0, value="median")
    with pytest.raises(EditError, match=r"value must be a finite number\. Or one number per dimension, or 'mean'"):
        sk.SetActivations("0.post", dims=0, value=float("nan"))
    with pytest.raises(EditError, match=r"2 dims \(2 different\) but 3 values"):
        sk.SetActivations("0.post", dims=[0, 1], value=[1, 2, 3])
    with pytest.raises(EditError, match=r"2 dims \(1 different\) but 2 values"):
        sk.SetActivations("0.post", dims=[1, 1], value=[1, 2])
    for large in (float("inf"), 1e300):
        with pytest.raises(EditError, match="value must hold numbers that are finite in float32"):
            sk.SetActivations("0.post", dims=[0, 1], value=[1, large])
    model, prompts = model_and_prompts("llama")
    with pytest.raises(
        EditError, match=r"SetActivations\(site='9\.post'\): there is no such residual site\. Sites are \['"
    ):
        sk.run(model, prompts, edits=[sk.SetActivations("9.post", dims=0)])
    with pytest.raises(EditError, match=r"the residual stream has dimensions 0\.\.31, not 32"):
        sk.run(model, prompts, edits=[sk.SetActivations("0.post", dims=[0, 32])])
