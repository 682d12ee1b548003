"""Norms of values and keys, and what attention writes into the stream."""

from dataclasses import replace

import numpy as np
import oracle
import pytest
import torch

import sinkscope as sk
from sinkscope import testing
from sinkscope.errors import ProbeError
from sinkscope.roles import MEASURED_ROLES, ROLE_INDEX

IDS = [[1, 5, 6, 7, 8, 9], [1, 7, 8]]


@pytest.fixture
def model():
    return sk.load_model(testing.tiny("llama"))


def test_norms_have_one_row_per_key_value_head(model):
    prompts = sk.Prompts.from_ids(IDS, model)
    reading = sk.run(model, prompts, [sk.ValueNorm(), sk.KeyNorm(), sk.KeyMass()], batch_size=2)
    assert reading.value_norm.dims == ("prompt", "layer", "kv_head", "key")
    assert reading.sizes["kv_head"] == 2
    assert "kv_head" not in reading.coords
    assert reading.kv_of_head.values.tolist() == [0, 0, 1, 1]
    assert np.isnan(reading.value_norm[1, ..., 3:]).all()


def test_norms_alone_need_no_weights(model):
    prompts = sk.Prompts.from_ids(IDS[:1], model)
    assert sk.run(model, prompts, [sk.ValueNorm(), sk.KeyNorm()]).attrs["path"] == "fused"


def test_key_norm_is_read_after_the_rotary_positions_and_key_norms(model):
    """Rotation keeps a norm, a key norm of Qwen3 changes it."""
    qwen = sk.load_model(testing.tiny("qwen3"))
    prompts = sk.Prompts.from_ids(IDS, qwen)
    found = sk.run(qwen, prompts, [sk.KeyNorm()]).key_norm
    call = oracle.capture(qwen.model, input_ids=torch.tensor([IDS[0]])).calls[1]
    np.testing.assert_allclose(found[0, 1], call.key[0].norm(dim=-1), rtol=1e-5)


def test_contribution_is_what_each_role_writes(model):
    prompts = sk.Prompts.from_ids(IDS, model)
    found = sk.run(model, prompts, [sk.Contribution()], batch_size=2).contribution
    present = {"bos", "text"}
    for role in MEASURED_ROLES:
        assert (found.sel(role=role) > 0).all() == (role in present)
    total = found.sum("role")
    call = oracle.capture(model.model, input_ids=torch.tensor([IDS[0]])).calls[2]
    write = oracle.write_matrix(model.model, call.path, 4)
    each = torch.einsum("hqk,hkd,hde->hqke", call.weights[0], call.value[0].repeat_interleave(2, 0), write)
    np.testing.assert_allclose(total[0, 2], each.norm(dim=-1).sum(-1).mean(-1), rtol=1e-5)
    assert ROLE_INDEX["bos"] == MEASURED_ROLES.index("bos")


def test_contribution_per_token_of_named_queries(model):
    prompts = sk.Prompts.from_ids(IDS, model)
    probes = [sk.Contribution(per="token", queries="last"), sk.Contribution()]
    found = sk.run(model, prompts, probes, batch_size=2)
    call = oracle.capture(model.model, input_ids=torch.tensor([IDS[0]])).calls[2]
    write = oracle.write_matrix(model.model, call.path, 4)
    each = torch.einsum("hk,hkd,hde->hke", call.weights[0][:, -1], call.value[0].repeat_interleave(2, 0), write)
    length = len(IDS[0])
    np.testing.assert_allclose(found.token_contribution[0, 2, :, :length], each.norm(dim=-1), rtol=1e-5)
    per_token = sk.run(model, prompts, [sk.Contribution(per="token")], batch_size=2).token_contribution
    np.testing.assert_allclose(per_token.sum("key"), found.contribution.sum("role"), rtol=1e-5)
    assert per_token.isel(prompt=0, key=slice(length, None)).isnull().all()
    with pytest.raises(ProbeError, match=r"Contribution\(per='head'\): choose 'role' or 'token'"):
        sk.Contribution(per="head")


def test_contribution_follows_a_changed_output_projection(model):
    prompts = sk.Prompts.from_ids(IDS[:1], model)
    before = sk.run(model, prompts, [sk.Contribution()]).contribution
    with torch.no_grad():
        model.model.model.layers[2].self_attn.o_proj.weight.mul_(3)
    after = sk.run(model, prompts, [sk.Contribution()]).contribution
    np.testing.assert_allclose(after[:, 2], 3 * before[:, 2], rtol=1e-5)
    np.testing.assert_allclose(after[:, :2], before[:, :2], rtol=1e-6)


def test_contribution_needs_an_output_projection(model):
    tower = model.backend.towers["text"]
    without = [replace(site, output_path=None) for site in tower.attention[:2]]
    tower = replace(tower, attention=(*without, tower.attention[2]))
    message = r"Contribution\(\): no output projection W_O was found in layers \[0, 1\]\. Use ValueNorm\(\) instead\."
    with pytest.raises(ProbeError, match=message):
        sk.Contribution().check(tower)
    assert model.backend.write_factor(without[0]) is None
