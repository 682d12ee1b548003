"""Every streaming statistic equals the same statistic of the dense map, on every architecture that is read."""

import numpy as np
import oracle
import pytest
import torch

import sinkscope as sk
from parity.common import (
    DECODERS,
    DUAL,
    ENCODERS,
    MULTIMODAL,
    SEAM,
    TOLERANCE,
    VISION,
    assert_close,
    id_lists,
    model,
    network,
)
from sinkscope import testing
from sinkscope.probes import LogSumExp, RowSum
from sinkscope.roles import MEASURED_ROLES, ROLE_INDEX

KINDS = len(MEASURED_ROLES)
PROBES = [
    sk.KeyMass(), sk.RoleShare(queries="all"), sk.Entropy(), sk.MaxAttention(keys="all", queries="all"), RowSum(),
    LogSumExp(), sk.ValueNorm(), sk.KeyNorm(), sk.Contribution(), sk.ResidualNorm(), sk.MassiveActivations(top=5),
]  # fmt: skip


def prompts_of(name):
    """Prompts, and the model inputs of each as one unpadded batch (or all of them as one, with the row to take)."""
    if name in DECODERS + ENCODERS:
        lists = id_lists(name)
        return sk.Prompts.from_ids(lists, model(name)), [({"input_ids": torch.tensor([one])}, 0) for one in lists]
    given = testing.inputs(network(name))
    if name in VISION:
        images = list(given["pixel_values"])
        return sk.Prompts.from_images(images, model(name)), [({"pixel_values": one[None]}, 0) for one in images]
    return sk.Prompts.from_inputs(given, model(name)), [(given, row) for row in range(2)]


def calls_of(captured, name):
    """Attention calls of the tower that is read."""
    inside = name in VISION
    return [c for c in captured.calls if inside or not any(part in c.path for part in ("vision", "visual"))]


def wanted_at(call, row, roles, write):
    """Every statistic of one prompt and layer, by definition."""
    weights, visible = call.weights[row], call.visible[row]
    return {
        "key_mass": oracle.key_mass(weights, visible),
        "role_share": oracle.role_share(weights, roles, KINDS).mean(1),
        "entropy": oracle.entropy(weights),
        "max_attention": oracle.largest(weights, np.ones(len(roles), dtype=bool)),
        "row_sum": oracle.row_sum(weights),
        "log_sum_exp": call.log_sum_exp[row],
        "value_norm": call.value[row].norm(dim=-1),
        "key_norm": call.key[row].norm(dim=-1),
        "contribution": oracle.contribution(weights, call.value[row], write, roles, KINDS),
    }


@pytest.mark.parametrize("name", SEAM)
@pytest.mark.parametrize("batch_size", [1, 3])
def test_statistics_equal_those_of_the_dense_map(name, batch_size):
    prompts, given = prompts_of(name)
    reading = sk.run(model(name), prompts, PROBES, batch_size=batch_size)
    tower = model(name).backend.towers[model(name).backend.default_tower]
    for index, (inputs, row) in enumerate(given):
        captured = oracle.capture(network(name), **inputs)
        calls = calls_of(captured, name)
        assert len(calls) == reading.sizes["layer"] == 3
        length = prompts.lengths[index]
        for layer, call in enumerate(calls):
            assert call.path == tower.attention[layer].path
            write = oracle.write_matrix(network(name), call.path, call.weights.shape[1])
            wanted = wanted_at(call, row, prompts.roles[index], write)
            for variable, expected in wanted.items():
                found = reading[variable].isel(prompt=index, layer=layer)
                if "key" in found.dims or "query" in found.dims:
                    assert np.isnan(found[..., length:]).all()
                    found = found[..., :length]
                assert_close(found, expected, f"{name} {variable} prompt {index} layer {layer}")


@pytest.mark.parametrize("name", SEAM)
def test_residual_statistics_equal_those_of_the_blocks(name):
    prompts, given = prompts_of(name)
    reading = sk.run(model(name), prompts, [sk.ResidualNorm(), sk.MassiveActivations(top=5), sk.SinkDims(dims=(3, 7))])
    for index, (inputs, row) in enumerate(given):
        captured = oracle.capture(network(name), **inputs)
        blocks = [captured.blocks[oracle.block_of(call.path)] for call in calls_of(captured, name)]
        stream = {"embed": blocks[0][0][row]}
        for layer, (_, after) in enumerate(blocks):
            stream[f"{layer}.post"] = blocks[layer + 1][0][row] if layer + 1 < len(blocks) else after[row]
        length = prompts.lengths[index]
        for site, states in stream.items():
            at = reading.isel(prompt=index).sel(site=site)
            assert_close(at["residual_norm"][:length], states.double().norm(dim=-1), f"{name} {site}")
            assert_close(at["phi"][:length], oracle.phi(states, (3, 7)), f"{name} {site}")
            value, _, _, median = oracle.massive(states, 5)
            assert_close(np.abs(at["top_value"]), np.abs(value), f"{name} {site}")
            place = at["top_position"].values.astype(int), at["top_dim"].values.astype(int)
            assert len(set(zip(*place, strict=True))) == 5  # equal magnitudes may come in any order, but never twice
            assert_close(at["top_value"], states[place], f"{name} {site}")
            assert float(at["median_abs"]) == pytest.approx(median, rel=1e-5)


def branch_of(name, block):
    """The module whose output attention adds to the stream (BERT's gives the stream itself)."""
    if name in ENCODERS:
        return f"{block}.attention.output"
    if name in ("gemma2", "gemma3_text", "gemma3"):
        return f"{block}.post_attention_layernorm"
    return f"{block}.layer_scale1" if name.startswith("dino") else None


@pytest.mark.parametrize("name", [n for n in SEAM if n != "gpt_neox"])
def test_mid_is_the_stream_after_attention(name):
    prompts, given = prompts_of(name)
    reading = sk.run(model(name), prompts, [sk.ResidualNorm()])
    found = []

    def keep(_module, _args, output):
        found.append(output[0] if isinstance(output, tuple) else output)

    for index, (inputs, row) in enumerate(given):
        captured = oracle.capture(network(name), **inputs)
        calls = calls_of(captured, name)
        for layer, call in enumerate(calls):
            block = oracle.block_of(call.path)
            path = branch_of(name, block) or call.path
            handle = network(name).get_submodule(path).register_forward_hook(keep)
            with torch.no_grad():
                network(name)(**inputs)
            handle.remove()
            branch = found.pop()
            states = branch if name in ENCODERS else captured.blocks[block][0] + branch
            wanted = states[row].double().norm(dim=-1)
            at = reading["residual_norm"].isel(prompt=index).sel(site=f"{layer}.mid")
            assert_close(at[: prompts.lengths[index]], wanted, f"{name} {layer}.mid")


def test_parallel_blocks_have_no_mid_site():
    tower = model("gpt_neox").backend.towers["text"]
    assert tower.site_names == ("embed", "0.post", "1.post", "2.post")


@pytest.mark.parametrize("name", [*DECODERS, *ENCODERS, *VISION])
def test_the_oracle_equals_the_maps_of_the_library(name):
    """The oracle's own weights are the eager maps of transformers, so agreeing with it is agreeing with the library."""
    inputs = testing.inputs(network(name))
    calls = oracle.capture(network(name), **inputs).calls
    with oracle.implementation(network(name), "eager"), torch.no_grad():
        maps = network(name)(**inputs, output_attentions=True).attentions
    assert len(maps) == len(calls) == 3
    for layer, (one, call) in enumerate(zip(maps, calls, strict=True)):
        assert_close(one, call.weights, f"{name} {layer}", TOLERANCE / 2)


def test_roles_differ_enough_to_be_told_apart():
    """The role columns of the comparison are not all one role."""
    seen = {role for name in (DECODERS[0], *MULTIMODAL[:1], *DUAL[:1]) for r in prompts_of(name)[0].roles for role in r}
    assert {ROLE_INDEX["bos"], ROLE_INDEX["text"], ROLE_INDEX["image"]} <= seen
