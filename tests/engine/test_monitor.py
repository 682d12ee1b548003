"""``monitor``: what a pass of one's own measures is what a run measures; the model is as it was."""

import json
import sys
import types

import numpy as np
import pytest
import torch

import sinkscope as sk
from sinkscope import testing
from sinkscope.engine import monitor as home
from sinkscope.errors import OutputError, ProbeError, SinkscopeWarning, UnsupportedModelError

IDS = torch.tensor([[1, 5, 9, 12, 20, 7, 8], [1, 8, 30, 11, 2, 3, 44]])


@pytest.fixture(params=["llama", "gpt2", "gemma2"])
def model(request):
    return sk.load_model(testing.tiny(request.param))


@pytest.fixture
def llama():
    return sk.load_model(testing.tiny("llama"))


def table(row, name):
    return np.array(list(row[name].values()))


def test_a_pass_measures_what_a_run_measures(model):
    with torch.no_grad():
        plain = model.model(IDS).logits
        with sk.monitor(model, every=1) as watch:
            seen = model.model(IDS).logits
    torch.testing.assert_close(seen, plain, atol=1e-5, rtol=1e-5)
    row = watch.rows[0]
    probes = [sk.KeyMass(), sk.Entropy(), sk.ValueNorm(), sk.MassiveActivations(top=1)]
    ds = sk.run(model, sk.Prompts.from_ids(IDS.tolist(), model), probes)
    np.testing.assert_allclose(table(row, "sink_share"), ds.key_mass.isel(key=0).mean("prompt"), atol=1e-5)
    np.testing.assert_allclose(table(row, "entropy"), ds.entropy.mean(["prompt", "query"]), atol=1e-5)
    norms = ds.value_norm.mean("prompt")
    np.testing.assert_allclose(table(row, "first_value_norm"), norms.isel(key=0), rtol=1e-4)
    np.testing.assert_allclose(table(row, "value_norm"), norms.mean("key"), rtol=1e-4)
    largest = abs(ds.top_value).isel(rank=0).max("prompt")
    assert list(row["massive"]) == ds.site.values.tolist()
    np.testing.assert_allclose(list(row["massive"].values()), largest, rtol=1e-5)
    assert (row["pass"], row["queries"], row["cached"]) == (0, 7, 0)


def test_the_largest_logit_is_that_of_eager_attention(llama):
    logits = {}

    def eager(module, query, key, value, attention_mask, scaling=None, **_):
        keys = key.repeat_interleave(query.shape[1] // key.shape[1], 1)
        scores = (query @ keys.transpose(2, 3) * scaling).masked_fill(
            torch.ones(query.shape[2], key.shape[2], dtype=torch.bool).triu(1), -torch.inf
        )
        logits[module.layer_idx] = scores.amax((0, 2, 3))
        values = value.repeat_interleave(query.shape[1] // value.shape[1], 1)
        return (scores.softmax(-1) @ values).transpose(1, 2).contiguous(), None

    with torch.no_grad():
        with sk.monitor(llama, every=1) as watch:
            llama.model(IDS)
        from transformers.modeling_utils import AttentionInterface

        AttentionInterface.register("test_eager", eager)
        llama.model.config._attn_implementation_internal = "test_eager"
        llama.model(IDS)
    for layer, largest in logits.items():
        np.testing.assert_allclose(watch.rows[0]["max_logit"][str(layer)], largest, atol=1e-5)


def test_padding_on_the_left_is_not_measured(llama):
    one = IDS[:1, :5]
    padded = torch.cat([torch.zeros(1, 2, dtype=torch.long), one], 1)
    mask = torch.tensor([[0, 0, 1, 1, 1, 1, 1]])
    with torch.no_grad(), sk.monitor(llama, every=1) as watch:
        llama.model(one)
        llama.model(padded, attention_mask=mask, position_ids=(mask.cumsum(1) - 1).clamp(min=0))
    for name in ("sink_share", "entropy", "max_logit", "first_value_norm", "value_norm"):
        np.testing.assert_allclose(table(watch.rows[1], name), table(watch.rows[0], name), atol=1e-5)


def test_every_tenth_pass_of_a_generation_is_measured_and_the_text_is_the_same(llama):
    plain = llama.model.generate(IDS[:1], max_new_tokens=12, do_sample=False, pad_token_id=0)
    with sk.monitor(llama, every=5) as watch:
        seen = llama.model.generate(IDS[:1], max_new_tokens=12, do_sample=False, pad_token_id=0)
    assert torch.equal(seen, plain)
    assert watch.passes == 12
    assert [row["pass"] for row in watch.rows] == [0, 5, 10]
    assert [(row["queries"], row["cached"]) for row in watch.rows] == [(7, 0), (1, 11), (1, 16)]


def test_gradients_are_those_of_the_plain_pass_and_training_goes_on(llama):
    llama.model(IDS, labels=IDS).loss.backward()
    plain = {n: p.grad.clone() for n, p in llama.model.named_parameters() if p.grad is not None}
    llama.model.zero_grad()
    with sk.monitor(llama, every=1) as watch:
        llama.model(IDS, labels=IDS).loss.backward()
    assert len(watch.rows) == 1
    for name, parameter in llama.model.named_parameters():
        if name in plain:
            torch.testing.assert_close(parameter.grad, plain[name], atol=1e-5, rtol=1e-4)


def test_the_model_is_left_as_it_was_also_after_an_error(llama):
    before = llama.model.config._attn_implementation_internal
    with pytest.raises(IndexError), sk.monitor(llama, every=1):
        llama.model(torch.tensor([[10**6]]))
    assert llama.model.config._attn_implementation_internal == before
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in llama.model.modules())


def test_a_run_inside_is_left_to_itself(llama):
    prompts = sk.Prompts.from_ids(IDS.tolist(), llama)
    with sk.monitor(llama, every=1) as watch:
        inside = sk.run(llama, prompts, sk.KeyMass())
    assert inside.key_mass.equals(sk.run(llama, prompts, sk.KeyMass()).key_mass)
    assert not watch.rows


def test_rows_go_to_a_file_a_function_or_a_board(llama, tmp_path, monkeypatch):
    path, called = tmp_path / "sinks.jsonl", []
    with torch.no_grad():
        for to in (path, called.append):
            with sk.monitor(llama, every=1, to=to) as watch:
                llama.model(IDS)
        assert json.loads(path.read_text()) == called[0] == watch.rows[0]
        logged = []
        run = types.SimpleNamespace(log=logged.append)
        monkeypatch.setitem(sys.modules, "wandb", types.SimpleNamespace(run=run))
        with sk.monitor(llama, every=1, to="wandb"):
            llama.model(IDS)
    assert logged[0]["sinks/max_logit"] == max(max(v) for v in called[0]["max_logit"].values())
    assert logged[0] == home.scalars(called[0]) | {"sinks/pass": 0}


def test_a_disk_that_fills_up_does_not_stop_the_model(llama):
    def full(_):
        raise OSError(28, "No space left on device")

    with torch.no_grad(), sk.monitor(llama, every=1, to=full) as watch:
        with pytest.warns(SinkscopeWarning, match=r"pass 0 could not be written \(No space left"):
            llama.model(IDS)
        llama.model(IDS)
    assert len(watch.rows) == 2


def test_what_cannot_be_watched_is_refused(llama, tmp_path, monkeypatch):
    def entered(model=llama, **arguments):
        with sk.monitor(model, **arguments):
            pass

    with pytest.raises(ProbeError, match=r"monitor\(every=0\)"):
        entered(every=0)
    with pytest.raises(OutputError, match="cannot be written"):
        entered(to=tmp_path / "no" / "x.jsonl")
    monkeypatch.setitem(sys.modules, "wandb", types.SimpleNamespace(run=None))
    with pytest.raises(OutputError, match="no run is open"):
        entered(to="wandb")
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    with pytest.raises(OutputError, match="it is not installed"):
        entered(to="tensorboard")
    with pytest.raises(UnsupportedModelError, match="is driven by lens"):
        entered(sk.load_model(testing.tiny("gpt2"), backend="lens"))
    llama.model.activation_checkpointing_enable()
    llama.model.train()
    with pytest.raises(UnsupportedModelError, match="gradient checkpointing"), sk.monitor(llama):
        llama.model(IDS)


@pytest.mark.parametrize("name", ["llama", "gpt2", "gemma2"])
def test_scores_of_each_written_token_are_those_of_a_reading_so_far(name):
    """Gemma 2's window is shorter than the text: its cache forgets the first keys, the sums do not."""
    model = sk.load_model(testing.tiny(name))
    with sk.monitor(model, every=1, scores=5) as watch:
        ids = model.model.generate(IDS, max_new_tokens=9, do_sample=False, pad_token_id=0, eos_token_id=None)
    scores = watch.sink_scores()
    assert scores.dims == ("position", "prompt", "layer", "head", "rank")
    assert scores.position.values.tolist() == list(range(7, 16))
    for place in (7, 8, 12, 15):
        so_far = sk.run(model, sk.Prompts.from_ids(ids[:, :place].tolist(), model), sk.KeyMass())
        wanted = sk.metrics.sink_scores(so_far, top=5)
        np.testing.assert_allclose(scores.sel(position=place), wanted.transpose("prompt", ...), atol=2e-6)


def test_scores_leave_padding_out_and_are_nan_where_there_are_fewer_tokens(llama):
    padded = torch.cat([torch.zeros(1, 4, dtype=torch.long), IDS[:1, :3]], 1)
    mask = torch.tensor([[0, 0, 0, 0, 1, 1, 1]])
    options = {"max_new_tokens": 3, "do_sample": False, "pad_token_id": 0, "eos_token_id": None}
    found = []
    for inputs in ({"input_ids": IDS[:1, :3]}, {"input_ids": padded, "attention_mask": mask}):
        with sk.monitor(llama, every=1, scores=4) as watch:
            llama.model.generate(**inputs, **options)
        found.append(watch.sink_scores().values)
    np.testing.assert_allclose(found[1], found[0], atol=1e-5)
    assert np.isnan(found[0][0, ..., 3]).all()
    assert not np.isnan(found[0][1:]).any()


def test_scores_of_a_pass_that_follows_on_nothing_are_nan_and_a_text_of_its_own_begins_anew(llama):
    with torch.no_grad():
        cache = llama.model(IDS, use_cache=True).past_key_values
        with sk.monitor(llama, every=1, scores=2) as watch:
            llama.model(IDS[:, :1], past_key_values=cache, use_cache=True)
            llama.model(IDS)
            llama.model(IDS[:1])
    first, second, third = (np.array(list(row["sink_scores"].values())) for row in watch.rows)
    assert np.isnan(first).all()
    assert not np.isnan(second).any()
    assert third.shape[1] == 1
    with pytest.raises(ProbeError, match=r"the passes had \[1, 2\] prompts"):
        watch.sink_scores()


def test_scores_need_every_pass(llama):
    for options, said in (
        ({"scores": 3}, r"monitor\(scores=3, every=10\): scores are sums over all passes"),
        ({"scores": -1, "every": 1}, r"monitor\(scores=-1\): use a whole number"),
    ):
        with pytest.raises(ProbeError, match=said), sk.monitor(llama, **options):
            pass
    with sk.monitor(llama) as watch:
        pass
    with pytest.raises(ProbeError, match="nothing was scored"):
        watch.sink_scores()
