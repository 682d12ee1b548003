"""VLMs on real images: logits and every statistic equal the dense maps, one or two images a prompt."""

from functools import cache

import numpy as np
import oracle
import pytest
import torch
from vlm_models import FAMILIES, image, vlm

import sinkscope as sk
from parity.common import assert_close
from sinkscope import generate
from sinkscope.probes import LogSumExp, RowSum
from sinkscope.roles import MEASURED_ROLES, ROLE_INDEX

KINDS = len(MEASURED_ROLES)
PROBES = [
    sk.KeyMass(), sk.RoleShare(queries="after_image"), sk.Entropy(), sk.MaxAttention(keys="image", queries="all"),
    RowSum(), LogSumExp(), sk.ValueNorm(), sk.KeyNorm(), sk.Contribution(), sk.ResidualNorm(), sk.SinkDims(dims=(3, 7)),
    sk.Logits("all"),
]  # fmt: skip


@cache
def model_of(family):
    made = vlm(family)
    return sk.load_model(made.model, processor=made.processor)


@cache
def prompts_of(family):
    items = [
        {"image": image(60, 28), "text": "What color?"},
        {"image": [image(24, 40), image(32, 32)], "text": "the cat"},
    ]
    return sk.Prompts.from_chat(items, model_of(family))


def text_calls(captured):
    return [c for c in captured.calls if not any(part in c.path for part in ("vision", "visual"))]


def wanted_at(call, roles, write):
    """Every statistic of one unpadded prompt and layer, by definition."""
    weights, visible = call.weights[0], call.visible[0]
    image_keys = roles == ROLE_INDEX["image"]
    after = np.arange(len(roles)) > np.flatnonzero(image_keys)[-1]
    return {
        "key_mass": oracle.key_mass(weights, visible),
        "role_share": oracle.role_share(weights, roles, KINDS)[:, after].mean(1),
        "entropy": oracle.entropy(weights),
        "max_attention": oracle.largest(weights, image_keys),
        "row_sum": oracle.row_sum(weights),
        "log_sum_exp": call.log_sum_exp[0],
        "value_norm": call.value[0].norm(dim=-1),
        "key_norm": call.key[0].norm(dim=-1),
        "contribution": oracle.contribution(weights, call.value[0], write, roles, KINDS),
    }


@pytest.mark.parametrize("family", FAMILIES)
def test_logits_and_statistics_equal_the_dense_maps(family):
    model, prompts = model_of(family), prompts_of(family)
    together = sk.run(model, prompts, PROBES, batch_size=2)
    assert prompts.lengths[0] != prompts.lengths[1]
    for index in range(len(prompts)):
        inputs = prompts.batch([index]).inputs
        with oracle.implementation(model.model, "eager"), torch.no_grad():
            eager = model.model(**inputs).logits[0]
        captured = oracle.capture(model.model, **inputs)
        calls, length, roles = text_calls(captured), prompts.lengths[index], prompts.roles[index]
        found = together.isel(prompt=index)
        assert_close(found["logits"][:length], eager, f"{family} logits {index}")
        assert np.isnan(found["logits"][length:]).all()
        assert len(calls) == found.sizes["layer"] == 3
        for layer, call in enumerate(calls):
            write = oracle.write_matrix(model.model, call.path, call.weights.shape[1])
            for name, expected in wanted_at(call, roles, write).items():
                array = found[name].isel(layer=layer)
                array = array[..., :length] if {"key", "query"} & set(array.dims) else array
                assert_close(array, expected, f"{family} {name} prompt {index} layer {layer}")
            states = captured.blocks[oracle.block_of(call.path)][0][0]
            at = found.sel(site="embed" if layer == 0 else f"{layer - 1}.post")
            assert_close(at["residual_norm"][:length], states.double().norm(dim=-1), f"{family} norm {layer}")
            assert_close(at["phi"][:length], oracle.phi(states, (3, 7)), f"{family} phi {layer}")


@pytest.mark.parametrize("family", FAMILIES)
def test_generation_under_an_edit_equals_recomputation(family):
    model, prompts = model_of(family), prompts_of(family)
    keys = [int(np.flatnonzero(prompts.roles[0] == ROLE_INDEX["image"])[1]), 0]
    edits = [sk.ScaleKeys(0.05, keys=keys, queries=["all"]), sk.GateHeads(1.7, heads={1: [0, 2]})]
    longer = generate(model, prompts, edits, max_new_tokens=3, eos_token_id=-1)
    assert longer.lengths == tuple(n + 3 for n in prompts.lengths)
    again = sk.run(model, longer, [sk.Logits("all")], edits)["logits"]
    for row, start in enumerate(prompts.lengths):
        chosen = again.isel(prompt=row)[start - 1 : start + 2].argmax("vocab").values
        assert chosen.tolist() == longer.ids[row][start:].tolist()
