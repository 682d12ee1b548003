"""The laws a reading keeps: order, batching, padding, seeds, and a model that is left as it was."""

import copy

import numpy as np
import pytest
import torch

import sinkscope as sk
from sinkscope import testing
from sinkscope.attention import seam
from sinkscope.probes import LogSumExp, RowSum

ARCHITECTURES = ["llama", "mistral", "gemma2", "gpt_oss", "gpt2", "opt", "gpt_neox", "bert"]
LENGTHS = (9, 4, 12, 6)


def every_probe(causal=True):
    probes = [
        sk.KeyMass(), sk.RoleShare(queries="all"), sk.Entropy(), sk.MaxAttention(keys=[0, 1], queries="all"), RowSum(),
        LogSumExp(), sk.ValueNorm(), sk.KeyNorm(), sk.Contribution(), sk.ResidualNorm(), sk.MassiveActivations(top=3),
        sk.SinkDims(), sk.AttentionMap(layers=[1], heads=[0, 3]), sk.Logits(positions=[0, -1]),
    ]  # fmt: skip
    return [*probes, sk.TokenLoss()] if causal else probes


def prompts_of(model, seed=0, order=None):
    ids = testing.text_ids(model.model, batch=len(LENGTHS), length=max(LENGTHS), seed=seed)
    lists = [row[:n].tolist() for row, n in zip(ids, LENGTHS, strict=True)]
    return sk.Prompts.from_ids([lists[i] for i in order or range(len(lists))], model)


def assert_same(found, wanted, tolerance=1e-5):
    assert found.sizes == wanted.sizes
    for name in wanted.data_vars:
        a, b = found[name].values, wanted[name].values
        assert (np.isnan(a) == np.isnan(b)).all(), name
        scale = max(1.0, np.nanmax(np.abs(b)))
        assert np.nanmax(np.abs(a - b)) <= tolerance * scale, name


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_batching_changes_no_reading(name):
    model = sk.load_model(testing.tiny(name))
    prompts, probes = prompts_of(model), every_probe(name != "bert")
    alone = sk.run(model, prompts, probes, batch_size=1)
    for size in (2, 3, 4, 99):
        assert_same(sk.run(model, prompts, probes, batch_size=size), alone)


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_the_order_of_prompts_changes_no_reading(name):
    model = sk.load_model(testing.tiny(name))
    probes, order = every_probe(name != "bert"), [2, 0, 3, 1]
    plain = sk.run(model, prompts_of(model), probes, batch_size=2).isel(prompt=order)
    shuffled = sk.run(model, prompts_of(model, order=order), probes, batch_size=2)
    assert_same(shuffled, plain)
    assert shuffled.token.values.tolist() == plain.token.values.tolist()


@pytest.mark.parametrize("name", [n for n in ARCHITECTURES if n != "bert"])
@pytest.mark.parametrize("explicit", [False, True], ids=["taken apart", "whole"])
def test_left_padding_changes_no_reading(name, explicit):
    """Left-padded inputs, taken apart by prompt or (with positions of their own) run as they are."""
    model = sk.load_model(testing.tiny(name))
    prompts = prompts_of(model)
    ids, mask = torch.zeros(4, 14, dtype=torch.long), torch.zeros(4, 14, dtype=torch.long)
    for row, one in enumerate(prompts.ids):
        ids[row, 14 - len(one) :], mask[row, 14 - len(one) :] = torch.from_numpy(one), 1
    given = {"input_ids": ids, "attention_mask": mask}
    if explicit:
        given["position_ids"] = (mask.cumsum(-1) - 1).clamp(min=0)
    padded = sk.Prompts.from_inputs(given, model)
    assert (padded.whole is not None) == explicit
    assert_same(sk.run(model, padded, every_probe(), batch_size=4), sk.run(model, prompts, every_probe()))


def test_a_probe_reads_the_same_alone_and_beside_others():
    model = sk.load_model(testing.tiny("gemma2"))
    prompts = prompts_of(model)
    together = sk.run(model, prompts, every_probe(), batch_size=4)
    for probe in every_probe():
        alone = sk.run(model, prompts, [probe], batch_size=4)
        for name in alone.data_vars:
            wanted = together[name]
            if name == "attention":
                wanted = wanted.sel(layer=[1], head=[0, 3])
            np.testing.assert_allclose(alone[name], wanted, atol=1e-5, err_msg=name)


def test_the_same_seed_gives_the_same_numbers_bit_for_bit():
    readings = []
    for _ in range(2):
        model = sk.load_model(testing.tiny("llama", seed=3))
        readings.append(sk.run(model, prompts_of(model), every_probe(), batch_size=2))
    for name in readings[0].data_vars:
        np.testing.assert_array_equal(readings[0][name], readings[1][name])
    other = sk.load_model(testing.tiny("llama", seed=4))
    assert not np.array_equal(sk.run(other, prompts_of(other), [sk.KeyMass()]).key_mass, readings[0].key_mass)


def snapshot(net):
    """Everything of a model that a run might change."""
    hooks = (
        "_forward_hooks", "_forward_pre_hooks", "_forward_hooks_with_kwargs", "_forward_pre_hooks_with_kwargs",
        "_backward_hooks", "_forward_hooks_always_called",
    )  # fmt: skip
    return {
        "configs": [dict(c.__dict__) for c in seam.configs(net)],
        "hooks": [{h: len(getattr(m, h)) for h in hooks} for m in net.modules()],
        "training": [m.training for m in net.modules()],
        "attributes": [sorted(m.__dict__) for m in net.modules()],
        "forward": ["forward" in m.__dict__ for m in net.modules()],
        "gradients": [(p.requires_grad, p.grad is None) for p in net.parameters()],
        "versions": [p._version for p in net.parameters()],
        "session": seam._active.get(),
        "grad mode": torch.is_grad_enabled(),
    }


class Stop(Exception):
    """Raised in the middle of a run."""


def failing(probe_method, raised, after=1):
    """A probe that raises at its ``after``-th call."""
    count = [0]

    class Failing(sk.KeyMass):
        """Fail at some point of a run."""

        def sites(self, tower):
            return tower.site_names

    def fail(self, *_):
        count[0] += 1
        if count[0] > after:
            raise raised
        return {}

    setattr(Failing, probe_method, fail)
    return Failing()


@pytest.mark.parametrize("name", ["llama", "gpt2", "gpt_oss", "bert", "clip_vision", "llava"])
def test_a_run_leaves_the_model_as_it_was(name):
    net = testing.tiny(name)
    model, given = sk.load_model(net), testing.inputs(net)
    weights = copy.deepcopy(net.state_dict())
    with torch.no_grad():
        before_logits = net(**given)[0]
    assert model.backend.towers
    before = snapshot(net)
    if "input_ids" in given:
        prompts = sk.Prompts.from_inputs(given, model)
    else:
        prompts = sk.Prompts.from_images(list(given["pixel_values"]), model)
    sk.run(model, prompts, [sk.KeyMass(), sk.Entropy(), sk.ResidualNorm(), sk.Contribution()])
    assert snapshot(net) == before
    assert all(torch.equal(weights[k], v) for k, v in net.state_dict().items())
    with torch.no_grad():
        assert torch.equal(net(**given)[0], before_logits)


@pytest.mark.parametrize("raised", [Stop(), KeyboardInterrupt(), torch.OutOfMemoryError("no memory")])
@pytest.mark.parametrize("where", ["at_layer", "at_site"])
@pytest.mark.parametrize("training", [False, True])
def test_a_run_that_is_interrupted_leaves_the_model_as_it_was(raised, where, training):
    net = testing.tiny("llama", attention_dropout=0.5)
    net.model.layers[1].train(training)
    model = sk.load_model(net)
    prompts, ids = prompts_of(model), testing.text_ids(net)
    assert model.backend.towers

    def logits():
        torch.manual_seed(0)
        with torch.no_grad():
            return net(ids).logits

    before, wanted = snapshot(net), logits()
    with pytest.raises(type(raised)):
        sk.run(model, prompts, [failing(where, raised)], batch_size=2)
    assert snapshot(net) == before
    assert torch.equal(logits(), wanted)
    sk.run(model, prompts, every_probe(), batch_size=2)


@pytest.mark.parametrize("raised", [Stop(), KeyboardInterrupt()])
def test_an_interrupt_inside_the_models_own_code_leaves_it_as_it_was(raised, monkeypatch):
    net = testing.tiny("llama")
    model = sk.load_model(net)
    prompts, ids = prompts_of(model), testing.text_ids(net)
    assert model.backend.towers
    before = snapshot(net)
    with torch.no_grad():
        wanted = net(ids).logits

    def interrupt(*_args, **_kwargs):
        raise raised

    with monkeypatch.context() as patch:
        patch.setattr(type(net.model.layers[2].mlp), "forward", interrupt)
        with pytest.raises(type(raised)):
            sk.run(model, prompts, every_probe(), batch_size=2)
    assert snapshot(net) == before
    with torch.no_grad():
        assert torch.equal(net(ids).logits, wanted)


def test_loading_a_model_leaves_it_as_it_was():
    net = testing.tiny("gemma3")
    before = snapshot(net)
    sk.load_model(net).capabilities()
    assert snapshot(net) == before


def test_dropout_is_off_during_a_run_and_back_afterwards():
    net = testing.tiny("gpt2", resid_pdrop=0.5, embd_pdrop=0.5, attn_pdrop=0.5)
    model = sk.load_model(net)
    prompts = prompts_of(model)
    wanted = sk.run(model, prompts, every_probe())
    net.train()
    found = sk.run(model, prompts, every_probe())
    assert net.training
    assert all(m.training for m in net.modules())
    for name in wanted.data_vars:
        np.testing.assert_array_equal(found[name], wanted[name])


def test_reading_changes_no_logits_and_stays_within_tolerance_of_the_untouched_model():
    """No edit: bit-identical on the same path, within float tolerance of the model's own attention."""
    model = sk.load_model(testing.tiny("llama"))
    prompts = prompts_of(model)
    native = sk.run(model, prompts, [sk.Logits("all"), sk.ResidualNorm()])
    first = sk.run(model, prompts, [sk.Logits("all"), sk.Entropy()])
    second = sk.run(model, prompts, [sk.Logits("all"), sk.Entropy(), sk.KeyMass(), sk.Contribution()])
    assert (native.attrs["path"], first.attrs["path"]) == ("native", "blockwise")
    np.testing.assert_array_equal(first.logits, second.logits)
    np.testing.assert_allclose(first.logits, native.logits, atol=1e-5 * float(np.nanmax(np.abs(native.logits))))
