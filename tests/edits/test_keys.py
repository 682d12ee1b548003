from __future__ import annotations

import math

import numpy as np
import pytest
import torch
import xarray as xr
from hypothesis import given, settings
from hypothesis import strategies as st

import sinkscope as sk
from sinkscope.errors import EditError
from tests.edits.dense import Reference, Row, assert_close, dense_hidden, edited_hidden, model_and_prompts, plan_of

MODELS = ["llama", "gpt2", "gpt_oss", "gemma2", "bert", "vit"]


def chosen(batch, row: Row, keys, heads=None, layers=None, rows=None, keep_self=False) -> torch.Tensor:
    """Boolean (batch, head, query, key): entries an edit selects, written out by hand."""
    b, h, q, k = row.logits.shape
    mask = torch.zeros(b, h, q, k, dtype=torch.bool)
    if layers is not None and row.layer not in layers:
        return mask
    for i in range(b):
        for j in keys(i) if callable(keys) else keys:
            mask[i, :, :, j] = True
    if heads is not None:
        mask[:, [x for x in range(h) if x not in heads]] = False
    if rows is not None:
        mask[:, :, [x for x in range(q) if x not in rows]] = False
    if keep_self:
        mask &= ~torch.eye(q, k, dtype=torch.bool)
    return mask & row.visible & batch.real[:, None, :, None]


def scaled(row: Row, mask: torch.Tensor, log: float) -> torch.Tensor:
    if log > -math.inf:
        return row.softmax(row.logits + log * mask)
    hidden = row.logits.masked_fill(mask, -torch.inf)
    blind = ~(hidden > -1e300).any(-1, keepdim=True) & row.visible.any(-1, keepdim=True)
    return row.softmax(torch.where(blind, row.logits, hidden))


def check(name, edit, weights=None, values=None, output=None, lengths=(9, 12)):
    model, prompts = model_and_prompts(name, lengths)
    batch = prompts.batch(range(len(prompts)))
    ref = Reference()
    if weights is not None:
        ref.weights = lambda row: weights(batch, row)
    if values is not None:
        ref.values = values
    if output is not None:
        ref.output = lambda layer, out: output(batch, layer, out)
    expected = dense_hidden(model, batch, ref)
    assert_close(edited_hidden(model, prompts, [edit]), expected, batch)
    plain = dense_hidden(model, batch, Reference())
    assert float((plain - expected)[batch.real].abs().max()) > 1e-3, "the reference itself changes nothing"


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("gamma", [0.3, 4.0, 0.0])
def test_scale_keys_is_log_gamma_on_the_logit(name, gamma):
    log = math.log(gamma) if gamma else -math.inf
    check(
        name,
        sk.ScaleKeys(gamma, layers=[0, 1], heads=[1, 3]),
        lambda batch, row: scaled(row, chosen(batch, row, [0], heads=[1, 3], layers=[0, 1]), log),
    )


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("keep_self", [False, True])
def test_mask_keys(name, keep_self):
    check(
        name,
        sk.MaskKeys([0, 2, 5], keep_self=keep_self),
        lambda batch, row: scaled(row, chosen(batch, row, [0, 2, 5], keep_self=keep_self), -math.inf),
    )


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("keep_self", [False, True])
def test_drop_keys_does_not_renormalise(name, keep_self):
    check(
        name,
        sk.DropKeys([0, 2], heads=[0, 2], keep_self=keep_self),
        lambda batch, row: row.softmax() * ~chosen(batch, row, [0, 2], heads=[0, 2], keep_self=keep_self),
    )


@pytest.mark.parametrize("name", MODELS)
def test_zero_values(name):
    def values(layer, value):
        value = value.clone()
        value[:, [0, 3], 0] = 0
        return value

    check(name, sk.ZeroValues("first", heads=[0, 3]), values=values)


@pytest.mark.parametrize("name", MODELS)
def test_shift_logits(name):
    check(
        name,
        sk.ShiftLogits(-1.5, keys=[1, 4], queries=[4, 5, 6]),
        lambda batch, row: row.softmax(row.logits - 1.5 * chosen(batch, row, [1, 4], rows=[4, 5, 6])),
    )


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize(("mode", "alpha", "protect"), [("exclude", 0.01, False), ("include", 100.0, True)])
def test_steer_keys(name, mode, alpha, protect):
    kept = {2, 3} | ({0} if protect else set())
    _model, prompts = model_and_prompts(name)
    lengths = prompts.lengths
    check(
        name,
        sk.SteerKeys(alpha, keys=[2, 3], mode=mode, protect_sink=protect, heads={0: [1], 2: [0, 1]}),
        lambda batch, row: row.softmax(
            row.logits
            + math.log(0.01)
            * chosen(
                batch,
                row,
                lambda i: [j for j in range(lengths[i]) if j not in kept],
                heads={0: [1], 2: [0, 1]}.get(row.layer, []),
            )
        ),
    )


@pytest.mark.parametrize("name", ["llama", "gpt_oss", "gemma2", "bert"])
@pytest.mark.parametrize("lengths", [(24, 30), (30, 30)])
def test_many_keys_in_some_rows(name, lengths):
    many = list(range(20))
    for edit, log in [
        (sk.MaskKeys(many, heads=[0, 2], queries=[*range(3), *range(15, 24)]), -math.inf),
        (sk.ShiftLogits(1.3, keys=many, heads=[0, 2], queries=[*range(3), *range(15, 24)]), 1.3),
    ]:
        check(
            name,
            edit,
            lambda batch, row, log=log: scaled(
                row, chosen(batch, row, many, heads=[0, 2], rows=[*range(3), *range(15, 24)]), log
            ),
            lengths=lengths,
        )


@pytest.mark.parametrize("name", ["llama", "gpt2", "bert", "vit"])
def test_without_padding_the_fused_kernels_serve_and_agree(name):
    for edit, weights in [
        (sk.ScaleKeys(0.3), lambda batch, row: scaled(row, chosen(batch, row, [0]), math.log(0.3))),
        (sk.MaskKeys([0, 3], heads=[1]), lambda batch, row: scaled(row, chosen(batch, row, [0, 3], [1]), -math.inf)),
        (sk.DropKeys([0]), lambda batch, row: row.softmax() * ~chosen(batch, row, [0])),
        (sk.NullKey(0.4), lambda batch, row: row.softmax(null=0.4)),
    ]:
        check(name, edit, weights, lengths=(11, 11))
        model, prompts = model_and_prompts(name, (11, 11))
        reading = sk.run(model, prompts, [sk.ResidualNorm()], [edit])
        assert reading.attrs["path"] in ("merged", "augdim")


def test_negative_positions_and_last_are_counted_from_each_prompts_end():
    check(
        "llama",
        sk.ScaleKeys(5.0, keys=[-3]),
        lambda batch, row: scaled(row, chosen(batch, row, lambda i: [(9, 12)[i] - 3]), math.log(5.0)),
    )
    model, prompts = model_and_prompts("llama")
    torch.testing.assert_close(
        edited_hidden(model, prompts, [sk.ScaleKeys(5.0, keys="last")]),
        edited_hidden(model, prompts, [sk.ScaleKeys(5.0, keys=[-1])]),
        rtol=0, atol=0,
    )  # fmt: skip


def test_a_boolean_array_of_an_earlier_reading_selects_keys_by_layer_and_head():
    model, prompts = model_and_prompts("llama")
    reading = sk.run(model, prompts, [sk.KeyMass()], batch_size=2)
    found = reading.key_mass > 0.3
    assert 0 < int(found.sum()) < found.size
    batch = prompts.batch(range(2))
    table = torch.from_numpy(found.values)

    def weights(row):
        mask = table[:, row.layer, :, None, :].expand(row.logits.shape) & row.visible & batch.real[:, None, :, None]
        return scaled(row, mask, -math.inf)

    expected = dense_hidden(model, batch, Reference(weights))
    edit = sk.MaskKeys(found)
    assert_close(edited_hidden(model, prompts, [edit]), expected, batch)
    assert edit == sk.MaskKeys(found.copy())
    assert hash(edit) == hash(sk.MaskKeys(found.copy()))
    assert sk.edits.loads(sk.edits.dumps([edit])) == [edit]


def test_an_array_may_come_as_heads_and_as_layers_and_as_queries():
    heads = xr.DataArray([[True, False], [False, True]], dims=("layer", "head"), coords={"layer": [1, 2]})
    assert dict(sk.MaskKeys("first", heads=heads).heads) == {1: (0,), 2: (1,)}
    layers = xr.DataArray([True, False, True], dims="layer")
    assert sk.MaskKeys("first", layers=layers).layers == (0, 2)
    model, prompts = model_and_prompts("llama")
    rows = np.zeros((2, 12), bool)
    rows[:, 5:7] = True
    by_array = sk.MaskKeys("first", queries=xr.DataArray(rows, dims=("prompt", "query")))
    torch.testing.assert_close(
        edited_hidden(model, prompts, [by_array]), edited_hidden(model, prompts, [sk.MaskKeys("first", queries=[5, 6])])
    )


def test_a_row_that_sees_only_masked_keys_is_left_alone_and_counted():
    model, prompts = model_and_prompts("llama")
    reading = sk.run(model, prompts, [sk.KeyMass(), sk.RowSum()], [sk.MaskKeys("first", layers=0, heads=[2])])
    assert '"spared": 2' in reading.attrs["edit_counts"]  # row 0 of each of the two prompts
    assert "left 2 rows alone" in reading.attrs["edit_notes"]
    mass = reading.key_mass.sel(layer=0, head=2)
    # Only row 0 still looks at key 0, with weight 1.
    np.testing.assert_allclose(mass[:, 0], [1 / 9, 1 / 12], rtol=1e-6)
    np.testing.assert_allclose(reading.row_sum.sel(layer=0, head=2)[1], 1.0, rtol=1e-6)


@settings(max_examples=25, deadline=None)
@given(
    first=st.floats(0.05, 20), second=st.floats(0.05, 20), position=st.integers(0, 8), layer=st.integers(0, 2),
)  # fmt: skip
def test_scaling_twice_is_scaling_by_the_product_and_its_inverse_undoes_it(first, second, position, layer):
    model, prompts = LAWS
    common = {"keys": [position], "layers": layer}
    twice = edited_hidden(model, prompts, [sk.ScaleKeys(first, **common), sk.ScaleKeys(second, **common)])
    once = edited_hidden(model, prompts, [sk.ScaleKeys(first * second, **common)])
    torch.testing.assert_close(twice, once, rtol=1e-4, atol=1e-5)
    undone = edited_hidden(model, prompts, [sk.ScaleKeys(first, **common), sk.ScaleKeys(1 / first, **common)])
    torch.testing.assert_close(undone, edited_hidden(model, prompts, []), rtol=1e-4, atol=1e-5)


LAWS = model_and_prompts("llama", lengths=(9,))


@settings(max_examples=25, deadline=None)
@given(gamma=st.floats(0.0, 50), heads=st.lists(st.integers(0, 3), min_size=1))
def test_rows_keep_their_sums_and_duplicates_count_once(gamma, heads):
    model, prompts = LAWS
    plan, _ = plan_of(model, prompts, [sk.ScaleKeys(gamma, heads=heads)])
    assert plan.edits[0] == sk.ScaleKeys(gamma, heads=sorted(set(heads)))
    if gamma == 1:
        return
    reading = sk.run(model, prompts, [sk.RowSum()], [sk.ScaleKeys(gamma, heads=heads)])
    np.testing.assert_allclose(reading.row_sum, 1.0, atol=1e-6)


@pytest.mark.parametrize("gamma", [-1, math.nan, math.inf, "2", True, None])
def test_gamma_must_be_a_number_of_at_least_zero(gamma):
    with pytest.raises(
        EditError, match=r"ScaleKeys\(gamma=.*gamma must be a finite number of at least 0\. Use gamma=0"
    ):
        sk.ScaleKeys(gamma)


def test_other_numbers_are_checked_too():
    with pytest.raises(EditError, match=r"ShiftLogits\(bias=-?inf\): bias must be a finite number\. Use MaskKeys"):
        sk.ShiftLogits(-math.inf)
    with pytest.raises(EditError, match=r"NullKey\(logit=1e\+300\): logit must be a finite number in float32\."):
        sk.NullKey(1e300)
    with pytest.raises(EditError, match="alpha must be a finite number of at least 1e-30"):
        sk.SteerKeys(0, keys="text")
    with pytest.raises(EditError, match=r"mode must be one of \['include', 'exclude', 'generation'\]"):
        sk.SteerKeys(0.1, keys="text", mode="generated")
    with pytest.raises(EditError, match="mode='generation' acts on all prompt keys"):
        sk.SteerKeys(0.1, keys="text", mode="generation")
    with pytest.raises(EditError, match=r"ZeroValues\(queries='last'\): a value vector is the same for every query"):
        sk.ZeroValues("first", queries="last")


def test_heads_as_pairs_of_layer_and_head():
    """As truth.heads of a planted model, the lists of the papers and np.argwhere give them: (layer, head)."""
    wanted = sk.MaskKeys("first", heads={2: [1, 3], 0: [1]})
    pairs = [(2, 3), (0, 1), (2, 1), (2, 3)]
    for written in (pairs, tuple(pairs), np.array(pairs), [list(pair) for pair in pairs], iter(pairs)):
        assert sk.MaskKeys("first", heads=written) == wanted
    assert sk.MaskKeys("first", heads=iter([1, 0])) == sk.MaskKeys("first", heads=[0, 1])
    for wrong in ([(0, 1), 2], [(0, 1, 2)], [(0, 1.5)]):
        with pytest.raises(EditError, match=r"numbers, pairs \(layer, head\), or a mapping"):
            sk.MaskKeys("first", heads=wrong)


def test_wrong_selectors_are_refused_by_name():
    with pytest.raises(EditError, match=r"MaskKeys\(keys='sink'\): there is no role or selection 'sink'"):
        sk.MaskKeys("sink")
    with pytest.raises(EditError, match=r"cannot select tokens by \[1, 'text'\]\. Use a role"):
        sk.MaskKeys([1, "text"])
    with pytest.raises(EditError, match="holds float64, not booleans"):
        sk.MaskKeys(xr.DataArray(np.ones((1, 3)), dims=("prompt", "key")))
    with pytest.raises(EditError, match=r"MaskKeys\(layers='all'\): layers must be whole numbers"):
        sk.MaskKeys("first", layers="all")
    with pytest.raises(EditError, match=r"must be boolean over \(layer, head\)"):
        sk.MaskKeys("first", heads=xr.DataArray([True], dims="head"))
    with pytest.raises(EditError, match="keys of the mapping must be layer numbers"):
        sk.MaskKeys("first", heads={"a": [0]})


def test_layers_heads_and_positions_beyond_the_model_are_refused():
    model, prompts = model_and_prompts("llama")
    with pytest.raises(
        EditError, match=r"MaskKeys\(layers=40\): this model has layers 0\.\.2\. Use layers=range\(3\)\."
    ):
        sk.run(model, prompts, edits=[sk.MaskKeys("first", layers=40)])
    with pytest.raises(EditError, match=r"MaskKeys\(heads=4\): layer 0 has heads 0\.\.3\. Use heads=range\(4\)\."):
        sk.run(model, prompts, edits=[sk.MaskKeys("first", heads=[4])])
    with pytest.raises(EditError, match=r"MaskKeys\(heads=\{7: 0\}\): this model has layers 0\.\.2\. Layer 7 is not"):
        sk.run(model, prompts, edits=[sk.MaskKeys("first", heads={7: [0]})])
    with pytest.raises(EditError, match=r"MaskKeys\(keys=99\): position 99 is beyond a prompt of 9 tokens"):
        sk.run(model, prompts, edits=[sk.MaskKeys([99])])


@pytest.mark.parametrize("wrong", [True, 1.0, [0, True], [1.5], {1.0: [0]}, {True: [0]}, "3"])
def test_layers_and_heads_are_whole_numbers(wrong):
    with pytest.raises(EditError, match=r"must be (whole|layer) numbers"):
        sk.MaskKeys("first", heads=wrong)
    if not isinstance(wrong, dict):
        with pytest.raises(EditError, match="layers must be whole numbers"):
            sk.MaskKeys("first", layers=wrong)
        with pytest.raises(EditError, match="dims must be whole numbers"):
            sk.SetActivations("0.post", dims=wrong)
