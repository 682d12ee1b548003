from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch

import sinkscope as sk
from sinkscope.attention.blockwise import attend
from sinkscope.attention.call import Call
from sinkscope.attention.masks import from_call
from sinkscope.attention.primitives import Tally
from sinkscope.attention.tile import Tile
from sinkscope.attention.view import Ask, Context, Wants
from sinkscope.edits.redistribute import MoveShare
from sinkscope.engine.plan import Plan
from sinkscope.errors import EditError
from sinkscope.models.backends.base import AttentionSite, Block, ResidualSite, Tower
from sinkscope.models.handle import load_model
from sinkscope.prompts import Batch
from sinkscope.roles import ROLE_INDEX
from sinkscope.testing import inputs, tiny
from tests.edits.dense import Reference, assert_close, dense_hidden, edited_hidden, model_and_prompts, plan_of

A5 = [
    [1, 0, 0, 0, 0],
    [0.8, 0.2, 0, 0, 0],
    [0.6, 0.1, 0.3, 0, 0],
    [0.5, 0.1, 0.35, 0.05, 0],
    [0.4, 0.1, 0.4, 0.05, 0.05],
]


def call_of(weights) -> Call:
    """A causal call whose attention map is ``weights``: one head, unit queries, keys that hold log weights."""
    n = len(weights)
    logits = torch.tensor(weights, dtype=torch.float64).clamp(min=1e-60).log().float()
    query = torch.eye(n).view(1, 1, n, n)
    key = logits.T.reshape(1, 1, n, n)
    mask, _ = from_call(None, query, key, True)
    return Call(query, key, torch.eye(n).view(1, 1, n, n), mask, 1.0)


def under(edit, weights, roles=None, sinks=None):
    """The map that ``edit`` makes of ``weights``."""
    call = call_of(weights)
    n = len(weights)
    role = [ROLE_INDEX["text"]] * n if roles is None else [ROLE_INDEX[r] for r in roles]
    batch = Batch({}, torch.ones(1, n).bool(), torch.tensor([role], dtype=torch.int8), (0,))
    tower = Tower(
        "text", (AttentionSite(0, "a", 1, 1, n, True),), (ResidualSite("embed", "b", True),), n, (Block(0, "b"),)
    )
    plan = Plan([edit], tower, None, batch)
    edits = plan.call_edits(0, call)
    context = Context(batch.real, torch.zeros(1, n).long(), (0,))
    return attend(call, Wants(Ask("map", {"heads": (0,)})), context, edits)[1]["map"][0, 0].numpy(), plan.tallies[0]


def test_zerotuning_vectors():
    expected = {
        2.0: [[1], [0.888889, 0.111111], [0.75, 0.0625, 0.1875], [0.666667, 0.066667, 0.233333, 0.033333],
              [0.571429, 0.071429, 0.285714, 0.035714, 0.035714]],
        0.5: [[1], [0.666667, 0.333333], [0.428571, 0.142857, 0.428571], [0.333333, 0.133333, 0.466667, 0.066667],
              [0.25, 0.125, 0.5, 0.0625, 0.0625]],
        0.0: [[1], [0, 1], [0, 0.25, 0.75], [0, 0.2, 0.7, 0.1], [0, 0.166667, 0.666667, 0.083333, 0.083333]],
    }  # fmt: skip
    for gamma, rows in expected.items():
        found, _ = under(sk.ScaleKeys(gamma), A5)
        for i, row in enumerate(rows):
            np.testing.assert_allclose(found[i, : i + 1], row, atol=1e-6)
    found, _ = under(sk.ScaleKeys(2.0, keys=[1, 2]), A5)
    np.testing.assert_allclose(found[4], [0.266667, 0.133333, 0.533333, 0.033333, 0.033333], atol=1e-6)


def test_pasta_vectors():
    found, _ = under(sk.SteerKeys(0.01, keys=[2]), A5)
    np.testing.assert_allclose(found[4], [0.009852, 0.002463, 0.985222, 0.001232, 0.001232], atol=1e-6)
    np.testing.assert_allclose(found[1], A5[1], atol=1e-6)  # no member of the selection is visible
    include, _ = under(sk.SteerKeys(100, keys=[2], mode="include"), A5)
    np.testing.assert_allclose(include, found, atol=1e-6)
    onto, _ = under(sk.ScaleKeys(0.01, keys=[2]), A5)
    np.testing.assert_allclose(onto[4], [0.662252, 0.165563, 0.006623, 0.082781, 0.082781], atol=1e-6)
    spared, _ = under(sk.SteerKeys(0.01, keys=[2], protect_sink=True), A5)
    np.testing.assert_allclose(spared[4], np.array([0.4, 0.001, 0.4, 0.0005, 0.0005]) / 0.802, atol=1e-6)


def test_act_vectors():
    found, tally = under(sk.CalibrateSinks(0.1, beta=0.4), A5)
    rows = [[1], [0.92, 0.08], [0.84, 0.04, 0.12], [0.745455, 0.04, 0.14, 0.074545], [0.64, 0.04, 0.16, 0.08, 0.08]]
    for i, row in enumerate(rows):
        np.testing.assert_allclose(found[i, : i + 1], row, atol=1e-6)
    assert tally.fired == 4
    found, _ = under(sk.CalibrateSinks(0.2, beta=0.4), A5)
    rows = [[1], [0.8, 0.2], [0.754286, 0.125714, 0.12], [0.661538, 0.132308, 0.14, 0.066154],
            [0.56, 0.14, 0.16, 0.07, 0.07]]  # fmt: skip
    for i, row in enumerate(rows):
        np.testing.assert_allclose(found[i, : i + 1], row, atol=1e-6)


def test_act_exempts_by_position_or_by_order():
    # Key 0 is below the threshold: the released code then spares the first real sink.
    weights = [[1, 0, 0], [0.05, 0.95, 0], [0.05, 0.75, 0.2]]
    for exempt, expected in [("initial", [0.05 / 0.25, 0.0, 0.2 / 0.25]), ("first_hit", [0.05, 0.75, 0.2])]:
        found, _ = under(sk.CalibrateSinks(0.5, beta=0.0, exempt=exempt), weights)
        np.testing.assert_allclose(found[2], expected, atol=1e-6)


def test_act_leaves_a_row_that_sees_only_sinks():
    weights = [[1, 0], [0.0, 1.0]]
    found, tally = under(sk.CalibrateSinks(0.9, beta=0.4), weights)
    np.testing.assert_allclose(found, weights, atol=1e-6)
    assert (tally.fired, tally.spared) == (0, 1)  # exp(-138) on key 0 is nothing in float32


PHI = [43.7751, 1, 1, 36.8143, 0.1270, 14.6059, 1, 1]
ROW = [0.40, 0.05, 0.05, 0.20, 0.10, 0.05, 0.05, 0.10]


def sheet_states() -> torch.Tensor:
    """The residual stream of the sheet's test vector."""
    state = torch.ones(8, 4096)
    state[:, 1::2] = -1
    state[0, 1415], state[3, 2533], state[5, 1415], state[4, 777] = 60, -45, 15, 500
    return state


def test_sinks_of_the_var_vector():
    edit = sk.Redistribute(dims=[1415, 2533])
    assert edit.sinks(sheet_states()[None])[0].tolist() == [p >= 20 for p in PHI]
    exact = torch.zeros(1, 1, 400)
    exact[..., 0] = 20.0 / math.sqrt(1 - 1e-6)  # phi is sqrt(400) = 20 up to the epsilon
    assert bool(sk.Redistribute(tau=19.99999).sinks(exact)) is True


def move(edit, row):
    sinks = torch.tensor([[p >= 20 for p in PHI]])
    image = torch.tensor([[2 <= j <= 5 for j in range(8)]])
    mask, _ = from_call(None, torch.zeros(1, 1, 1, 1), torch.zeros(1, 1, 8, 1), False)
    tile = Tile(torch.zeros(1).long(), torch.zeros(1).long(), slice(0, 1), slice(0, 8), mask)
    tally = Tally()
    new = MoveShare(sinks, image, torch.ones(1, 1).bool(), torch.ones(1).bool(), edit, tally)(
        torch.tensor([[row]]), tile
    )
    return new[0, 0].numpy(), tally.fired


def test_var_vectors():
    found, fired = move(sk.Redistribute(), ROW)
    np.testing.assert_allclose(found, [0.16, 0.05, 0.14, 0.08, 0.28, 0.14, 0.05, 0.10], atol=1e-6)
    assert fired == 1
    found, _ = move(sk.Redistribute(rule="sink"), ROW)
    np.testing.assert_allclose(found, [0.24, 0.05, 0.11, 0.12, 0.22, 0.11, 0.05, 0.10], atol=1e-6)
    low_share = [0.25, 0.05, 0.05, 0.40, 0.05, 0.05, 0.05, 0.10]
    low_mass = [0.80, 0.05, 0.02, 0.02, 0.03, 0.03, 0.00, 0.05]
    no_receiver = [0.40, 0.10, 0.0, 0.40, 0.0, 0.0, 0.05, 0.05]
    for row in (low_share, low_mass, no_receiver):
        found, fired = move(sk.Redistribute(rho=0.0 if row is no_receiver else 0.5), row)
        assert found.tolist() == torch.tensor(row).tolist()
        assert fired == 0


@pytest.mark.parametrize("definition", ["paper", "released_code"])
def test_the_edit_acts_on_the_rows_that_the_metric_selects(definition):
    model, prompts = llava()
    rule, needed = {"paper": ("non_sink", False), "released_code": ("sink", True)}[definition]
    layers = [site.layer for site in model.backend.towers["text"].attention]
    acted = 0
    for tau in (2.0, 2.4, 3.2, 4.5):  # from many visual sinks to none
        edit = sk.Redistribute(
            0.5,
            rho=0.5,
            min_image_mass=0.1,
            tau=tau,
            start_layer=0,
            skip_last=False,
            rule=rule,
            need_visual_sink=needed,
        )
        # One layer at a time: an edit below changes what is read above.
        for layer in layers:
            maps = [sk.AttentionMap(layers=[layer], heads=range(4))]
            plain = sk.run(model, prompts, [*maps, sk.SinkDims(range(32))])
            sinks = (plain["phi"] >= tau).sel(site="embed" if layer == 0 else f"{layer - 1}.post", drop=True)
            chosen = sk.metrics.image_centric_heads(plain, definition, sinks=sinks, min_image_mass=0.1, rho=0.5)
            selected = chosen["selected"].sel(layer=layer)
            on_sinks = plain["attention"].where(sinks).sum("key").sel(layer=layer) > 0
            image = plain["token_role"] == "image"
            spare = plain["attention"].where(image & ~sinks).sum("key").sel(layer=layer) > 0
            edited = sk.run(model, prompts, maps, [replace(edit, layers=layer)])
            changed = (abs(edited["attention"] - plain["attention"]) > 0).any("key").sel(layer=layer)
            expected = (selected & on_sinks & spare).transpose(*changed.dims)
            np.testing.assert_array_equal(changed, expected)
            acted += int(changed.sum())
    assert acted > 50


@pytest.mark.parametrize("rule", ["non_sink", "sink"])
def test_a_layer_without_a_visual_sink_is_left_alone_unless_asked(rule):
    row = [0.40, 0.05, 0.10, 0.40, 0.0, 0.05]
    edit = sk.Redistribute(0.6 if rule == "non_sink" else 0.4, rule=rule, start_layer=0, skip_last=False)
    found, tally = moved_row(edit, row, sinks=[0], image=[2, 3])
    np.testing.assert_allclose(found, row, atol=1e-6)
    assert tally.fired == 0
    found, tally = moved_row(replace(edit, need_visual_sink=False), row, sinks=[0], image=[2, 3])
    np.testing.assert_allclose(found, [0.16, 0.05, 0.148, 0.592, 0.0, 0.05], atol=1e-6)
    assert tally.fired == 1


def test_who_receives():
    row = [0.40, 0.05, 0.10, 0.40, 0.0, 0.05]
    for receivers, at in (("image", [2, 3]), ("text", [1, 5]), ("all", [1, 2, 3, 5])):
        edit = sk.Redistribute(receivers=receivers, need_visual_sink=False, start_layer=0, skip_last=False)
        found, _ = moved_row(edit, row, sinks=[0], image=[2, 3])
        expected = np.array(row)
        expected[0] = 0.16
        expected[at] += 0.24 * expected[at] / expected[at].sum()
        np.testing.assert_allclose(found, expected, atol=1e-6)


def moved_row(edit, row, sinks, image):
    """The last row of a map under an edit whose sinks are given, through a whole plan."""
    n = len(row)
    weights = [[float(i == j) for j in range(n)] for i in range(n - 1)] + [row]
    call = call_of(weights)
    roles = torch.tensor([[ROLE_INDEX["image" if j in image else "text"] for j in range(n)]], dtype=torch.int8)
    batch = Batch({}, torch.ones(1, n).bool(), roles, (0,))
    tower = Tower(
        "text", (AttentionSite(0, "a", 1, 1, n, True),), (ResidualSite("embed", "b", True),), 4096, (Block(0, "b"),)
    )
    plan = Plan([edit], tower, None, batch)
    state = sheet_states()[None, :n].clone()
    state[:] = 1.0
    state[0, sinks, 1415] = 60.0
    for hook in plan.residual["embed"]:
        hook(state)
    edits = plan.call_edits(0, call)
    context = Context(batch.real, torch.zeros(1, n).long(), (0,))
    found = attend(call, Wants(Ask("map", {"heads": (0,)})), context, edits)[1]["map"][0, 0, -1].numpy()
    return found, plan.tallies[0]


def test_the_relative_rule_of_act():
    # Five tokens: 0.1 absolute is 0.5 relative. For other lengths they part.
    for threshold in (0.1, 0.2):
        absolute, _ = under(sk.CalibrateSinks(threshold), A5)
        relative, _ = under(sk.CalibrateSinks(5 * threshold, rule="relative"), A5)
        np.testing.assert_allclose(relative, absolute, atol=1e-6)
    model, prompts = model_and_prompts("llama", lengths=(6, 12))
    together = sk.run(model, prompts, [sk.Logits()], [sk.CalibrateSinks(1.5, rule="relative")], batch_size=2)
    for row, length in enumerate(prompts.lengths):
        alone = sk.run(model, prompts.subset([row]), [sk.Logits()], [sk.CalibrateSinks(1.5 / length)])
        np.testing.assert_allclose(together.logits[row], alone.logits[0], atol=1e-4)


def llava():
    model = load_model(tiny("llava"))
    return model, sk.Prompts.from_inputs(inputs(model.model), model)


def test_redistribute_in_a_model_equals_the_dense_reference():
    model, prompts = llava()
    batch = prompts.batch(range(len(prompts)))
    edit = sk.Redistribute(p=0.5, rho=0.3, min_image_mass=0.1, tau=2.4, start_layer=1, skip_last=False)
    image = batch.roles == ROLE_INDEX["image"]
    last = int(image[0].nonzero().max())
    tower = model.backend.towers["text"]
    blocks = [site.path.removesuffix(".self_attn") for site in tower.attention]
    states, fired = {}, []

    def weights(row):
        p = row.softmax()
        layer = row.layer - model.config.vision_config.num_hidden_layers
        if layer < 1:
            return p
        state = states[layer]
        phi = state.abs().amax(-1) / (state.square().mean(-1) + 1e-6).sqrt()
        for b in range(p.shape[0]):
            sinks = phi[b] >= 2.4
            if not (sinks & image[b]).any():
                continue
            free = image[b] & ~sinks
            for h in range(p.shape[1]):
                for i in range(last + 1, p.shape[2]):
                    r = p[b, h, i]
                    mass, budget = float(r[image[b]].sum()), float(r[sinks].sum())
                    if mass < 0.1 or float(r[free].sum()) / mass < 0.3:
                        continue
                    new = r.clone()
                    new[sinks] *= 0.5
                    new[free] += 0.5 * budget * r[free] / r[free].sum()
                    p[b, h, i] = new
                    fired.append((layer, b, h, i))
        return p

    import copy

    twin = copy.deepcopy(model)
    for n, path in enumerate(blocks):
        twin.model.get_submodule(path).register_forward_pre_hook(
            lambda _m, args, n=n: states.__setitem__(n, args[0].clone())
        )
    expected = dense_hidden(twin, batch, Reference(weights))
    assert 10 < len(fired) < 2 * 4 * 2 * 12
    assert_close(edited_hidden(model, prompts, [edit]), expected, batch)
    reading = sk.run(model, prompts, [sk.RowSum()], [edit])
    assert f'"fired": {len(fired)}' in reading.attrs["edit_counts"]
    np.testing.assert_allclose(reading.row_sum, 1, atol=1e-5)


def test_redistribute_that_finds_nothing_changes_nothing_and_says_so():
    model, prompts = llava()
    reading = sk.run(model, prompts, [sk.Logits()], [sk.Redistribute()])  # width 32: phi is at most 5.7
    np.testing.assert_array_equal(reading.logits, sk.run(model, prompts, [sk.Logits()]).logits)
    assert reading.attrs["edit_notes"] == (
        "Redistribute() acted on 0 rows; "
        "Redistribute(): no layer is left to change: this model has layers 0..2, it starts at 2, and skip_last leaves "
        "out the last layer 2; "
        "Redistribute(): tau 20 is never reached: in a model of width 32 phi is at most 5.657"
    )


@pytest.mark.parametrize("wrong", [{"start_layer": 99}, {"layers": [0, 1]}, {"start_layer": 3, "skip_last": False}])
def test_layers_asked_for_that_leave_none_are_refused(wrong):
    model, prompts = llava()
    with pytest.raises(EditError, match=r"Redistribute\(start_layer=\d+\): no layer is left .* Use a smaller"):
        sk.run(model, prompts, [sk.Logits()], [sk.Redistribute(**wrong)])


def test_redistribute_skips_the_last_layer_and_the_first_two():
    model, _ = llava()
    tower = model.backend.towers["text"]
    layers = [site.layer for site in tower.attention]
    assert sk.Redistribute(start_layer=0).layers_in(tower) == tuple(layers[:-1])
    assert sk.Redistribute(skip_last=False).layers_in(tower) == tuple(layers[2:])


@pytest.mark.parametrize("name", ["llama", "gpt_oss", "gemma2", "bert"])
def test_calibrate_sinks_in_a_model_equals_the_dense_reference(name):
    model, prompts = model_and_prompts(name)
    batch = prompts.batch(range(2))
    count = []

    def weights(row):
        p = row.softmax()
        old = p.clone()
        for b, real in enumerate(batch.real):
            n = int(real.sum())
            for h in range(p.shape[1]):
                seen = row.visible[b, 0, :n, :n].sum(0)
                alpha = old[b, h, :n, :n].sum(0) / seen
                sinks = torch.zeros(p.shape[-1], dtype=torch.bool)
                sinks[:n] = alpha > 0.15
                sinks[0] = False
                s = old[b, h, :n][:, sinks].sum(-1)
                rest = old[b, h, :n][:, ~sinks].sum(-1)
                act = (s > 0) & (rest > 0)
                count.append(int(act.sum()))
                gain = torch.where(act, 1 + 0.7 * s / rest.clamp(min=1e-300), 1.0)
                p[b, h, :n] = old[b, h, :n] * torch.where(
                    sinks[None], torch.where(act, 0.3, 1.0)[:, None], gain[:, None]
                )
        return p

    expected = dense_hidden(model, batch, Reference(weights))
    assert_close(edited_hidden(model, prompts, [sk.CalibrateSinks(0.15, beta=0.3)]), expected, batch)
    assert sum(count) > 20


def test_wrong_arguments_are_refused():
    with pytest.raises(EditError, match=r"Redistribute\(p=1\.5\): p must be a finite number from 0 to 1"):
        sk.Redistribute(1.5)
    with pytest.raises(EditError, match=r"rule must be one of \['non_sink', 'sink'\]"):
        sk.Redistribute(rule="both")
    with pytest.raises(EditError, match="start_layer must be a layer number of at least 0"):
        sk.Redistribute(start_layer=-1)
    for wrong in (True, 1.0, "2"):
        with pytest.raises(EditError, match="start_layer must be whole numbers"):
            sk.Redistribute(start_layer=wrong)
    with pytest.raises(EditError, match=r"Redistribute\(tau=0\): tau must be a finite number .* every token a sink"):
        sk.Redistribute(tau=0)
    with pytest.raises(EditError, match=r"receivers must be one of \['image', 'text', 'all'\]"):
        sk.Redistribute(receivers="sinks")
    with pytest.raises(EditError, match=r"rule must be one of \['absolute', 'relative'\]"):
        sk.CalibrateSinks(rule="both")
    with pytest.raises(EditError, match=r"SteerKeys\(mode='exclude'\): keys must be given"):
        sk.SteerKeys(0.1)
    with pytest.raises(EditError, match=r"SteerKeys\(keys=\[2\]\): mode='generation' acts on all prompt keys"):
        sk.SteerKeys(0.1, keys=[2], mode="generation")
    with pytest.raises(EditError, match=r"exempt must be one of \['initial', 'first_hit'\]"):
        sk.CalibrateSinks(exempt="none")
    with pytest.raises(EditError, match=r"CalibrateSinks\(beta=2\): beta must be a finite number from 0 to 1"):
        sk.CalibrateSinks(beta=2)
    model, prompts = model_and_prompts("llama")
    with pytest.raises(EditError, match=r"Redistribute\(dims=32\): the residual stream has dimensions 0\.\.31"):
        plan_of(model, prompts, [sk.Redistribute(dims=32)])[0].edits[0].check(model.backend.towers["text"])
