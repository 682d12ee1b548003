"""Probes of attention weights, on small models and against maps."""

import numpy as np
import oracle
import pytest
import torch
import xarray as xr

import sinkscope as sk
from sinkscope import testing
from sinkscope.errors import ProbeError
from sinkscope.probes import LogSumExp, RowSum
from sinkscope.roles import MEASURED_ROLES, ROLE_INDEX

IDS = [[1, 5, 6, 7, 8, 9], [1, 7, 8], [1, 11, 12, 13, 14]]


@pytest.fixture(scope="module")
def model():
    return sk.load_model(testing.tiny("llama"))


@pytest.fixture(scope="module")
def prompts(model):
    return sk.Prompts.from_ids(IDS, model)


@pytest.fixture(scope="module")
def maps(model):
    """(layer, head, query, key) of each prompt, by the oracle."""
    return [
        torch.stack([c.weights[0] for c in oracle.capture(model.model, input_ids=torch.tensor([one])).calls])
        for one in IDS
    ]


def test_key_mass_of_a_few_keys_is_that_of_all_and_nan_elsewhere(model, prompts):
    whole = sk.run(model, prompts, [sk.KeyMass()])
    first = sk.run(model, prompts, [sk.KeyMass(keys="first")])
    np.testing.assert_allclose(first.key_mass[..., 0], whole.key_mass[..., 0], atol=1e-5)
    assert np.isnan(first.key_mass[..., 1:]).all()
    assert (whole.attrs["path"], first.attrs["path"]) == ("blockwise", "fused")


def test_the_last_key_is_seen_by_its_own_row_alone(model, prompts, maps):
    mass = sk.run(model, prompts, [sk.KeyMass()]).key_mass
    for i, one in enumerate(maps):
        last = one.shape[-1] - 1
        np.testing.assert_allclose(mass[i, ..., last], one[..., last, last], atol=1e-5)
        np.testing.assert_allclose(mass[i, ..., 0], one[..., :, 0].mean(-1), atol=1e-5)


@pytest.mark.parametrize(
    ("queries", "rows"),
    [
        ("all", [range(6), range(3), range(5)]),
        ("text", [range(1, 6), range(1, 3), range(1, 5)]),
        ("first", [[0], [0], [0]]),
        ("last", [[5], [2], [4]]),
        (["bos", "text"], [range(6), range(3), range(5)]),
        ([1, -1], [[1, 5], [1, 2], [1, 4]]),
        (2, [[2], [2], [2]]),
        ("image", [[], [], []]),
    ],
)
def test_role_shares_average_the_named_queries(model, prompts, maps, queries, rows):
    reading = sk.run(model, prompts, [sk.RoleShare(queries=queries)], batch_size=2)
    assert reading.role.values.tolist() == list(MEASURED_ROLES)
    for i, (one, chosen) in enumerate(zip(maps, rows, strict=True)):
        if not list(chosen):
            assert np.isnan(reading.role_share[i]).all()
            continue
        shares = torch.stack([oracle.role_share(w, prompts.roles[i], len(MEASURED_ROLES)) for w in one])
        np.testing.assert_allclose(reading.role_share[i], shares[:, :, list(chosen)].mean(2), atol=1e-5)


def test_shares_over_roles_sum_to_the_row_sum():
    model = sk.load_model(testing.tiny("gpt_oss"))
    prompts = sk.Prompts.from_ids(IDS, model)
    reading = sk.run(model, prompts, [sk.RoleShare(queries="all"), RowSum()], batch_size=3)
    mean = reading.row_sum.mean("query")
    np.testing.assert_allclose(reading.role_share.sum("role"), mean, atol=1e-5)
    assert (mean < 0.99).any()


def test_entropy_of_row_zero_is_zero_and_of_padding_is_nan(model, prompts):
    entropy = sk.run(model, prompts, [sk.Entropy()], batch_size=3).entropy
    assert (entropy[..., 0] == 0).all()
    assert np.isfinite(entropy).sum(("layer", "head", "query")).values.tolist() == [12 * 6, 12 * 3, 12 * 5]
    assert (entropy.fillna(0) <= np.log(6)).all()


def test_log_sum_exp_gives_the_weight_of_any_key(model, prompts):
    reading = sk.run(model, prompts, [LogSumExp()])
    captured = oracle.capture(model.model, input_ids=torch.tensor([IDS[0]])).calls
    for layer, call in enumerate(captured):
        weight = (call.logits[0, :, -1, 0] - torch.from_numpy(reading.log_sum_exp[0, layer, :, 5].values)).exp()
        torch.testing.assert_close(weight.double(), call.weights[0, :, -1, 0], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("batch_size", [1, 3])
def test_max_attention_is_nan_where_nothing_was_asked(model, prompts, maps, batch_size):
    probe = sk.MaxAttention(keys=[0, 2], queries="text")
    found = sk.run(model, prompts, [probe], batch_size=batch_size).max_attention
    for i, one in enumerate(maps):
        length = one.shape[-1]
        assert np.isnan(found[i, ..., 0]).all()  # the first token is no text
        assert np.isnan(found[i, ..., length:]).all()
        np.testing.assert_allclose(found[i, ..., 1:length], one[..., 1:, [0, 2]].amax(-1), atol=1e-5)


def test_max_attention_is_zero_where_the_query_sees_no_such_key(model, prompts):
    found = sk.run(model, prompts, [sk.MaxAttention(keys=[2], queries="all")]).max_attention
    assert (found[..., :2] == 0).all()
    assert (found[..., 2] > 0).all()


def test_max_attention_is_nan_in_a_prompt_without_such_a_key(model, prompts):
    assert np.isnan(sk.run(model, prompts, [sk.MaxAttention(keys="image", queries="all")]).max_attention).all()


def test_max_attention_on_an_image_of_a_multimodal_model():
    model = sk.load_model(testing.tiny("llava"))
    given = testing.inputs(model.model)
    prompts = sk.Prompts.from_inputs(given, model)
    found = sk.run(model, prompts, [sk.MaxAttention()]).max_attention
    calls = [c for c in oracle.capture(model.model, **given).calls if "vision" not in c.path]
    for i, roles in enumerate(prompts.roles):
        image, text = roles == ROLE_INDEX["image"], roles == ROLE_INDEX["text"]
        wanted = torch.stack([oracle.largest(c.weights[i], image) for c in calls])
        np.testing.assert_allclose(found[i][..., text], wanted[..., torch.from_numpy(text)], atol=1e-5)
        assert np.isnan(found[i].values[..., ~text]).all()
        assert (found[i].values[..., 1:5] == 0).all()  # text before the image
        assert (found[i].values[..., -1] > 0).all()


def test_after_image_is_every_token_past_the_last_image_token():
    model = sk.load_model(testing.tiny("llava"))
    prompts = sk.Prompts.from_inputs(testing.inputs(model.model), model)
    found = sk.run(model, prompts, [sk.MaxAttention(queries="after_image")]).max_attention
    last = int(np.flatnonzero(prompts.roles[0] == ROLE_INDEX["image"])[-1])
    assert np.isnan(found[..., : last + 1]).all()
    assert np.isfinite(found[..., last + 1 :]).all()


def test_a_boolean_array_of_an_earlier_reading_selects_keys(model, prompts):
    mass = sk.run(model, prompts, [sk.KeyMass()]).key_mass
    sinks = (mass.mean("head") > 0.3).any("layer")
    found = sk.run(model, prompts, [sk.MaxAttention(keys=sinks, queries="last")], batch_size=2).max_attention
    wanted = sk.run(model, prompts, [sk.AttentionMap(layers=range(3), heads=range(4))]).attention
    for i, length in enumerate(prompts.lengths):
        row = wanted[i, :, :, length - 1].where(sinks[i]).max("key")
        np.testing.assert_allclose(found[i, ..., length - 1], row, atol=1e-6)


def test_a_map_alone_holds_just_the_layers_and_heads_named(model, prompts, maps):
    reading = sk.run(model, prompts, [sk.AttentionMap(layers=[2, 0], heads=[3, 1]), sk.ResidualNorm()], batch_size=3)
    assert reading.attention.dims == ("prompt", "layer", "head", "query", "key")
    assert reading.layer.values.tolist() == [2, 0]
    assert reading["head"].values.tolist() == [3, 1]
    assert reading.kv_of_head.values.tolist() == [1, 0]
    for i, one in enumerate(maps):
        n = one.shape[-1]
        np.testing.assert_allclose(reading.attention[i, ..., :n, :n], one[[2, 0]][:, [3, 1]], atol=1e-5)
        assert np.isnan(reading.attention[i, ..., n:, :]).all()
        assert np.isnan(reading.attention[i, ..., :, n:]).all()


def test_a_map_beside_others_keeps_all_labels_and_is_nan_elsewhere(model, prompts, maps):
    reading = sk.run(model, prompts, [sk.KeyMass(), sk.AttentionMap(layers=[1], heads=[3, 0])], batch_size=2)
    assert reading.layer.values.tolist() == [0, 1, 2]
    assert reading["head"].values.tolist() == [0, 1, 2, 3]
    found = reading.attention.sel(layer=1, head=[3, 0])
    for i, one in enumerate(maps):
        n = one.shape[-1]
        np.testing.assert_allclose(found[i, :, :n, :n], one[1][[3, 0]], atol=1e-5)
    assert np.isnan(reading.attention.sel(layer=[0, 2])).all()
    assert np.isnan(reading.attention.sel(head=[1, 2])).all()


def test_repeated_layers_and_heads_count_once(model, prompts):
    probe = sk.AttentionMap(layers=[1, 1], heads=(2, 2, 0))
    assert (probe.layers, probe.heads) == ((1,), (2, 0))
    assert sk.AttentionMap(layers=1, heads=0) == sk.AttentionMap(layers=[1], heads=[0])
    assert sk.run(model, prompts, [probe]).attention.shape == (3, 1, 2, 6, 6)


@pytest.mark.parametrize(
    ("probe", "message"),
    [
        (sk.AttentionMap(layers=[0, 3], heads=[0]), "AttentionMap(layers=[0, 3]): this model has layers 0..2. Name"),
        (sk.AttentionMap(layers=[-1], heads=[0]), "AttentionMap(layers=[-1]): this model has layers 0..2."),
        (sk.AttentionMap(layers=[0], heads=[4]), "AttentionMap(heads=[4]): this model has heads 0..3. Name heads in"),
        (sk.AttentionMap(layers=[], heads=[0]), "AttentionMap(layers=[]): this model has layers 0..2."),
        (sk.RoleShare(queries="txet"), "RoleShare(queries='txet'): there is no role or selection 'txet'. Roles are ["),
        (sk.RoleShare(queries="pad"), "RoleShare(queries='pad'): there is no role or selection 'pad'."),
        (sk.MaxAttention(keys=[9], queries="all"), "MaxAttention(keys=[9]): position 9 is beyond a prompt of 3"),
        (sk.MaxAttention(keys=0.5), "MaxAttention(keys=0.5): cannot select tokens by 0.5. Use a role, a list of roles"),
        (sk.KeyMass(keys=[True]), "KeyMass(keys=[True]): cannot select tokens by [True]."),
    ],
)  # fmt: skip
def test_what_is_not_there_is_refused(model, prompts, probe, message):
    with pytest.raises(ProbeError) as raised:
        sk.run(model, prompts, [probe], batch_size=3)
    assert str(raised.value).startswith(message)


def test_maps_beyond_the_limit_are_refused_with_their_size(model, monkeypatch):
    monkeypatch.setattr("sinkscope.engine.reading.MAP_LIMIT", 4 * 2 * 2 * 36 - 1)
    prompts = sk.Prompts.from_ids(IDS[:1], model)
    message = r"AttentionMap: the maps would take 0\.0 GiB, the limit is 0 GiB\. Name fewer layers, heads or tokens"
    with pytest.raises(ProbeError, match=message):
        sk.run(model, prompts, [sk.AttentionMap(layers=[0, 1], heads=[0, 1])])
    assert sk.run(model, prompts, [sk.AttentionMap(layers=[0, 1], heads=[0])]).attention.nbytes == 4 * 2 * 36


def test_an_array_from_other_prompts_is_refused(model, prompts):
    other = xr.DataArray(np.ones((1, 6), dtype=bool), dims=("prompt", "key"), coords={"prompt": [7]})
    with pytest.raises(ProbeError, match=r"the DataArray holds prompts \[7\], not prompt 0\. Use the same prompts\."):
        sk.run(model, prompts, [sk.KeyMass(keys=other)])


def test_the_top_key_is_that_of_the_map_in_padded_batches(model, prompts, maps):
    found = sk.run(model, prompts, [sk.TopKey()], batch_size=3)
    for i, one in enumerate(maps):
        np.testing.assert_array_equal(found.top_key[i, ..., : one.shape[-1]], one.argmax(-1))
        np.testing.assert_allclose(found.top_weight[i, ..., : one.shape[-1]], one.amax(-1), atol=1e-5)
        assert np.isnan(found.top_key[i, ..., one.shape[-1] :]).all()
    last = sk.run(model, prompts, [sk.TopKey("last")]).top_key
    np.testing.assert_array_equal(last[0, ..., 5], found.top_key[0, ..., 5])
    assert np.isnan(last[0, ..., :5]).all()


def test_the_top_key_of_generated_rows_is_that_of_the_text_so_far(model, prompts):
    written = sk.generate(model, prompts.subset([0]), max_new_tokens=3)
    whole = sk.run(model, written, [sk.TopKey()]).top_key
    shorter = sk.Prompts.from_ids([written.ids[0][:-1].tolist()], model)
    np.testing.assert_array_equal(whole[0, ..., -2], sk.run(model, shorter, [sk.TopKey()]).top_key[0, ..., -1])
